"""A run folder may be given wherever a checkpoint is expected; for what is none, a line says what to give instead."""

import shutil

import pytest
from tiny_world import World, call, mistake, succeed

from classify.cli import evaluate, export, finetune
from mae import load_checkpoint
from mae.cli import pretrain, reconstruct
from mae.engine.checkpoint_file import checkpoint_file


def weights(path):
    return {name: tensor.tolist() for name, tensor in load_checkpoint(path).weights.items()}


# ---------------------------------------------------------------- a run's folder


def test_a_run_folder_means_its_best(world):
    folder = world.pretrained.parent
    assert checkpoint_file(folder) == folder / "best.pt"
    assert checkpoint_file(world.pretrained) == world.pretrained  # a named file is taken as it is
    assert load_checkpoint(folder).place == str(folder / "best.pt")


@pytest.mark.parametrize("ending", ["", "/"])
def test_finetune_begins_from_a_run_folder(world, tmp_path, ending):
    for name, given in {
        "folder": f"{world.pretrained.parent}{ending}",
        "file": world.pretrained.parent / "best.pt",
    }.items():
        succeed(finetune, "--checkpoint", given, f"finetune.run={tmp_path}/{name}")
    assert weights(tmp_path / "folder") == weights(tmp_path / "file")
    meta = load_checkpoint(tmp_path / "folder").meta
    assert meta["pretrained_from"] == str(world.pretrained.parent / "best.pt")


def test_a_run_folder_names_the_classifier_as_its_files_do(world):
    printed = succeed(finetune, "--checkpoint", world.pretrained.parent, "--dry-run", "finetune.run=null")
    assert printed
    from classify.start import config_of, run_folder

    config = config_of(load_checkpoint(world.pretrained))
    assert run_folder(config, checkpoint_file(world.pretrained.parent)) == world.classifier


def test_a_finished_classifier_of_the_same_folder_is_left_alone(world, tmp_path):
    words = ["--checkpoint", world.pretrained.parent, f"finetune.run={tmp_path}/run"]
    succeed(finetune, *words)
    before = (tmp_path / "run/last.pt").stat().st_mtime_ns
    succeed(finetune, *words)
    assert (tmp_path / "run/last.pt").stat().st_mtime_ns == before


def test_pretraining_may_begin_from_a_run_folder(world, tmp_path):
    for name, given in {"folder": world.pretrained.parent, "file": world.pretrained.parent / "best.pt"}.items():
        succeed(pretrain, "--config", world.config, f"run={tmp_path}/{name}", f"model.init={given}")
    assert weights(tmp_path / "folder") == weights(tmp_path / "file")


def test_other_commands_take_run_folders(world, tmp_path):
    succeed(export, "--checkpoint", world.pretrained.parent, "--out", tmp_path / "exported")
    assert (tmp_path / "exported/config.json").is_file()
    image = world.images / "0000.png"
    succeed(reconstruct, image, "--checkpoint", world.pretrained.parent, "--out", tmp_path / "sheets")
    assert (tmp_path / "sheets/0000-sheet.png").is_file()
    assert succeed(evaluate, world.classifier) == succeed(evaluate, world.classifier / "best.pt")


# ---------------------------------------------------------------- folders that are none


def check_refused(world: World, given, tmp_path, *words: str) -> None:
    """Every command that takes a checkpoint says these words of `given`, in one line."""
    out = ["--out", tmp_path / "out"]
    lines = [
        mistake(finetune, "--checkpoint", given, f"finetune.run={tmp_path}/out", keep=world.root),
        mistake(export, "--checkpoint", given, *out, keep=world.root),
        mistake(reconstruct, world.images / "0000.png", "--checkpoint", given, *out, keep=world.root),
        mistake(evaluate, given, keep=world.root),
    ]
    for line in lines:
        assert str(given) in line
        for word in words:
            assert word in line
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_best_names_its_last(world, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(world.pretrained.parent, begun)
    (begun / "best.pt").unlink()
    check_refused(world, begun, tmp_path, "found a run without best.pt", "last.pt")
    succeed(export, "--checkpoint", begun / "last.pt", "--out", tmp_path / "exported")  # named, it is taken


def test_a_run_that_has_saved_nothing_is_still_called_one(world, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(world.pretrained.parent / name, begun)
    check_refused(world, begun, tmp_path, "found a run without best.pt")


def test_a_folder_of_runs_lists_them(world, tmp_path):
    runs = tmp_path / "comparison"
    for name in ("vit-seed0", "mae", "odd\nname"):
        shutil.copytree(world.classifier, runs / name)
    shutil.copytree(world.pretrained.parent, runs / "a-begun")
    (runs / "a-begun/best.pt").unlink()
    (runs / "reconstructions").mkdir()
    check_refused(
        world, runs, tmp_path, "found a folder of 4 runs (mae, odd\\nname, vit-seed0, a-begun)", f"give {runs}/mae"
    )


def test_a_long_list_of_runs_is_cut(world, tmp_path):
    for number in range(11):
        (tmp_path / f"runs/r{number:02}").mkdir(parents=True)
        shutil.copy(world.pretrained, tmp_path / f"runs/r{number:02}")
    check_refused(world, tmp_path / "runs", tmp_path, "11 runs (r00, r01,", "r07 and 3 more)")


def test_other_folders_are_named(world, tmp_path):
    (tmp_path / "empty").mkdir()
    check_refused(world, tmp_path / "empty", tmp_path, "found a folder without best.pt, expected a checkpoint")
    check_refused(world, world.images, tmp_path, "found a folder without best.pt")


def test_init_of_a_folder_of_runs_lists_them_too(world, tmp_path):
    words = ["--config", world.config, f"run={tmp_path}/x", f"model.init={world.root}/runs"]
    assert "found a folder of 2 runs (mae, mae-full)" in mistake(pretrain, *words, keep=world.root)


# ---------------------------------------------------------------- the other kind


def test_a_pretraining_says_how_to_make_a_classifier_of_it(world):
    line = mistake(evaluate, world.pretrained.parent, keep=world.root)
    assert f"mae-finetune --checkpoint {world.pretrained.parent}/best.pt" in line


def test_a_classifier_says_what_it_began_from_and_is_for(world, tmp_path):
    words = ["--checkpoint", world.classifier]
    for line in (
        mistake(finetune, *words, f"finetune.run={tmp_path}/run", keep=world.root),
        mistake(reconstruct, *words, world.images / "0000.png", "--out", tmp_path / "out", keep=world.root),
    ):
        assert str(world.pretrained) in line
        assert f"mae-evaluate {world.classifier}" in line


def test_a_file_of_a_run_that_is_not_evaluated_says_which_is(world):
    assert "best.pt" in mistake(evaluate, world.classifier / "last.pt", keep=world.root)
    assert call(evaluate, world.classifier / "best.pt").code == 0
