"""An image of one grey is no radiograph, whatever made it: it is counted and named, prepared or read from its file."""

import numpy as np
import pandas as pd
import pytest
from image_reading import refusal
from PIL import Image
from pydicom.uid import RLELossless
from radiograph_files import STORED, dicom, lut, picture, save
from tiny_world import tiny_config

from data.errors import UserError
from data.images import read_fitted, read_image
from data.loader import Loader, open_data
from data.preparation import prepare
from data.refusal import UnreadableImage

ONE = "found one grey in every pixel, expected a radiograph"
FLAT = np.full((40, 30), 700, np.uint16)
ELEMENTS = {
    "black": (np.zeros_like(FLAT), {}),
    "flat": (FLAT, {}),
    "flat in a window": (FLAT, {"WindowCenter": 700, "WindowWidth": 200}),
    "above its window": (STORED, {"WindowCenter": 20, "WindowWidth": 10}),
    "below its window": (STORED, {"WindowCenter": 60000, "WindowWidth": 10}),
    "slope": (STORED, {"RescaleSlope": 1e-9, "WindowCenter": 100, "WindowWidth": 10}),
    "look-up table of zeros": (STORED, {"VOILUTSequence": lut(np.zeros(4096, np.uint16), 0, 12)}),
    "look-up table that ends before": (STORED, {"VOILUTSequence": lut(np.arange(50, dtype=np.uint16), 0, 12)}),
    "modality table of one value": (STORED, {"ModalityLUTSequence": lut(np.full(4096, 9, np.uint16), 0, 12)}),
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("case", ELEMENTS)
def test_a_dicom_of_one_grey_is_refused_whatever_made_it(tmp_path, case, photometric):
    pixels, elements = ELEMENTS[case]
    path = save(dicom(pixels, photometric=photometric, **elements), tmp_path / "a.dcm")
    assert np.ptp(read_image(path)) == 0  # reading it directly is allowed
    for resize in ("pad", "crop", "squash"):
        with pytest.raises(UnreadableImage, match=f"^{path}: {ONE}$"):
            read_fitted(path, 16, resize)


def test_pictures_and_archives_of_one_grey_are_refused(tmp_path):
    flat = np.full((300, 400), 77, np.uint8)
    paths = [
        picture(flat, tmp_path / "a.png"),
        picture(flat, tmp_path / "a.jpg"),
        picture(Image.fromarray(flat).convert("RGB"), tmp_path / "b.jpg", progressive=True),
        picture(FLAT, tmp_path / "b.png"),
        save(dicom(flat, bits=8, syntax=RLELossless), tmp_path / "a.dcm"),
        save(dicom(np.stack([flat] * 3, -1), bits=8, photometric="RGB"), tmp_path / "b.dcm"),
    ]
    np.savez(tmp_path / "a.npz", train_images=flat[None])
    for path in [*paths, f"{tmp_path}/a.npz#train_images/0"]:
        with pytest.raises(UnreadableImage, match=ONE):
            read_fitted(path, 24)


def test_two_greys_are_an_image(tmp_path):
    flat = np.full((64, 64), 77, np.uint8)
    flat[:32] = 78
    assert np.ptp(read_fitted(picture(flat, tmp_path / "a.png"), 16)) == 1


def test_a_window_outside_of_the_values_is_not_asked_by_the_other_tone(tmp_path):
    pixels, elements = ELEMENTS["above its window"]
    path = save(dicom(pixels, **elements), tmp_path / "a.dcm")
    assert np.ptp(read_fitted(path, 16, tone="mimic_jpg")) > 200


# ---------------------------------------------------------------- what becomes of it


def blacken(images, count: int) -> list[str]:
    """The first images of a tiny world turned black; their ids."""
    names = sorted(path.name for path in images.glob("*.png"))[:count]
    for name in names:
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(images / name)
    return names


def test_they_are_counted_and_named_and_the_rest_goes_on(tmp_path, capsys):
    config = tiny_config(tmp_path)
    names = blacken(tmp_path / "images", 3)
    store = prepare(config)
    assert len(store) == 57
    rejected = pd.read_csv(store.folder / "rejected.csv")
    assert sorted(rejected["path"]) == [str(tmp_path / "images" / name) for name in names]
    assert rejected["reason"].str.endswith(ONE).all()
    assert "3 unreadable files are listed in" in capsys.readouterr().err


def test_too_many_of_them_stop(tmp_path):
    config = tiny_config(tmp_path)
    blacken(tmp_path / "images", 11)
    with pytest.raises(UserError, match="found 11 unreadable of 60 files, expected at most 10"):
        prepare(config)


def test_from_files_they_are_named_and_lose_their_label(tmp_path, capsys):
    config = tiny_config(tmp_path, data__store=False)
    blacken(tmp_path / "images", 2)
    opened = open_data(config.data)
    for split in ("train", "validate", "test"):
        list(Loader(opened, opened.split(split), 60).epoch())
    assert len(opened.store.unreadable) == 2
    assert capsys.readouterr().err.count(f"{ONE}; left out") == 2


def test_reading_one_by_hand_is_no_refusal(tmp_path):
    path = picture(np.zeros((9, 9), np.uint8), tmp_path / "a.png")
    assert not read_image(path).any()
    path.write_bytes(b"")
    assert "an empty file" in refusal(path)
