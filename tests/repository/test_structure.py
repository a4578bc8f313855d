import ast
import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from checkout import ROOT

from mae import commands
from mae.commands import COMMANDS

ROOMS = ("data", "mae", "classify")
COMMANDS_OF_MAE = {"mae/pretrain.py", "mae/probe.py", "mae/dry_run.py", "mae/reconstruct.py", "mae/cli.py"}
COMMANDS_OF_MAE |= {"mae/own_data.py"}
USED_BY_ALL = {
    "data.errors",
    "data.environment",
    "data.signals",
    "data.locks",
    "data.stand_ins",
    "data.folders",
    "data.config",
    "data.settings",
    "data.plain_values",
    "data.privacy",
    "data.writing",
    "data.cli",
}
# from the command down to the colours: a module imports what stands below it
ORDER_OF_CLASSIFY = (
    *(
        "cli",
        "compare",
        "plan",
        "own_data",
        "jobs",
        "extra_rows",
        "predict",
        "answers",
        "embed",
        "dry_run",
        "export",
        "onnx_file",
        "report",
        "contrasts",
        "subgroups",
        "comparison",
        "provenance",
        "tuning",
        "row_differences",
        "batch_sizes",
        "cost",
        "grid",
        "evaluate",
        "decisions",
        "trained",
        "ledger",
        "prediction_files",
        "finetune",
        "explain",
        "domain",
        "finetune_cost",
        "scores",
    ),
    *("cases", "start", "dashboard", "models", "metrics", "style", "settings"),
)
PUBLIC = {
    "data": ["load_config", "read_image", "open_manifest", "ImageStore", "prepare"],
    "mae": ["build_mae", "load_checkpoint", "MaskedAutoencoder", "Encoder", "Decoder"],
    "classify": ["build_classifier", "build_resnet", "metrics"],
    "classify.metrics": [
        "binary_metrics",
        "bootstrap_interval",
        "delong_test",
        "mcnemar_test",
        "expected_calibration_error",
    ],
}
PRESETS = ("vit_tiny_patch16", "vit_small_patch16", "vit_base_patch16", "vit_large_patch16", "vit_huge_patch14")


