"""mae-reconstruct: its sheets and pictures, what they say, and its mistakes."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkout import SHARED
from PIL import Image
from tiny_world import call, mistake, succeed, tiny_config

from data.images import read_fitted
from mae.cli import reconstruct as command
from mae.reconstruct import CONTINUED, GREY_LEVELS, NOT_A_PREDICTION, PRIVATE, Pictures, names_of

CHEST = SHARED / "dicom/chest_CR_mono1_implicit_cxr.dcm"


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with checkpoints and two radiographs of one name."""
    folder = tmp_path_factory.mktemp("reconstruct")
    rng = np.random.default_rng(0)
    for name in ("images/a.png", "images/b.jpg", "others/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (21, 17), dtype=np.uint8)).save(folder / name)
    return folder


def checkpoint(place: Path, name: str = "plain", **changed) -> Path:
    """`last.pt` of a pretraining of one epoch, made if missing."""
    last = place / name / "mae/last.pt"
    if not last.exists():
        from mae.pretrain import pretrain as train

        train(tiny_config(place / name, pretrain__epochs=1, **changed))
    return last


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.array(image)


def said(path: Path) -> str:
    with Image.open(path) as image:
        return image.text["Description"]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_sheet_for_every_image_and_none_overwrites_another(place, tmp_path):
    words = [place / "images/a.png", place / "others/a.jpg", place / "images", place / "others"]
    out = succeed(command, "--checkpoint", checkpoint(place), *words, "--out", tmp_path / "new/sheets")
    assert files(tmp_path / "new/sheets") == ["a-2-sheet.png", "a-sheet.png", "b-sheet.png"]
    assert f"{place}/others/a.jpg → {tmp_path}/new/sheets/a-2-sheet.png" in out
    assert CONTINUED in out
    assert CONTINUED in said(tmp_path / "new/sheets/a-sheet.png")


def test_names_are_told_apart_whatever_they_are():
    assert names_of(["x/a.png", "y/a.jpg", "a-2.png", "z/A.dcm", "a.npz#images/3"]) == {
        "x/a.png": "a",
        "y/a.jpg": "a-3",
        "a-2.png": "a-2",
        "z/A.dcm": "A-4",
        "a.npz#images/3": "3",
    }


def test_separate_pictures_are_what_the_model_saw_and_made(place, tmp_path):
    words = ["--checkpoint", checkpoint(place), place / "images/a.png", "--out", tmp_path, "--separate"]
    succeed(command, *words, "--samples", 2, "--mask-ratio", 0.5, "--seed", 7)
    parts = ["masked-1", "masked-2", "mix-1", "mix-2", "original", "reconstruction-1", "reconstruction-2", "sheet"]
    assert files(tmp_path) == [f"a-{part}.png" for part in parts]
    original = picture(tmp_path / "a-original.png")
    assert np.array_equal(original, read_fitted(place / "images/a.png", 12))
    masks = [picture(tmp_path / f"a-masked-{k}.png") for k in (1, 2)]
    assert not np.array_equal(*masks)
    for k, masked in enumerate(masks, 1):
        seen = masked != 128  # the mean grey
        assert 0.35 < seen.mean() < 4.1 / 9  # 4 of 9 patches
        assert np.array_equal(picture(tmp_path / f"a-mix-{k}.png")[seen], original[seen])


def test_masks_follow_the_seed_and_not_the_other_images(place, tmp_path):
    def masked(folder: str, *words: object) -> np.ndarray:
        always = ["--checkpoint", checkpoint(place), "--out", tmp_path / folder, "--separate"]
        succeed(command, *always, *words)
        return picture(tmp_path / folder / "a-masked.png")

    one = masked("one", place / "images/a.png")
    assert np.array_equal(one, masked("all", place / "images/b.jpg", place / "images/a.png"))
    assert not np.array_equal(one, masked("other", place / "images/a.png", "--seed", 1))


def test_hidden_statistics_are_labelled_wherever_they_are_used(place, tmp_path):
    words = ["--checkpoint", checkpoint(place), place / "images/a.png", "--separate", "--out"]
    plain = succeed(command, *words, tmp_path / "plain")
    leaking = succeed(command, *words, tmp_path / "leaking", "--hidden-statistics")
    assert NOT_A_PREDICTION in leaking and NOT_A_PREDICTION not in plain
    assert CONTINUED in plain and CONTINUED not in leaking
    names = [f"a-{part}.png" for part in ("masked", "mix-own-statistics", "original", "reconstruction-own-statistics")]
    assert files(tmp_path / "leaking") == [*names, "a-sheet.png"]
    assert all(NOT_A_PREDICTION in said(path) for path in (tmp_path / "leaking").iterdir())
    sheet, other = picture(tmp_path / "leaking/a-sheet.png"), picture(tmp_path / "plain/a-sheet.png")
    black = [(part == 0).mean(axis=1).max() > 0.5 for part in (sheet, other)]
    assert black == [True, False]  # the band behind the warning


def test_a_model_of_grey_levels_says_so(place, tmp_path):
    last = checkpoint(place, "levels", model__norm_pixel_loss=False)
    words = ["--checkpoint", last, place / "images/a.png", "--out", tmp_path / "out"]
    assert GREY_LEVELS in succeed(command, *words)
    line = mistake(command, *words, "--hidden-statistics", keep=tmp_path)
    assert line.startswith("error: --hidden-statistics: found a model that predicts grey levels")


def test_other_models_and_shapes(place, tmp_path):
    changed = {"model__decoder": "cross", "model__in_channels": 3, "data__image_size": (8, 20)}
    last = checkpoint(place, "other", **changed, data__resize="squash")
    succeed(command, "--checkpoint", last, place / "images/a.png", "--out", tmp_path, "--separate")
    assert {picture(tmp_path / f"a-{part}.png").shape for part in Pictures._fields} == {(8, 20)}


def test_credentialed_models_say_that_nothing_may_be_shared(place, tmp_path):
    last = checkpoint(place, "private", data__credentialed=True)
    words = [place / "images/a.png", "--out"]
    assert PRIVATE in succeed(command, "--checkpoint", last, *words, tmp_path / "private")
    assert PRIVATE in said(tmp_path / "private/a-sheet.png")
    assert PRIVATE not in succeed(command, "--checkpoint", checkpoint(place), *words, tmp_path / "public")


@pytest.mark.skipif(not CHEST.exists(), reason="the DICOM samples are not here")
def test_dicom_files_are_read_as_the_checkpoint_read_its_own(place, tmp_path):
    succeed(command, "--checkpoint", checkpoint(place), CHEST, "--out", tmp_path, "--separate")
    assert np.array_equal(picture(tmp_path / f"{CHEST.stem}-original.png"), read_fitted(CHEST, 12))


# ---------------------------------------------------------------- mistakes


def test_unreadable_images_are_a_line_each_and_the_others_are_shown(place, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    words = [tmp_path / "nowhere.png", place / "images/a.png", tmp_path / "text.png", place / "images/b.jpg"]
    outcome = call(command, "--checkpoint", checkpoint(place), *words, "--out", tmp_path / "out")
    assert outcome.code == 2
    first, second = outcome.err.splitlines()
    assert first == f"error: {tmp_path}/nowhere.png: found no such file or directory, expected a readable image file"
    assert second.startswith(f"error: {tmp_path}/text.png: found other bytes, expected JPEG, PNG or DICOM")
    assert files(tmp_path / "out") == ["a-sheet.png", "b-sheet.png"]


def test_no_name_ends_a_line_or_moves_the_cursor(place, tmp_path):
    odd = ["two\nlines", "an\x1b[31mescape", "half\udcff"]
    for name in odd:
        shutil.copy(place / "images/a.png", tmp_path / f"{name}.png")
        (tmp_path / f"{name} empty.png").touch()
    outcome = call(command, "--checkpoint", checkpoint(place), tmp_path, "--out", tmp_path / "out")
    for text in (outcome.out, outcome.err):
        lines = [line for line in text.split("\n") if str(tmp_path) in line]
        assert len(lines) == len(odd)
        assert all(line.isprintable() for line in text.split("\n"))
    assert {f"{name}-sheet.png" for name in odd} == set(files(tmp_path / "out"))


def test_nothing_is_made_where_nothing_can_be_shown(place, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["--checkpoint", checkpoint(place), "--out", tmp_path / "out"]
    line = mistake(command, *words, tmp_path / "empty", keep=tmp_path)
    assert line.startswith(f"error: {tmp_path}/empty: found no images among 0 files")
    mistake(command, *words, tmp_path / "nowhere.png", keep=tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_image_is_not_overwritten(place, tmp_path):
    for name in ("a.png", "a-sheet.png"):
        (tmp_path / name).write_bytes((place / "images/a.png").read_bytes())
    line = mistake(command, "--checkpoint", checkpoint(place), tmp_path, "--out", tmp_path, keep=tmp_path)
    assert line == f"error: --out: {tmp_path}: found the image a-sheet.png there, expected another folder"


def test_a_file_where_the_folder_should_be(place, tmp_path):
    (tmp_path / "out").write_text("mine\n")
    words = ["--checkpoint", checkpoint(place), place / "images/a.png", "--out", tmp_path / "out"]
    assert mistake(command, *words, keep=tmp_path).startswith(f"error: {tmp_path}/out: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask-ratio", "1"], "argument --mask-ratio: found '1', expected a share between 0 and 1"),
        (["--mask-ratio", "nan"], "argument --mask-ratio: found 'nan', expected a share between 0 and 1"),
        (["--samples", "0"], "argument --samples: found '0', expected a whole number, 1 or more"),
        (["--seed", "1.5"], "argument --seed: found '1.5', expected a whole number, 0 or more"),
        (["--mask", "0.5"], "unrecognized arguments: --mask"),
    ],
)
def test_mistakes_on_the_command_line(words, message, tmp_path):
    words = ["--checkpoint", tmp_path / "last.pt", "a.png", "--out", tmp_path / "out", *words]
    assert mistake(command, *words, keep=tmp_path).startswith(f"error: command line: {message}")


@pytest.mark.parametrize("missing", ["--checkpoint", "--out", "IMAGE"])
def test_what_must_be_given(missing, tmp_path):
    words = {"--checkpoint": ["--checkpoint", "x.pt"], "--out": ["--out", tmp_path / "out"], "IMAGE": ["a.png"]}
    line = mistake(command, *(word for name in words if name != missing for word in words[name]), keep=tmp_path)
    assert line.startswith(f"error: command line: the following arguments are required: {missing}")


def test_a_checkpoint_that_is_none_or_of_another_stage(world, tmp_path):
    words = [world.images / "0000.png", "--out", tmp_path / "out"]
    line = mistake(command, "--checkpoint", tmp_path / "no.pt", *words, keep=world.root)
    assert line.startswith(f"error: {tmp_path}/no.pt: found no such file, expected a checkpoint")
    line = mistake(command, "--checkpoint", world.classifier / "best.pt", *words, keep=world.root)
    assert line.startswith(f"error: {world.classifier}/best.pt: found a checkpoint of kind classifier, expected mae; ")
    line = mistake(command, "--checkpoint", world.images / "0000.png", *words, keep=world.root)
    assert line.startswith(f"error: {world.images}/0000.png: found an unreadable or foreign file")
    line = mistake(command, "--checkpoint", world.pretrained, *words, "--device", "gpu", keep=world.root)
    assert line.startswith("error: device: found 'gpu', which is not available")
    assert not (tmp_path / "out").exists()


def test_the_command_line_is_parsed_before_torch_is_imported():
    code = (
        "import sys; from mae.cli import reconstruct\n"
        "try: reconstruct(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "False"
