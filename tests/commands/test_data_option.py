"""`--data FOLDER`: no settings by hand, whatever the folder; it trains, or one line says what is wrong."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from odd_folders import FOLDERS, TRAINS, OddFolder, classes, plain, save
from tiny_world import call, mistake, succeed

import mae.own_data
import mae.recipes
from classify.cli import compare
from data.config import load_config
from mae.cli import pretrain
from mae.recipes import Recipe
from mae.weights import without_weights

# the chosen settings would take minutes; only size, patch and batch are left to be chosen
QUICK = [
    *(
        "device=cpu",
        "threads=1",
        "product=onednn",
        "data.workers=1",
        "model.width=12",
        "model.depth=1",
        "model.heads=3",
    ),
    *("model.decoder_width=8", "model.decoder_depth=1", "model.decoder_heads=2", "pretrain.epochs=1"),
    *("pretrain.panel_images=0", "finetune.epochs=1", "finetune.stem=imagenet"),
]
GRID = 'compare.rows=[{name: MAE, pretraining: [mae75], set: {finetune.mode: linear}}, {name: "Random ViT"}]'


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """A step's memory is counted once for a model and a batch: counting takes longer than these trainings."""
    known: dict[tuple, int] = {}
    really = mae.own_data.pretraining_memory

    def remembered(config, part, device):
        asked = config.model.model_dump_json(), config.data.image_size, part
        if asked not in known:
            known[asked] = really(config, part, device)
        return known[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mae.own_data, "pretraining_memory", remembered)
        yield


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores go into the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def made(folder: Path, odd: OddFolder) -> Path:
    folder.mkdir()
    odd.make(folder)
    return folder / odd.inner


@pytest.mark.parametrize("name", FOLDERS)
def test_any_folder_pretrains_or_says_why_not_in_a_line(name, tmp_path):
    odd = FOLDERS[name]
    place = made(tmp_path / "my images", odd)
    if odd.pretrain != TRAINS:
        assert odd.pretrain in mistake(pretrain, "--data", place, *QUICK, keep=tmp_path)
        assert not list(Path().rglob("*.yaml"))
        return

    succeed(pretrain, "--data", place, *QUICK)
    [written] = Path("runs").glob("*.yaml")
    assert (written.with_suffix("") / "last.pt").is_file()
    assert load_config(written).data.image_size <= 224


@pytest.mark.parametrize("name", FOLDERS)
def test_any_folder_is_compared_or_says_why_not_in_a_line(name, tmp_path):
    odd = FOLDERS[name]
    place = made(tmp_path / "my images", odd)
    words = ["--data", place, *QUICK, "--print-config"]  # chooses by what is there, and trains nothing
    if odd.compare != TRAINS:
        assert odd.compare in mistake(compare, *words, keep=tmp_path)
        return
    assert "Random ViT, trained" in succeed(compare, *words)
    assert not list(Path().rglob("*"))


def test_a_comparison_ends_in_a_report_and_is_found_done_when_it_is_given_again(tmp_path):
    classes(tmp_path / "xrays", 24)
    printed = succeed(compare, "--data", tmp_path / "xrays", *QUICK, GRID)
    assert "edit runs/xrays-compare.yaml and run: mae-compare --config runs/xrays-compare.yaml" in printed
    assert Path("runs/xrays-compare/report.html").is_file()
    checkpoints = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.pt")}

    again = succeed(compare, "--data", tmp_path / "xrays", *QUICK, GRID)
    assert "settings: runs/xrays-compare.yaml, which exists already" in again
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.pt")} == checkpoints


# ---------------------------------------------------------------- what is written


def test_what_is_written_is_what_is_shown_and_gives_the_same_config(tmp_path):
    plain(tmp_path / "xrays")
    printed = succeed(pretrain, "--data", tmp_path / "xrays", *QUICK)
    written = Path("runs/xrays.yaml").read_text()
    assert written in printed
    made = load_config("runs/xrays/config.yaml")
    assert without_weights(load_config("runs/xrays.yaml", [f"product={made.product}"])) == made
    for line in written.splitlines():
        chosen = re.match(r"\s+(image_size|preset|epochs|batch_size|base_lr|patch_size): .*", line)
        assert not chosen or "  # " in line, line


def test_the_file_counts_once_it_is_there(tmp_path):
    plain(tmp_path / "xrays")
    succeed(pretrain, "--data", tmp_path / "xrays", *QUICK)
    path = Path("runs/xrays.yaml")
    edited = yaml.safe_load(path.read_text())
    edited["pretrain"]["epochs"] = 2
    path.write_text(yaml.safe_dump(edited))
    succeed(pretrain, "--data", tmp_path / "xrays")
    assert load_config("runs/xrays/config.yaml").pretrain.epochs == 2
    assert yaml.safe_load(path.read_text()) == edited


