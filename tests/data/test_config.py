import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from tiny_world import MODEL, call

from classify import cli as stage_two
from classify.settings import ClassifyConfig, FinetuneSettings
from data.config import (
    UserError,
    as_typed,
    change_config,
    describe,
    expand,
    load_config,
    make_config,
    parse_overrides,
    print_config,
    shipped_configs,
    whole_config,
    with_new_names,
)
from mae import cli as stage_one
from mae.settings import OptimizerSettings, PretrainSettings

COMMANDS = {
    "mae-prepare": import_module("data.cli").prepare,
    "mae-pretrain": stage_one.pretrain,
    "mae-finetune": stage_two.finetune,
    "mae-evaluate": stage_two.evaluate,
    "mae-compare": stage_two.compare,
}


def config_file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def error_of(*overrides: str, raw: dict | None = None) -> str:
    with pytest.raises(UserError) as error:
        make_config(raw or {"data": {"source": "table"}}, "my.yaml", parse_overrides(overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- the shipped configs


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_path_and_by_name(path):
    assert load_config(path) == load_config(path.stem)


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.stem)
def test_every_shipped_config_begins_with_its_command(path):
    assert path.read_text().startswith("# mae-")
    assert f"--config {path.stem}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.stem)
def test_shipped_grids_fit_together(path):
    from classify.compare import expand_grid

    config = load_config(path)
    if config.compare.rows:
        assert list(expand_grid(config, 50_000))


def test_every_setting_has_a_meaning():
    missing = [name for name, meaning in describe(whole_config()) if not meaning and name not in sections()]
    assert not missing


def sections() -> set[str]:
    return {name.rpartition(".")[0] for name, _ in describe(whole_config())}


# ---------------------------------------------------------------- --print-config


@pytest.mark.parametrize("name", [None, *(path.stem for path in shipped_configs())])
def test_printed_config_loads_to_the_same_config(name, tmp_path):
    given = ["--config", name] if name else []
    outcome = call(stage_one.pretrain, *given, "--print-config", "seed=3", "data.views=[]", "pretrain.mask_ratio=.5")
    assert outcome.code == 0
    expected = ["seed=3", "data.views=[]", "pretrain.mask_ratio=.5"]
    given_config = load_config(name, expected) if name else make_config(
        {"data": {"source": "phantom"}}, "", parse_overrides(expected)
    )  # fmt: skip
    assert load_config(config_file(tmp_path, outcome.out)) == given_config


def test_printed_config_is_plain_yaml_with_every_setting_and_its_meaning():
    text = print_config(load_config("demo"))
    printed = yaml.safe_load(text)
    for name, meaning in describe(whole_config()):
        if not name.startswith(("compare.rows.", "data.sources.", "data.unlabelled.")):
            value = printed
            for part in name.split("."):
                value = value[part]
            assert meaning in text


def test_printed_config_shows_the_default_where_the_value_differs():
    lines = print_config(load_config("demo", ["seed=3"])).splitlines()
    assert any(line.startswith("seed: 3") and line.endswith("(default: 0)") for line in lines)
    assert any(line.startswith("threads: 0") and "default" not in line for line in lines)


def test_odd_strings_survive_printing(tmp_path):
    config = load_config("demo", ["run='a # b: c'", "data.views=['1e-3', 'null', 'ÄP']"])
    assert load_config(config_file(tmp_path, print_config(config))) == config


def test_finetune_prints_the_config_that_a_checkpoint_brings(world):
    outcome = call(
        stage_two.finetune, "--checkpoint", world.pretrained, "--print-config", "finetune.mode=linear"
    )  # fmt: skip
    assert outcome.code == 0
    printed = yaml.safe_load(outcome.out)
    assert (printed["model"]["width"], printed["finetune"]["mode"]) == (MODEL["width"], "linear")


# ---------------------------------------------------------------- reading


def test_overrides_beat_the_file(tmp_path):
    path = config_file(tmp_path, "seed: 1\ndata: {source: table, image_size: 64}\n")
    config = load_config(path, ["seed=2", "data.image_size=32"])
    assert (config.seed, config.data.image_size, config.data.source) == (2, 32, "table")


def test_a_mapping_given_for_a_section_leaves_its_other_settings_alone():
    config = load_config("demo", ["pretrain={epochs: 3, optimizer: {min_lr: 1e-5}}"])
    demo = load_config("demo").pretrain
    assert (config.pretrain.epochs, config.pretrain.optimizer.min_lr) == (3, 1e-5)
    assert (config.pretrain.batch_size, config.pretrain.optimizer.base_lr) == (demo.batch_size, demo.optimizer.base_lr)


def test_a_mapping_given_for_a_setting_replaces_it():
    assert load_config("demo", ["compare.pretrainings={other: {}}"]).compare.pretrainings == {"other": {}}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".1e-2", "0.001", "+1e-3"])
