"""mae-predict: a table of what a run says of images, or one line that says what to do instead."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from marked_hospital import DATE, MARK, write_dicom
from PIL import Image
from tiny_world import World, call, mistake, radiograph, succeed

import classify.answers
import classify.predict
from classify.answers import COLUMNS, NOT_REACHED
from classify.cli import predict
from data.inputs import BATCH


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_a_folder_becomes_a_table_and_the_console_says_where_the_line_is(world: World, tmp_path):
    printed = succeed(predict, "--checkpoint", world.classifier, world.images, "--out", tmp_path / "out.csv")
    found = table(tmp_path / "out.csv")
    assert list(found) == list(COLUMNS) and len(found) == 60
    counts = found["decision"].value_counts()
    assert "60 of 60 images predicted" in printed
    assert (
        f"{counts.get('normal', 0)} normal, {counts.get('abnormal', 0)} abnormal: abnormal from a score of" in printed
    )
    assert "on, chosen on validation (rule youden); that is a probability of" in printed
    assert f"predictions: {tmp_path}/out.csv" in printed


def test_runs_among_the_words_make_an_ensemble(world: World, tmp_path):
    content = torch.load(world.classifier / "best.pt", weights_only=True)
    content["weights"]["head.bias"] += 1
    torch.save(content | {"digests": None}, tmp_path / "other.pt")
    words = [tmp_path / "other.pt", world.images / "0000.png", "--out", tmp_path / "out.csv"]
    succeed(predict, "--checkpoint", world.classifier, *words)
    found = table(tmp_path / "out.csv")
    assert list(found) == [*COLUMNS, "spread"] and len(found) == 1
    assert found["spread"].iloc[0] > 0.01


def test_a_bad_file_among_good_ones_is_no_failure_and_none_good_is_one(world: World, tmp_path):
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"\0" * 500)
    out = tmp_path / "out.csv"
    printed = succeed(predict, "--checkpoint", world.classifier, bad, world.images / "0001.png", "--out", out)
    assert "1 of 2 images predicted; 1 could not be read, column reason says why" in printed
    first, second = table(out).to_dict("records")
    assert first["score"] == first["probability"] == first["decision"] == "" and first["reason"].startswith(
        "found zeros"
    )
    assert second["reason"] == ""

    outcome = call(predict, "--checkpoint", world.classifier, bad, "--out", out)
    assert outcome.code == 2 and outcome.err == f"error: {out}: found none of 1 inputs readable, expected some; " + (
        "see the reasons there\n"
    )
    assert len(table(out)) == 1


def test_names_of_any_letters_come_back(world: World, tmp_path, monkeypatch):
    names = ["a b.png", "=1+1.png", 'ünï, "q".png', "two\nlines.png", os.fsdecode(b"latin-\xe9.png")]
    for name in names:
        shutil.copy(world.images / "0000.png", tmp_path / name)
    (tmp_path / "link.png").symlink_to(world.images / "0001.png")
    monkeypatch.chdir(tmp_path)
    succeed(predict, "--checkpoint", world.classifier, *names, "link.png", "--out", "out.csv")
    found = table(tmp_path / "out.csv")
    shown = ["a b.png", "'=1+1.png", 'ünï, "q".png', "two\nlines.png", "latin-\\xe9.png", "link.png"]
    assert found["path"].tolist() == shown
    assert (found["reason"] == "").all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--checkpoint", "{mae}", "{images}", "--out", "{new}"], "mae-finetune --checkpoint {mae}/best.pt"),
        (["--checkpoint", "{none}", "{images}", "--out", "{new}"], "{none}: found no such file"),
        (["--checkpoint", "{images}", "{images}", "--out", "{new}"], "found a folder without best.pt"),
        (["--checkpoint", "{image}", "{images}", "--out", "{new}"], "found an unreadable or foreign file"),
        (["--checkpoint", "{run}", "{run}/best.pt", "{images}", "--out", "{new}"], "found the same checkpoint"),
        (["--checkpoint", "{run}", "--out", "{new}", "{run}"], "found no FILE"),
        (["--checkpoint", "{run}", "{empty}", "--out", "{new}"], "{empty}: found no image"),
        (["--checkpoint", "{run}", "{none}", "--out", "{new}"], "{none}: found no such file or folder"),
        (["--checkpoint", "{run}", "{images}", "--out", "{empty}"], "--out: {empty}: found a folder"),
        (["--checkpoint", "{run}", "{images}", "--out", "{empty}/a.xlsx"], "expected a name that ends in .csv"),
        (["--checkpoint", "{run}", "{table}", "--out", "{table}"], "--out: {table}: found one of the inputs"),
        (["--checkpoint", "{run}", "{images}", "--out", "{table}"], "found a file that is no table of predictions"),
        (["--checkpoint", "{run}", "{images}", "--out", "{new}", "--threshold", "7"], "expected a score from 0 to 1"),
        (["--checkpoint", "{run}", "{images}", "--out", "{new}", "--sensitivity", "95"], "a whole per cent"),
        (["--checkpoint", "{run}", "{images}", "--out", "{new}", "--device", "tpu"], "device: found 'tpu'"),
        (["--checkpoint", "{run}", "{images}", "--out", "{new}", "--workers", "-1"], "--workers: found -1"),
        (
            ["--checkpoint", "{run}", "{images}", "--out", "{new}", "--heatmaps", "{images}/heat"],
            "found a folder inside",
        ),
        (["--checkpoint", "{run}", "{images}", "--out", "{new}", "--heatmaps", "{table}"], "found a file, expected"),
        (
            ["--checkpoint", "{run}", "{image}", "--out", "{new}", "--heatmaps", "{images}"],
            "found the image 0000.png there",
        ),
        (["--checkpoint", "{run}", "{images}"], "the following arguments are required: --out"),
    ],
)
def test_every_mistake_is_one_line(world: World, tmp_path, words, line):
    (tmp_path / "empty").mkdir()
    places = {
        "mae": world.pretrained.parent,
        "run": world.classifier,
        "images": world.images,
        "none": tmp_path / "none",
    }
    places |= {"image": world.images / "0000.png", "table": world.images / "manifest.csv"}
    places |= {"empty": tmp_path / "empty", "new": tmp_path / "new.csv"}
    said = mistake(predict, *(word.format(**places) for word in words), keep=world.root)
    assert line.format(**places) in said
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("kind", ["input", "a text", "a folder"])
def test_what_lies_in_the_place_of_the_partial_table_is_kept(world: World, tmp_path, kind):
    partial = tmp_path / "new.partial.csv"
    given = world.images / "0000.png"
    if kind == "a folder":
        partial.mkdir()
    else:
        partial.write_text(f"path\n{given}\n")
    words = [partial if kind == "input" else given, "--out", tmp_path / "new.csv"]
    line = mistake(predict, "--checkpoint", world.classifier, *words, keep=tmp_path)
    assert line.startswith(f"error: --out: {partial}: found ")


def test_each_image_gets_its_own_picture_and_array(world: World, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(world.images / "0000.png", tmp_path / folder / "x.png")
    (tmp_path / "b/bad.png").touch()
    words = [tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out.csv", "--heatmaps", tmp_path / "new/heat"]
    printed = succeed(predict, "--checkpoint", world.classifier, *words)
    assert f"heatmaps: {tmp_path}/new/heat" in printed
    names = sorted(path.name for path in (tmp_path / "new/heat").iterdir())
    assert names == ["x-2.npy", "x-2.png", "x.npy", "x.png"]
    heat = np.load(tmp_path / "new/heat/x.npy")
    assert heat.shape == (12, 12) and 0 <= heat.min() <= heat.max() <= 1
    with Image.open(tmp_path / "new/heat/x.png") as picture:
        assert picture.size == (22 * 12, 22 * 12) and "docs/prediction.md" in picture.info["Description"]


@pytest.mark.parametrize("name", ["0000.png", "0000.npy", None])
def test_heatmaps_replace_heatmaps_and_nothing_else(world: World, tmp_path, name):
    for other in ("0001.npy", "0002.png"):  # of no image that is asked about
        (tmp_path / other).write_text("somebody's")
    words = ["--checkpoint", world.classifier, world.images / "0000.png", "--out", tmp_path / "out.csv"]
    if name is None:
        for _ in range(2):
            succeed(predict, *words, "--heatmaps", tmp_path)
        return
    if name.endswith("png"):
        shutil.copy(world.images / "0001.png", tmp_path / name)
    else:
        np.save(tmp_path / name, np.zeros(3))
    line = mistake(predict, *words, "--heatmaps", tmp_path, keep=tmp_path)
    assert f"--heatmaps: {tmp_path}/{name}: found a file that mae-predict has not written" in line


# ---------------------------------------------------------------- interrupted, and private


def test_an_interrupted_table_leaves_the_old_one_and_what_is_known(world: World, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    words = ["--checkpoint", world.classifier, world.images, "--out", out]
    succeed(predict, *words)
    before = out.read_bytes()
    read_inputs = classify.answers.read_inputs

    def stopped(*arguments):
        for number, part in enumerate(read_inputs(*arguments)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(classify.answers, "read_inputs", stopped)
        outcome = call(predict, *words)
    assert outcome.code == 75 and "stopped by SIGTERM; the same command begins anew" in outcome.err
    assert out.read_bytes() == before
    known = table(tmp_path / "out.partial.csv")
    assert len(known) == 60 and (known["reason"] == NOT_REACHED).sum() == 60 - BATCH
    assert "out.partial.csv" in outcome.out

    succeed(predict, *words)
    assert not (tmp_path / "out.partial.csv").exists()


def test_a_disk_that_is_full_for_heatmaps_leaves_what_is_known(world: World, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classify.predict.HeatFolder, "write", full)
    words = ["--checkpoint", world.classifier, world.images, "--out", tmp_path / "out.csv"]
    line = call(predict, *words, "--heatmaps", tmp_path / "heat").err.splitlines()[-1]
    assert "No space left on device" in line
    assert (table(tmp_path / "out.partial.csv")["reason"] != NOT_REACHED).sum() == BATCH


def test_nothing_of_a_patient_is_written_or_said(world: World, tmp_path):
    rng = np.random.default_rng(0)
    for number, spoil in enumerate([None, "Rows", "SamplesPerPixel", "PhotometricInterpretation", None]):
        write_dicom(tmp_path / f"{number}.dcm", radiograph(abnormal=True, rng=rng, side=24), spoil)
    outcome = call(predict, "--checkpoint", world.classifier, tmp_path, "--out", tmp_path / "out.csv")
    assert outcome.code == 0
    written = (tmp_path / "out.csv").read_text() + outcome.out + outcome.err
    assert MARK not in written and DATE not in written
    assert (table(tmp_path / "out.csv")["reason"] != "").sum() == 3


def test_predictions_of_credentialed_images_are_for_their_owner_alone(world: World, tmp_path):
    """Known by where the images lie, whatever the network has seen."""
    place = tmp_path / "mimic-cxr-jpg/files/p10/p10000032/s50414267"
    place.mkdir(parents=True)
    shutil.copy(world.images / "0000.png", place / "1.png")
    shutil.copy(world.images / "0000.png", tmp_path / "open.png")
    modes = {}
    for name, image in {"private": place, "open": tmp_path / "open.png"}.items():
        before = os.umask(0)
        try:
            printed = succeed(predict, "--checkpoint", world.classifier, image, "--out", tmp_path / f"{name}/out.csv")
        finally:
            os.umask(before)
        assert ("check the data use agreement" in printed) == (name == "private")
        modes[name] = [each.stat().st_mode & 0o777 for each in (tmp_path / name, tmp_path / f"{name}/out.csv")]
    assert modes == {"private": [0o700, 0o600], "open": [0o777, 0o666]}