def test_a_file_about_other_images_is_refused(tmp_path):
    for parent in ("a", "b"):
        plain(tmp_path / parent / "xrays", 12)
    succeed(pretrain, "--data", tmp_path / "a/xrays", *QUICK)
    line = mistake(pretrain, "--data", tmp_path / "b/xrays", *QUICK, keep=tmp_path)
    assert f"runs/xrays.yaml: found settings for {tmp_path}/a/xrays, expected those for {tmp_path}/b/xrays" in line


@pytest.mark.parametrize("option", ["--dry-run", "--print-config"])
@pytest.mark.parametrize("command", [pretrain, compare])
def test_looking_first_writes_nothing(command, option, tmp_path):
    classes(tmp_path / "xrays", 24)
    printed = succeed(command, "--data", tmp_path / "xrays", option, *QUICK)
    assert not list(Path().rglob("*"))
    if option == "--print-config":
        assert yaml.safe_load(printed)["data"]["root"] == str(tmp_path / "xrays")


def test_overrides_win_and_stand_in_the_file(tmp_path):
    plain(tmp_path / "xrays")
    words = ["data.image_size=16", "pretrain={mask_ratio: 0.5, batch_size: 3}", "run=elsewhere/mine"]
    succeed(pretrain, "--data", tmp_path / "xrays", *QUICK, *words)
    config = load_config("elsewhere/mine.yaml")
    assert (config.data.image_size, config.pretrain.mask_ratio, config.pretrain.batch_size) == (16, 0.5, 3)
    assert Path("elsewhere/mine/last.pt").is_file()


def test_overfit_leaves_no_config_behind(tmp_path):
    plain(tmp_path / "xrays")
    outcome = call(pretrain, "--data", tmp_path / "xrays", "--overfit", "2", *QUICK)
    assert outcome.code in (0, 1), outcome.err  # whether it learns in an epoch is another matter
    assert not list(Path("runs").glob("*.yaml"))


# ---------------------------------------------------------------- what is asked for


def test_data_and_config_are_not_both_given(tmp_path):
    for command in (pretrain, compare):
        line = mistake(command, "--data", tmp_path, "--config", "demo", keep=tmp_path)
        assert "found --data and --config demo, expected one of them" in line


def test_a_named_source_is_not_guessed(tmp_path):
    classes(tmp_path / "xrays", 24, ("Controls of 1999", "TB"))
    named = call(compare, "--data", tmp_path / "xrays", "data.source=images", "--dry-run", *QUICK)
    assert "48 images without labels" in named.err
    assert "mae-pretrain --data" in named.err


def test_a_wrong_place_is_answered_before_torch_is_loaded(tmp_path):
    import subprocess
    import sys

    from checkout import ROOT

    code = (
        "import sys; from mae.cli import pretrain\n"
        "try: pretrain(['--data', '/no/where'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.stdout.split() == ["2", "False"], answer.stderr


def test_images_are_not_enlarged_for_a_few_odd_ones(tmp_path):
    for number in range(24):
        save(tmp_path / "xrays" / f"{number}.png", side=9 if number == 5 else (100, 37))
    succeed(pretrain, "--data", tmp_path / "xrays", *QUICK, "--print-config")
    config = yaml.safe_load(succeed(pretrain, "--data", tmp_path / "xrays", *QUICK, "--print-config"))
    assert config["data"]["image_size"] == 64  # the longer side is 100, and a CPU is given 64


def test_images_for_pretraining_alone_count_in_what_is_chosen_for_it(tmp_path, monkeypatch):
    few = Recipe(up_to=50, side=28, width="micro", epochs=7, finetune_epochs=5)
    many = Recipe(up_to=1000, side=28, width="micro", epochs=3, finetune_epochs=2)
    monkeypatch.setitem(mae.recipes.RECIPES, "cpu", (few, many))
    classes(tmp_path / "xrays", 24)
    plain(tmp_path / "archive", 30)
    quick = [word for word in QUICK if "epochs" not in word]
    words = ["--data", tmp_path / "xrays", "--print-config", *quick]
    more = [f"data.unlabelled=[{{source: images, root: {tmp_path}/archive}}]"]
    for given, epochs in (([], 7), (more, 3)):
        config = yaml.safe_load(succeed(pretrain, *words, *given))
        assert (config["pretrain"]["epochs"], config["finetune"]["epochs"]) == (epochs, 5)
    line = mistake(pretrain, *words, "data.unlabelled=[{source: images, root: nowhere}]", keep=tmp_path)
    assert line == "error: data.unlabelled.0: nowhere: no such folder"
