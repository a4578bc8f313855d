"""Images that made a classifier are known wherever they are evaluated: under other names, folders and encodings."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tiny_world import (
    ONE_EPOCH,
    SETTINGS,
    TINY,
    World,
    call,
    edit_table,
    places,
    succeed,
    tiny_config,
    write_config,
    write_table,
)

from classify.cli import evaluate, finetune
from data.audit import leaks
from data.loader import open_data
from mae import load_checkpoint


def of_splits(world: World) -> dict[str, list[str]]:
    table = pd.read_csv(world.images / "manifest.csv")
    return {split: table.loc[table["split"] == split, "path"].tolist() for split in ("train", "validate", "test")}


def other_data(world: World, root: Path, copied: list[str], anew: bool = False) -> list[str]:
    """12 images of another hospital, all for testing, then copies of the world's; returns overrides that read them."""
    table = write_table(root, count=12, seed=9)
    labels = pd.read_csv(world.images / "manifest.csv").set_index("path")["label"]
    rows = []
    for number, name in enumerate(copied):
        place = root / f"copy-{number}.png"
        if anew:
            Image.open(world.images / name).save(place, compress_level=1)
        else:
            shutil.copyfile(world.images / name, place)
        rows.append({"path": place.name, "label": labels[name], "patient_id": f"q{number}"})
    table = pd.concat([table, pd.DataFrame(rows)]).assign(split="test")
    table.to_csv(root / "manifest.csv", index=False)
    return [f"data.root={root}", f"data.store={root.parent}/stores"]


def rotated(table: pd.DataFrame) -> pd.DataFrame:
    """The validation images and the first ten training images are for testing, the test images for validation."""
    split = table["split"].replace({"validate": "test", "test": "validate"})
    first = table.index[table["split"] == "train"][:10]
    return table.assign(split=split.mask(table.index.isin(first), "test"))


def evaluated(run: Path, *overrides: str, split: str = "test") -> tuple[str, dict, dict]:
    """What is printed, the newest audit, and the summary of the split's newest predictions."""
    settings = [*(word for word in TINY if word.startswith("evaluate")), f"evaluate.split={split}"]
    said = succeed(evaluate, run, *overrides, *settings)
    newest = max(run.glob("audit*.json"), key=lambda path: path.stat().st_mtime_ns)
    summary = max(run.glob(f"predictions/{split}*.json"), key=lambda path: path.stat().st_mtime_ns)
    return said, json.loads(newest.read_text()), json.loads(summary.read_text())


@pytest.fixture
def alone(tmp_path) -> World:
    """A classifier from random weights, so that nothing was pretrained."""
    world = World(tmp_path / "world")
    write_table(world.images)
    write_config(world.config, places(world.root, "runs/mae") | SETTINGS | ONE_EPOCH)
    succeed(finetune, "--config", world.config, f"finetune.run={world.classifier}")
    return world


@pytest.mark.parametrize("anew", [False, True], ids=["copied", "encoded anew"])
def test_copies_under_another_root_are_counted_by_what_they_did(alone, tmp_path, anew):
    names = of_splits(alone)
    copies = names["train"][:5] + names["validate"][:3] + names["test"][:2]
    said, audit, summary = evaluated(alone.classifier, *other_data(alone, tmp_path / "other", copies, anew))
    counted = {"tested": 22, "train": 5, "validate": 3, "pretraining": 0, "images": 8}
    assert audit["trained_on"] == summary["trained_on"] == counted
    first, second = said.splitlines()[:2]
    assert first.startswith("warning: 5 of the 22 images predicted trained these very weights, or are copies")
    assert second.startswith("warning: 3 of the 22 images predicted chose (as validation images) these very weights")


def test_other_images_of_the_same_names_are_none_of_them(alone, tmp_path):
    said, _, summary = evaluated(alone.classifier, *other_data(alone, tmp_path / "other", []))
    assert summary["trained_on"] == {"tested": 12, "train": 0, "validate": 0, "pretraining": 0, "images": 0}
    assert "warning" not in said


def test_a_runs_own_held_out_splits_are_clean(alone):
    for split in ("test", "validate"):
        said, _, summary = evaluated(alone.classifier, split=split)
        assert summary["split"] == split and summary["trained_on"]["images"] == 0
        assert "warning" not in said


def test_splits_that_were_changed_after_the_training_are_noticed(alone):
    """Ten training images, and the validation images that chose the weights, are tested on."""
    changed = edit_table(alone, "changed", rotated)
    _, _, summary = evaluated(alone.classifier, changed)
    assert summary["trained_on"] == {"tested": 20, "train": 10, "validate": 10, "pretraining": 0, "images": 20}