def imports(path: Path) -> set[str]:
    """Modules of our rooms that a file imports anywhere, `from x import y` as x (and x.y where that is a module)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            named = {f"{node.module}.{name.name}" for name in node.names}
            found |= named
            if not all(_is_module(name) for name in named):
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in ROOMS and _is_module(name)}


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place_in_classify(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] != "classify" or len(parts) == 1 or parts[1] not in ORDER_OF_CLASSIFY:
        return None
    return ORDER_OF_CLASSIFY.index(parts[1])


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules in which each module reaches all the others."""

    def reached(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            for name in graph.get(todo.pop(), set()) - found:
                found.add(name)
                todo.append(name)
        return found

    all_reached = {name: reached(name) for name in graph}
    groups = []
    for name in sorted(graph):
        group = {other for other in all_reached[name] if name in all_reached.get(other, set())}
        if group and group not in groups:
            groups.append(group)
    return groups


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def rooms_imported(room: str) -> set[str]:
    return {name.split(".")[0] for path in files(room) for name in imports(path)}


# ---------------------------------------------------------------- directions


def test_the_imports_are_found():
    assert "data.loader" in imports(ROOT / "mae/pretrain.py")
    assert "mae.pretrain" in imports(ROOT / "classify/jobs.py")


def test_data_knows_nothing_of_models():
    assert rooms_imported("data") <= {"data"}


def test_mae_knows_nothing_of_diagnoses():
    assert rooms_imported("mae") <= {"data", "mae"}


def test_inside_mae_only_commands_open_data():
    for path in files("mae"):
        name = path.relative_to(ROOT).as_posix()
        used = {module for module in imports(path) if module.startswith("data.")} - USED_BY_ALL
        assert not used or name in COMMANDS_OF_MAE, f"{name} imports {used}"


def test_the_engine_knows_no_stage():
    for path in files("mae/engine"):
        used = {name for name in imports(path) if not name.startswith("mae.engine")} - USED_BY_ALL
        assert used <= {"mae", "data", "mae.settings"}, f"{path.name} imports {used}"


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions and for types alone count too."""
    graph = {}
    for room in ROOMS:
        for path in files(room):
            graph[module_of(path)] = imports(path) - {module_of(path)}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_inside_classify_imports_run_downwards():
    for path in files("classify"):
        here = place_in_classify(module_of(path))
        for name in imports(path):
            there = place_in_classify(name)
            assert there is None or here is None or there >= here, f"{module_of(path)} imports {name}"


def test_every_module_of_classify_has_its_place():
    for path in files("classify"):
        name = module_of(path)
        assert name == "classify" or place_in_classify(name) is not None, name


def test_one_module_decides_what_may_be_shown():
    for path in [*files("data"), *files("mae"), *files("classify")]:
        assert "images is not None" not in path.read_text(), path
        if path.relative_to(ROOT).as_posix() != "data/privacy.py":
            assert "return not credentialed" not in path.read_text(), path
            assert "not manifest.credentialed" not in path.read_text(), path


def test_files_are_written_by_one_writer():
    """Other modules write only to files that grow line by line, locks, and folders that are renamed when complete."""
    elsewhere = {"data/writing.py", "data/phantom.py"}
    for room in ROOMS:
        for path in files(room):
            if path.relative_to(ROOT).as_posix() in elsewhere:
                continue
            for line in path.read_text().splitlines():
                assert not re.search(
                    r"\.write_(text|bytes)\(|\.to_csv\(.*(folder|path|place)|with_suffix\(.*tmp", line
                ), line
                assert not re.search(r"open\([^)]*[\"']w", line) or "lock" in line or "temporary" in line, line


def test_settings_and_config_are_light():
    light = {
        "argparse",
        "difflib",
        "json",
        "os",
        "pkgutil",
        "re",
        "shlex",
        "sys",
        "collections",
        "functools",
        "pathlib",
    }
    light |= {"typing", "yaml", "pydantic", "pydantic_core", "data", "mae", "classify"}
    for name in ("data/config.py", "data/settings.py", "mae/settings.py", "classify/settings.py"):
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [part.name for part in node.names] if isinstance(node, ast.Import) else []
            assert {module.split(".")[0] for module in modules} <= light, name


# ---------------------------------------------------------------- tests


def test_no_test_module_is_imported_by_another():
    tests = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(tests)) == len(tests) > 50  # a name says which file is meant
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            parts = {part for name in imported for part in name.split(".")}
            assert not parts & set(tests), path.relative_to(ROOT)


def test_no_folder_of_tests_hides_a_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    for room in ROOMS:
        assert Path(import_module(room).__file__).parent == ROOT / room
    shared = {path.stem for path in (ROOT / "tests/worlds").glob("*.py")}
    assert not shared & {*ROOMS, *sys.stdlib_module_names}


# ---------------------------------------------------------------- public names


def test_packages_load_without_torch():
    code = "import sys, mae, data, classify; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_public_names_resolve(module, name):
    assert getattr(import_module(module), name) is not None


def test_prepare_stays_a_function_whoever_was_imported_first():
    code = "import data.preparation; import data; from data import prepare; print(callable(prepare))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.strip() == "True"


@pytest.mark.parametrize("room", ROOMS)
def test_unknown_names_are_attribute_errors(room):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = import_module(room).no_such_name


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build(preset):
    import torch

    from mae import build_mae

    patch = 14 if "14" in preset else 16
    with torch.device("meta"):
        model = build_mae(preset, image_size=4 * patch, in_channels=3, depth=1)
    assert model.encoder.grid == (4, 4)


# ---------------------------------------------------------------- the wheel


def from_wheel(installed: Path, folder: Path, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_wheel_holds_every_module_config_and_template(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for room in ROOMS:
        assert {path.relative_to(ROOT).as_posix() for path in files(room)} <= names
    assert {f"mae/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "classify").rglob("*.html")} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "data/shipped").rglob("*.*")} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_wheel_finds_configs_by_name_from_anywhere(installed, tmp_path):
    code = "from mae.cli import pretrain; pretrain(['--config', 'demo', '--print-config'])"
    assert from_wheel(installed, tmp_path, code).startswith("run: runs/demo")
    code = "import data.config; print(data.config.find_config('demo'))"
    assert Path(from_wheel(installed, tmp_path, code)) == installed / "mae/configs/demo.yaml"


def test_wheel_reads_the_demos_images_into_the_working_folder_and_writes_nothing_into_the_package(installed, tmp_path):
    before = sorted(path for path in installed.rglob("*") if "__pycache__" not in path.parts)
    code = "from data.cli import prepare; prepare(['--config', 'demo'])"
    assert "4,128" in from_wheel(installed, tmp_path, code)
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]
    assert sorted(path for path in installed.rglob("*") if "__pycache__" not in path.parts) == before


def test_wheel_finds_what_it_holds_beside_modules_from_anywhere(installed, tmp_path):
    code = (
        "from classify.report import checklist, html; from pathlib import Path;"
        "from data.inputs import find_inputs; from data.config import shipped_credit;"
        "folder = Path(html.__file__).parent; assert checklist.items();"
        "print(folder); (folder / 'report.html').read_text();"
        "print(find_inputs(['shipped:radiographs'])[0].path); shipped_credit('shipped:pneumoniamnist_demo.npz')"
    )
    report, radiograph = from_wheel(installed, tmp_path, code).splitlines()
    assert Path(report) == installed / "classify/report"
    assert Path(radiograph) == installed / "data/shipped/radiographs/test0_abnormal.png"


def test_wheel_names_the_commands(installed):
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    declared = dict(re.findall(r"^mae-(\w+) = (\S+)$", entry_points.read_text(), flags=re.MULTILINE))
    assert declared == {name: f"mae.commands:{name}" for name in COMMANDS}
    assert declared.keys() >= {"prepare", "pretrain", "reconstruct", "finetune", "evaluate", "compare"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_found_by_its_name(name):
    assert callable(getattr(commands, name))
    assert callable(getattr(import_module(COMMANDS[name]), name))


@pytest.mark.parametrize("room", ("data", "mae", "classify"))
def test_what_a_package_offers_is_listed_before_it_is_asked_for(room):
    package = import_module(room)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__doc__, f"{room}.{name}"
