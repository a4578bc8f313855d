"""A stored row belongs to its file, whatever a table calls it: a label never gets another image's pixels."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from radiograph_files import dicom, picture, save
from tiny_world import tiny_config

from data.images import read_fitted
from data.preparation import prepare

SIDE = 13


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 4096, (SIDE, SIDE), dtype=np.uint16)


def write_dicoms(root: Path, numbers: range) -> list[str]:
    """Uncompressed images of one detector: all files have one size."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{number:02}.dcm" for number in numbers]
    for number, name in zip(numbers, names, strict=True):
        save(dicom(pixels(number), WindowCenter=2048, WindowWidth=4096), root / name)
    assert len({(root / name).stat().st_size for name in names}) == 1
    return names


def write_manifest(root: Path, names: list[str]) -> None:
    """Image ids are running numbers, as a database or a spreadsheet gives them."""
    split = ["train", "validate", "test"]
    rows = [
        {"image_id": str(number), "path": name, "label": number % 2, "patient_id": name, "split": split[number % 3]}
        for number, name in enumerate(names)
    ]
    pd.DataFrame(rows).to_csv(root / "manifest.csv", index=False)


def check_rows(root: Path, store, names: list[str]) -> None:
    """Every id's row holds what its own file holds."""
    for number, name in enumerate(names):
        expected = read_fitted(root / name, 12)
        assert np.array_equal(store.images[store.index[str(number)]], expected), name


@pytest.fixture
def root(tmp_path) -> Path:
    names = write_dicoms(tmp_path / "images", range(1, 13))
    write_manifest(tmp_path / "images", names)
    prepare(tiny_config(tmp_path))
    return tmp_path / "images"


def test_a_new_image_put_first_shifts_every_running_number(root, tmp_path, capsys):
    names = write_dicoms(root, range(1)) + sorted(path.name for path in root.glob("*.dcm") if path.name != "00.dcm")
    write_manifest(root, names)
    store = prepare(tiny_config(tmp_path))
    check_rows(root, store, names)
    assert "12 images taken over" in capsys.readouterr().out  # under their new numbers


def test_a_file_written_anew_in_its_place_is_decoded_anew(root, tmp_path, capsys):
    names = sorted(path.name for path in root.glob("*.dcm"))
    save(dicom(pixels(99), WindowCenter=2048, WindowWidth=4096), root / names[3])
    picture(pixels(0).astype(np.uint8), root / "new.png")
    write_manifest(root, [*names, "new.png"])
    store = prepare(tiny_config(tmp_path))
    check_rows(root, store, [*names, "new.png"])
    assert "11 images taken over" in capsys.readouterr().out


def test_files_that_change_names_are_decoded_anew(root, tmp_path):
    names = sorted(path.name for path in root.glob("*.dcm"))
    kept = {name: ((root / name).read_bytes(), (root / name).stat().st_mtime_ns) for name in names}
    for name, other in zip(names, names[1:] + names[:1], strict=True):  # each gets the next one's content, and its time
        content, time = kept[other]
        (root / name).write_bytes(content)
        os.utime(root / name, ns=(time, time))
    picture(pixels(0).astype(np.uint8), root / "new.png")
    write_manifest(root, [*names, "new.png"])
    check_rows(root, prepare(tiny_config(tmp_path)), [*names, "new.png"])


def test_an_unfinished_store_is_taken_over_by_file_too(root, tmp_path, monkeypatch):
    import data.preparation

    names = write_dicoms(root, range(13, 15)) + sorted(path.name for path in root.glob("*.dcm"))[:12]
    write_manifest(root, names)

    def interrupted(settings, writer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.preparation, "_decode_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny_config(tmp_path))
    shifted = names[5:] + names[:5]
    write_manifest(root, shifted)
    check_rows(root, prepare(tiny_config(tmp_path)), shifted)