def test_numbers_with_an_exponent_are_numbers(text, tmp_path):
    path = config_file(tmp_path, f"data: {{source: table}}\nfinetune:\n  optimizer: {{base_lr: {text}}}\n")
    assert load_config(path).finetune.optimizer.base_lr == 1e-3
    assert load_config("demo", [f"finetune.optimizer.base_lr={text}"]).finetune.optimizer.base_lr == 1e-3


def test_repeated_keys_are_an_error(tmp_path):
    path = config_file(tmp_path, "data: {source: table}\nseed: 1\nseed: 2\n")
    with pytest.raises(UserError, match=r"my.yaml: not valid YAML: line 3: 'seed' is given twice"):
        load_config(path)


def test_dates_are_names(tmp_path):
    assert load_config(config_file(tmp_path, "data: {source: table}\nrun: 2026-01-01\n")).run == "2026-01-01"
    with pytest.raises(UserError, match=r"my.yaml: 2026-01-01 is unknown"):
        load_config(config_file(tmp_path, "data: {source: table}\n2026-01-01: 3\n"))


def test_anchors_and_merge_keys_work(tmp_path):
    text = """
data: {source: table}
finetune: {augment: &light {rotation: 3.0, flip: 0.5}}
pretrain: {augment: {<<: *light, flip: 0.0}}
"""
    config = load_config(config_file(tmp_path, text))
    assert (config.pretrain.augment.rotation, config.pretrain.augment.flip) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "no settings"), ("# 1\n", "no settings"), ("- 1\n", "a list"), ("words\n", "a single value")],
)
def test_a_file_that_is_no_mapping(text, found, tmp_path):
    with pytest.raises(UserError, match=rf"my.yaml: found {found}, expected a mapping of settings"):
        load_config(config_file(tmp_path, text))


def test_a_folder_and_another_encoding_are_told_as_such(tmp_path):
    with pytest.raises(UserError, match=r"found a folder, expected a config file such as .*config.yaml"):
        load_config(tmp_path)
    place = tmp_path / "my.yaml"
    for encoding in ("utf-16", "latin-1"):
        place.write_bytes("run: runs/Röntgen\n".encode(encoding))
        with pytest.raises(UserError, match="found another encoding, expected UTF-8"):
            load_config(place)


@pytest.mark.parametrize("text", ["010", "1:30", "0x1F", "00012", "1:30:05", "007.5"])
def test_what_yaml_had_once_for_numbers_is_text(text, tmp_path):
    for given in (["data.where={patient_id: " + text + "}"], [f"data.where.patient_id={text}"]):
        assert load_config("demo", given).data.where == {"patient_id": (text,)}
    assert error_of(f"seed={text}") == f'command line: seed: found "{text}", expected a valid integer'


@pytest.mark.parametrize("name", ["No", "yes", "on", "OFF", "true", "1.50", "1e3", "7"])
def test_names_are_what_is_written(name):
    assert load_config("demo", ["data.where={" + name + ": 3}"]).data.where == {name: (3,)}


def test_names_are_what_is_written_in_merged_mappings_too(tmp_path):
    text = """
data: {source: table, where: &both {No: 3, on: 5}}
compare: {pretrainings: {off: {data.where: {<<: *both, on: 7}}}}
"""
    config = load_config(config_file(tmp_path, text))
    assert config.data.where == {"No": (3,), "on": (5,)}
    assert config.compare.pretrainings == {"off": {"data.where": {"No": 3, "on": 7}}}