def test_a_budget_trains_on_no_more_than_it_has(alone, tmp_path):
    small = tmp_path / "small"
    succeed(finetune, "--config", alone.config, f"finetune.run={small}", "finetune.sample=7")
    copies = of_splits(alone)["train"]
    _, _, summary = evaluated(small, *other_data(alone, tmp_path / "other", copies))
    assert summary["trained_on"]["train"] == load_checkpoint(small / "best.pt").meta["train_images"] < 10


def test_files_that_nobody_has_read_are_known_by_their_pixels(alone, tmp_path):
    copies = of_splits(alone)["train"][:5]
    overrides = other_data(alone, tmp_path / "other", copies)
    _, audit, _ = evaluated(alone.classifier, overrides[0], "data.store=false")
    assert audit["trained_on"]["train"] == 5 and audit["compared"] is False


def test_without_a_store_training_images_are_known_by_their_ids(alone, tmp_path):
    run = tmp_path / "files"
    succeed(finetune, "--config", alone.config, f"finetune.run={run}", "data.store=false")
    assert evaluated(run)[2]["trained_on"]["images"] == 0
    assert evaluated(run, edit_table(alone, "changed", rotated))[2]["trained_on"]["train"] == 10


def test_a_checkpoint_keeps_numbers_alone(alone):
    meta = load_checkpoint(alone.classifier / "best.pt").meta
    assert len(meta["trained_on"]) == 2 * 40 and len(meta["validated_on"]) == 2 * 10
    assert b"0000.png" not in (alone.classifier / "best.pt").read_bytes()


def test_predictions_do_not_repeat_the_hashes(alone):
    _, _, summary = evaluated(alone.classifier)
    assert not {"seen", "trained_on", "validated_on"} & set(summary["meta"])


def test_weights_older_than_these_records_say_that_it_is_not_known(alone, tmp_path):
    import torch

    for path in (alone.classifier / "best.pt", alone.classifier / "last.pt"):
        content = torch.load(path, weights_only=True)
        for name in ("trained_on", "validated_on"):
            del content["meta"][name]
        del content["digests"]  # older versions had none either
        torch.save(content, path)
    said, audit, summary = evaluated(alone.classifier)
    assert audit["trained_on"] is None and summary["trained_on"] is None
    assert "which images these weights were trained on is not known" in said
    assert [leak.severity for leak in leaks(audit)] == ["unknown"]


def test_hashes_that_are_no_numbers_are_refused(alone):
    import torch

    path = alone.classifier / "best.pt"
    content = torch.load(path, weights_only=True)
    content["meta"]["trained_on"] = ["p1"]
    torch.save(content, path)
    outcome = call(evaluate, alone.classifier)
    assert outcome.code == 2 and "meta.trained_on: found list, expected whole numbers" in outcome.err


def test_a_table_of_patients_may_come_and_go_while_a_run_continues(alone, tmp_path):
    people = pd.DataFrame({"patient_id": [f"p{number}" for number in range(30)], "sex": "F"})
    people.to_csv(tmp_path / "people.csv", index=False)
    given = f"data.patients={tmp_path}/people.csv"
    succeed(finetune, "--config", alone.config, f"finetune.run={alone.classifier}", given, "finetune.epochs=2")
    assert load_checkpoint(alone.classifier / "last.pt").config.data.patients
    succeed(finetune, "--config", alone.config, f"finetune.run={alone.classifier}", "finetune.epochs=3")


def test_a_copied_run_does_not_say_which_table_of_patients_is_read(alone, tmp_path):
    pd.DataFrame({"patient_id": ["p1"], "sex": "F"}).to_csv(tmp_path / "people.csv", index=False)
    given = f"data.patients={tmp_path}/people.csv"
    succeed(finetune, "--config", alone.config, f"finetune.run={tmp_path}/own", given)
    shutil.copytree(tmp_path / "own", tmp_path / "copied")
    outcome = call(evaluate, tmp_path / "copied")
    assert outcome.code == 2 and "data.patients=FILE" in outcome.err
    succeed(evaluate, tmp_path / "copied", *alone.data, given)


def test_pixels_of_a_store_and_of_its_files_have_one_digest(tmp_path):
    stored = open_data(tiny_config(tmp_path).data)
    straight = open_data(tiny_config(tmp_path, data__store=False).data)
    rows = stored.split("test")["row"].to_numpy()
    assert stored.store.pixel_digests(rows) == straight.store.pixel_digests(rows)
    assert sorted(stored.store.pixel_digests(rows)) == sorted(rows)
