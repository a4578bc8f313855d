"""A user's file that is named like our packages is reported in one line: by installed commands and by `import mae`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from mae.commands import COMMANDS

SCRIPT = "import sys; sys.argv = ['mae-{name}', *sys.argv[1:]]; from mae.commands import {name}; sys.exit({name}())"
WAYS = ("data.py", "data/__init__.py", "classify.py", "classify/__init__.py")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's folder."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def put(folder: Path, name: str) -> Path:
    """A user's file of that name; nobody runs it."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('a file of the user was run')\n")
    return path


def run(installed: Path, folder: Path, code: str, *words: str, way: str = "cwd") -> subprocess.CompletedProcess[str]:
    """Python with the wheel installed, in a user's folder; way: how Python comes to search that folder first."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    if way == "PYTHONPATH":  # as a console script has it, whose own folder comes first
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(installed)]), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def check_named(line: str, way: Path) -> None:
    assert str(way) in line
    assert "found a file that hides" in line
    assert "rename it" in line


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("way", ["cwd", "PYTHONPATH"])
def test_a_command_names_the_file_in_the_way(installed, place, name, way):
    file = put(place, name)
    answer = run(installed, place, SCRIPT.format(name="pretrain"), "--config", "demo", "--print-config", way=way)
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: ")
    check_named(line, file)
    assert answer.stdout == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_so_does_every_command(installed, place, name):
    file = put(place, "data.py")
    answer = run(installed, place, SCRIPT.format(name=name), "--help")
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    check_named(line, file)


@pytest.mark.parametrize("way", ["cwd", "PYTHONPATH"])
def test_other_files_are_in_nobodys_way(installed, place, way):
    for name in ("utils.py", "mae_helpers.py", "dataset.py", "config.py", "settings.py", "cli.py"):
        put(place, name)
    (place / "data").mkdir()  # a folder of images is no package
    (place / "data/table.csv").write_text("path\n")
    (place / "mae").mkdir()
    answer = run(installed, place, SCRIPT.format(name="pretrain"), "--config", "demo", "--print-config", way=way)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("run: ")
    assert "a file of the user was run" not in answer.stdout


# ---------------------------------------------------------------- Python and notebooks


@pytest.mark.parametrize("name", ["data.py", "data/__init__.py", "classify.py", "classify/__init__.py"])
@pytest.mark.parametrize("statement", ["import mae", "from mae import build_mae", "import mae.model"])
def test_import_mae_names_the_file_in_the_way(installed, place, name, statement):
    file = put(place, name)
    answer = run(installed, place, statement)
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    check_named(last, file)
    assert answer.stdout == ""


@pytest.mark.parametrize("name", ["data.py", "data/__init__.py", "mae.py", "mae/__init__.py"])
def test_import_classify_names_the_file_in_the_way(installed, place, name):
    file = put(place, name)
    last = run(installed, place, "import classify").stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and str(file) in last


def test_a_script_named_as_a_package_is_named_itself(installed, place):
    script = put(place, "classify.py")
    script.write_text("import mae\nmae.load_checkpoint('nowhere.pt')\n")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    check_named(answer.stderr.splitlines()[-1], script)


@pytest.mark.parametrize("made", ["types.ModuleType('data')", "importlib.import_module('data')"])
def test_a_module_imported_before_is_named(installed, place, made):
    put(place, "data.py")
    code = f"import importlib, sys, types; sys.modules['data'] = {made}; import mae"
    last = run(installed, place, code).stderr.splitlines()[-1]
    assert "hides this project's package data" in last


def test_a_name_with_a_line_break_stays_a_line(installed, tmp_path):
    odd = tmp_path / "odd\nfolder"
    odd.mkdir()
    put(odd, "data.py")
    answer = run(installed, odd, SCRIPT.format(name="compare"), "--help")
    [line] = answer.stderr.splitlines()
    assert "odd\\nfolder" in line


def test_our_own_packages_are_imported_by_any_order(installed, place):
    for order in ("data, mae, classify", "classify, data, mae", "mae, classify, data"):
        code = f"import {order}; print(data.__file__, mae.__file__, classify.__file__)"
        answer = run(installed, place, code)
        assert answer.stdout.split() == [str(installed / name / "__init__.py") for name in ("data", "mae", "classify")]


def test_a_folder_of_images_does_not_hide_an_editable_installation(place):
    """Such an installation's finder is asked last, after folders that might be packages without an __init__.py."""
    (place / "data").mkdir()
    finder = (
        "import importlib.util, sys\n"
        "class Editable:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name not in ('data', 'mae', 'classify'): return None\n"
        f"        folder = {str(ROOT)!r} + '/' + name\n"
        "        return importlib.util.spec_from_file_location(\n"
        "            name, folder + '/__init__.py', submodule_search_locations=[folder])\n"
        "sys.meta_path.append(Editable)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for names, expected in {"data": None, "mae, data": str(ROOT / "data/__init__.py")}.items():
        code = finder + f"import {names}; print(data.__file__)"
        # -S: without the editable installation that this interpreter may have itself
        answer = subprocess.run(
            [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=place, env=environment
        )
        assert answer.stdout.strip() == str(expected), answer.stderr