@pytest.mark.parametrize("override", ["data.normal=no", "data.normal=[Yes]", "data.target=No", "data.columns.view=on"])
def test_words_that_yaml_takes_for_true_or_false_are_told_to_need_quotes(override):
    assert error_of(override).endswith("such as 'no' needs its quotes")


def test_a_decimal_comma_means_no_other_setting():
    assert error_of("pretrain={mask_ratio: 0,75: }") == "command line: pretrain.75 is unknown; see --print-config"


def test_broken_yaml_names_the_line(tmp_path):
    with pytest.raises(UserError, match=r"my.yaml: not valid YAML: .*line 3"):
        load_config(config_file(tmp_path, "seed: 1\ndata: {source: [\n"))


def test_an_unknown_config_name_lists_the_shipped_ones():
    with pytest.raises(UserError, match=r"dmo: no such config file, nor a shipped config; shipped are .*demo"):
        load_config("dmo")


def test_config_is_frozen_and_compares_by_value():
    config = load_config("demo")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    assert change_config(config, {"seed": 5}).seed == 5
    assert hash(config.data) == hash(load_config("demo").data)  # compare opens each data set once


# ---------------------------------------------------------------- environment


def test_paths_read_the_environment(monkeypatch):
    monkeypatch.setenv("MIMIC_CXR_ROOT", "/data/mimic")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert expand("${MIMIC_CXR_ROOT}/files", "data.root") == "/data/mimic/files"
    assert expand("${NOT_SET:-../here}/x", "data.root") == "../here/x"
    assert expand("${MIMIC_CXR_ROOT:-../here}", "data.root") == "/data/mimic"
    assert expand("~/x", "data.root") == str(Path.home() / "x")
    with pytest.raises(
        UserError, match=r"data.root: \$\{NOT_SET\} is not set; export NOT_SET=/path, or give data.root"
    ):
        expand("${NOT_SET}/x", "data.root")


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sed", "seed"),
        ("data.sorce", "data.source"),
        ("data.imagesize", "data.image_size"),
        ("data.phantom.image", "data.phantom.images"),
        ("model.patchsize", "model.patch_size"),
        ("pretrain.epoch", "pretrain.epochs"),
        ("pretrain.lr", "pretrain.optimizer.base_lr"),
        ("pretrain.base_lr", "pretrain.optimizer.base_lr"),
        ("pretrain.optimizer.lr", "pretrain.optimizer.base_lr"),
        ("pretrain.optim.base_lr", "pretrain.optimizer.base_lr"),
        ("optim.lr", "pretrain.optimizer.base_lr"),
        ("pretrian.epochs", "pretrain.epochs"),
        ("mask_ratio", "pretrain.mask_ratio"),
        ("finetune.warmup", "finetune.optimizer.warmup_epochs"),
        ("finetune.optim.base_lr", "finetune.optimizer.base_lr"),
        ("finetune.augment.rotate", "finetune.augment.rotation"),
        ("evaluate.spilt", "evaluate.split"),
        ("compare.seed", "compare.seeds"),
        ("report.image", "report.images"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(key, near):
    assert error_of(f"{key}=1") == f"command line: {key} is unknown; did you mean {near}?"
    raw = 1
    for part in reversed(key.split(".")):
        raw = {part: raw}
    raw["data"] = {"source": "table"} | raw.get("data", {})
    assert error_of(raw=raw) == f"my.yaml: {key} is unknown; did you mean {near}?"


def test_a_key_of_an_earlier_version_is_told_its_name_of_today():
    for before, now in ClassifyConfig.RENAMED.items():
        section, name = before.split(".")
        assert error_of(f"{before}=1") == f"command line: {before} is renamed to {now}"
        raw = {section: {name: 1}} | ({} if section == "data" else {"data": {"source": "table"}})
        assert error_of(raw=raw) == f"my.yaml: {before} is renamed to {now}"
        assert now in dict(describe(ClassifyConfig))


def test_settings_of_an_earlier_version_get_their_names_of_today():
    made = {
        "finetune": {"base_lr": 0.5, "ema": None, "epochs": 3},
        "pretrain": {"optimizer": {"min_lr": 0.1}, "ema": 0.9},
    }
    assert with_new_names(made) == {
        "finetune": {"epochs": 3, "optimizer": {"base_lr": 0.5, "ema": None}},
        "pretrain": {"optimizer": {"min_lr": 0.1, "ema": 0.9}},
    }
    today = load_config("demo").model_dump(mode="json")
    assert with_new_names(today) == today


def test_both_stages_have_the_same_optimizer_settings():
    pretrain, finetune = PretrainSettings().optimizer, FinetuneSettings().optimizer
    shared = set(OptimizerSettings.model_fields)
    assert set(type(pretrain).model_fields) == shared
    assert set(type(finetune).model_fields) == shared | {"layer_decay"}


def test_a_misspelt_section_suggests_a_section():
    raw = {"data": {"source": "table"}, "pretrian": {"epochs": 1, "batch_size": 2}}
    assert error_of(raw=raw) == "my.yaml: pretrian is unknown; did you mean pretrain?"
    raw = {"data": {"source": "table"}, "compare": {"pretraining": {"a": {}, "b": {}}}}
    assert error_of(raw=raw) == "my.yaml: compare.pretraining is unknown; did you mean compare.pretrainings?"


def test_a_misspelt_key_is_told_before_the_key_that_is_therefore_missing():
    raw = {"dta": {"source": "table", "root": "x"}}
    assert error_of(raw=raw) == "my.yaml: dta is unknown; did you mean data?"


def test_a_dotted_key_in_a_file_is_told_where_it_belongs():
    raw = {"data": {"source": "table", "root": "x"}, "pretrain.epochs": 2}
    assert error_of(raw=raw) == "my.yaml: pretrain.epochs is unknown so, expected epochs in the mapping pretrain"


def test_a_key_like_nothing_suggests_nothing():
    assert error_of("xyzzy=1") == "command line: xyzzy is unknown; see --print-config"


def test_unknown_keys_in_a_row_of_the_grid():
    assert "compare.rows.0.nmae is unknown; did you mean compare.rows.name?" in error_of("compare.rows=[{nmae: x}]")


def test_a_missing_source_says_what_it_is():
    assert error_of(raw={"seed": 1}).startswith("my.yaml: data.source is missing (layout of the files: mimic-cxr-jpg,")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=a", 'seed: found "a", expected a valid integer'),
        ("seed=1.5", "seed: found 1.5, expected a valid integer"),
        ("seed=true", "seed: found true, expected a valid integer"),
        ("seed=", "seed: found null, expected a valid integer"),
        ("run=3", "run: found 3, expected a valid string"),
        ("data.views=AP", 'data.views: found "AP", expected a list'),
        ("finetune.augment.enabled=1", "finetune.augment.enabled: found 1, expected a valid boolean"),
        ("pretrain=3", "pretrain: found 3, expected a mapping"),
        ("seed.x=3", 'seed: found {"x": 3}, expected a valid integer'),
        ("seed=-1", "seed: found -1, expected greater than or equal to 0"),
        ("precision=fp8", "precision: found \"fp8\", expected 'fp32', 'tf32', 'bf16' or 'fp16'"),
        ("pretrain.mask_ratio=1", "pretrain.mask_ratio: found 1, expected less than 1"),
        ("pretrain.optimizer.base_lr=.inf", "pretrain.optimizer.base_lr: found Infinity, expected a finite number"),
        ("pretrain.optimizer.base_lr=.nan", "pretrain.optimizer.base_lr: found NaN, expected a finite number"),
        ("finetune.model=resnet", "finetune.model: found \"resnet\", expected 'vit', 'resnet18' or 'resnet50'"),
        ("data.source=mimic", "data.source: found \"mimic\", expected 'mimic-cxr-jpg', 'mimic-cxr-dicom', "),
        ("compare.seeds=[]", "compare.seeds: found [], expected to have at least 1 item"),
        ("finetune.augment.crop_scale=[1, .5]", "finetune.augment.crop_scale: found [1.0, 0.5], expected 0 < low"),
    ],
)
def test_wrong_types_and_impossible_values(override, message):
    assert error_of(override).startswith(f"command line: {message}")


