"""Laws of the data that come with the package: found from anywhere, honest splits, and their authors named."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from checkout import ROOT, SHARED, as_module
from source_files import touch
from tiny_world import call, mistake

from data.config import expand, load_config, shipped_credit, shipped_data
from data.errors import UserError
from data.images import read_image
from data.inputs import find_inputs
from data.manifest import open_manifest
from data.privacy import credentialed_places
from mae.cli import pretrain
from mae.reconstruct import image_files

ARCHIVE = "shipped:pneumoniamnist_demo.npz"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def shipped() -> dict[str, np.ndarray]:
    return arrays(shipped_data(ARCHIVE, "test"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return as_module("benchmarks/shipped_data.py")


# ---------------------------------------------------------------- what is shipped


def test_no_image_stands_in_two_splits(shipped):
    seen = {part: {image.tobytes() for image in shipped[f"{part}_images"]} for part in ("train", "val", "test")}
    assert not seen["train"] & seen["val"]
    assert not (seen["train"] | seen["val"]) & seen["test"]


def test_the_shipped_pictures_are_test_images_and_say_their_label(shipped):
    pictures = sorted(shipped_data("shipped:radiographs", "test").iterdir())
    assert len(pictures) == 3
    for picture in pictures:
        number, label = picture.stem.removeprefix("test").split("_")
        np.testing.assert_array_equal(read_image(picture), shipped["test_images"][int(number)])
        assert label == ("normal", "abnormal")[shipped["test_labels"][int(number), 0]]


def test_the_demo_reads_it_from_any_folder(tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    manifest = open_manifest(load_config("demo"))
    assert manifest.table["split"].value_counts().to_dict() == {
        name: len(shipped[f"{part}_labels"])
        for part, name in (("train", "train"), ("val", "validate"), ("test", "test"))
    }
    assert not manifest.credentialed
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- how a setting names it


def test_shipped_data_that_are_not_there_are_one_line(tmp_path):
    line = mistake(pretrain, "--config", "demo", "data.root=shipped:pneumonia.npz", keep=tmp_path)
    assert line == (
        "error: data.root: found 'shipped:pneumonia.npz', expected data that comes with this version: "
        "pneumoniamnist_demo.npz, radiographs"
    )
    for outside in ("shipped:", "shipped:../config.py", "shipped:/etc/passwd", "shipped:README.md"):
        with pytest.raises(UserError, match=r"^data\.root: found 'shipped:"):
            expand(outside, "data.root")


def test_only_what_is_read_lies_in_the_package():
    """A folder that is written to may have the same name, and lies where the command runs."""
    assert expand(ARCHIVE, "data.root") == str(ROOT / "data/shipped/pneumoniamnist_demo.npz")
    assert expand(ARCHIVE, "run") == ARCHIVE


def test_shipped_pictures_may_be_named_wherever_images_are():
    folder = ROOT / "data/shipped/radiographs"
    found = find_inputs(["shipped:radiographs", "shipped:radiographs/test2_normal.png"])
    assert [one.shown for one in found] == [
        "shipped:radiographs/test0_abnormal.png",
        "shipped:radiographs/test1_abnormal.png",
        "shipped:radiographs/test2_normal.png",
        "shipped:radiographs/test2_normal.png",
    ]
    assert [one.path.parent for one in found] == [folder] * 4
    assert [Path(name) for name in image_files(["shipped:radiographs"])] == sorted(folder.iterdir())


def test_the_config_names_it_alike_on_every_machine():
    assert call(pretrain, "--config", "demo", "--print-config").out.count(ARCHIVE) == 1


def test_shipped_pictures_are_open_wherever_one_stands(tmp_path, monkeypatch):
    touch(tmp_path, "files/p10/p10000032/s50414267/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert credentialed_places(["shipped:radiographs", "shipped:radiographs/test2_normal.png"]) == ()
    assert credentialed_places(["shipped:radiographs", "files"]) == ("MIMIC-CXR",)


# ---------------------------------------------------------------- whose it is


def test_every_shipped_data_set_has_authors_and_a_licence():
    for path in (ROOT / "data/shipped").glob("*.npz"):
        credit = shipped_credit(f"shipped:{path.name}")
        assert credit
        assert "CC BY 4.0" in credit
        assert "Yang et al." in credit
        assert "Kermany" in credit


@pytest.mark.parametrize("text", ["shipped:", "shipped:of_another_version.npz", "shipped:README.md", "phantom"])
def test_of_other_data_nothing_is_said(text):
    assert shipped_credit(text) is None


# ---------------------------------------------------------------- how it was made


def test_repeats_leave_validation_and_nothing_else(script):
    def images(*greys: int) -> np.ndarray:
        return np.stack([np.full((2, 3), grey, np.uint8) for grey in greys])

    given = {
        "train_images": images(1, 2, 1, 4, 5),
        "train_labels": np.array([[0], [1], [0], [1], [0]]),
        "val_images": images(6, 2, 7),
        "val_labels": np.array([[1], [1], [0]]),
        "test_images": images(8, 9),
        "test_labels": np.array([[0], [1]]),
    }
    kept = script.without_repeats(given)
    assert kept["val_images"][:, 0, 0].tolist() == [6, 7]
    assert kept["val_labels"].tolist() == [[1], [0]]
    assert all(kept[name] is given[name] for name in given if not name.startswith("val"))


def test_an_archive_is_packed_into_the_same_bytes_again(script, tmp_path):
    given = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.array([[1], [0]])}
    (tmp_path / "x.npz").write_bytes(script.pack(given))
    found = arrays(tmp_path / "x.npz")
    assert list(found) == ["a", "b"]
    for name in given:
        np.testing.assert_array_equal(found[name], given[name])
    assert script.pack(found) == script.pack(given)


def test_the_shipped_archive_is_what_the_script_makes(script, shipped):
    source = SHARED / "pneumoniamnist_dev.npz"
    if not source.is_file():
        pytest.skip("the shared development copy is not here")
    made = script.without_repeats(arrays(source))
    assert len(made["val_images"]) == 516
    assert list(made) and set(made) == set(shipped)
    for name in shipped:
        np.testing.assert_array_equal(shipped[name], made[name])