def test_a_mistake_in_the_file_is_the_files_though_there_are_overrides():
    assert error_of("seed=1", raw={"data": {"source": "table"}, "threads": "x"}).startswith("my.yaml: threads: ")


@pytest.mark.parametrize("pair", ["epochs", "=3", "a b"])
def test_overrides_are_key_and_value(pair):
    with pytest.raises(UserError, match=r"command line: found .*, expected key=value such as pretrain.epochs=3"):
        parse_overrides([pair])


@pytest.mark.parametrize(
    "value", ["Image Index", ["No Finding"], "007", "try #2", "yes", "it's", "Größe", [320, 256], "a: b", "$HOME", None]
)
def test_a_setting_that_a_message_says_to_type_arrives_as_it_was_meant(value):
    words = shlex.split(as_typed("data.x", value))
    assert len(words) == 1
    assert parse_overrides(words) == {"data.x": value}


def test_what_the_shell_or_yaml_would_cut_off_is_refused():
    with pytest.raises(UserError, match="run: found '#2', which YAML takes for a comment, expected none") as caught:
        parse_overrides(["run=runs/try #2"])
    typed = str(caught.value).partition("quotes of its own: ")[2]
    assert parse_overrides(shlex.split(typed)) == {"run": "runs/try #2"}
    assert parse_overrides(["run=a#b", "data.normal=['a #b']"]) == {"run": "a#b", "data.normal": ["a #b"]}
    with pytest.raises(UserError, match="a setting with blanks goes into quotes"):
        parse_overrides(["data.normal=[No", "Finding]"])


def test_overrides_may_stand_around_options():
    outcome = call(stage_one.pretrain, "seed=1", "--config", "demo", "threads=1", "--print-config", "run=x")
    assert outcome.code == 0
    printed = yaml.safe_load(outcome.out)
    assert (printed["seed"], printed["threads"], printed["run"]) == (1, 1, "x")


# ---------------------------------------------------------------- instant answers

UNLOADED = "torch", "pandas", "sklearn", "matplotlib", "tensorboard", "numpy"
PROBE = f"""
import sys
from importlib import import_module
from mae import cli as stage_one
from classify import cli as stage_two
from classify.settings import ClassifyConfig, FinetuneSettings
commands = {{
    "mae-prepare": import_module("data.cli").prepare,
    "mae-pretrain": stage_one.pretrain,
    "mae-finetune": stage_two.finetune,
    "mae-evaluate": stage_two.evaluate,
    "mae-compare": stage_two.compare,
}}
for words in eval(sys.argv[1]):
    try:
        commands[words[0]](words[1:])
    except SystemExit as stop:
        print(words[0], stop.code)
print("loaded", [name for name in {UNLOADED} if name in sys.modules])
"""


def probe(*commands: list[str]) -> list[str]:
    answer = subprocess.run([sys.executable, "-c", PROBE, repr(commands)], capture_output=True, text=True, cwd=ROOT)
    return answer.stdout.splitlines() + answer.stderr.splitlines()


def test_help_and_config_errors_load_neither_torch_nor_pandas():
    lines = probe(
        *([name, "--help"] for name in COMMANDS),
        *([name, "--config", "demo", "sed=1"] for name in COMMANDS if name != "mae-evaluate"),
        ["mae-pretrain", "--config", "demo", "--print-config"],
        ["mae-pretrain", "--no-such-option"],
        ["mae-pretrain"],
        ["mae-finetune"],
        ["mae-evaluate"],
    )
    assert "loaded []" in lines
    for name in COMMANDS:
        assert f"{name} 0" in lines
        assert f"{name} 2" in lines or name == "mae-evaluate"
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors[:4] == ["error: command line: sed is unknown; did you mean seed?"] * 4
    assert errors[4].startswith("error: command line: unrecognized arguments: --no-such-option")
    assert errors[5].startswith("error: command line: --config or --data is missing")
    assert errors[6].startswith("error: command line: --config or --checkpoint is missing")
    assert errors[7].startswith("error: command line: the following arguments are required: RUN")
    assert not [line for line in lines if "Traceback" in line]
