"""Patients and studies by the headers of DICOM files: which images belong together is known, and who it is is not."""

import errno
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from radiograph_files import STORED, dicom, picture, save
from tiny_world import files, tiny_config

import data.dicom_ids
from data.errors import UserError
from data.loader import open_data
from data.manifest import open_manifest
from data.preparation import prepare
from data.privacy import SALT

GREY = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
SEEN = ("MRN-7731", "MRN-0042", "MRN-5150", "MRN-9", "ΩΔ-12")  # five patients with 5, 4, 3, 2 and 1 files


def write(root: Path, ids=SEEN, studies: bool = True, ending: str = "", shift: int = 0) -> dict[str, str]:
    """A folder of DICOM files without endings; image_id → PatientID."""
    root.mkdir(parents=True, exist_ok=True)
    whose = {}
    for number, name in enumerate(ids):
        for repeat in range(len(ids) - number):
            elements = {"PatientID": name, "SpecificCharacterSet": "ISO_IR 192", "PatientSex": "F"}
            if studies:
                elements["StudyInstanceUID"] = f"1.2.{number}.{repeat // 2}"
            image_id = f"{shift + number}-{repeat}{ending}"
            save(dicom(STORED + 7 * number + repeat, **elements), root / image_id)
            whose[image_id] = name
    return whose


def config_of(root: Path, source: str = "images", **changed):
    return tiny_config(root, data__source=source, data__root=str(root / "images"), **changed)


def groups(table: pd.DataFrame, column: str = "patient_id") -> set[frozenset[str]]:
    """Which images belong together."""
    return {frozenset(part) for _, part in table.groupby(column)["image_id"]}


def grouped(whose: dict[str, str]) -> set[frozenset[str]]:
    return groups(pd.DataFrame({"image_id": list(whose), "patient_id": list(whose.values())}))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_patients_stay_the_same_where_files_cannot_be_linked(number, tmp_path, monkeypatch):
    def refused(path: Path, target: Path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    whose = write(tmp_path / "images")
    config = config_of(tmp_path)
    prepare(config)
    first, again = open_manifest(config), open_manifest(config, look_again=True)
    assert groups(first.table) == grouped(whose)
    assert first.table["patient_id"].tolist() == again.table["patient_id"].tolist()
    [key], [salt] = (tmp_path / "home").rglob("key"), (tmp_path / "stores").rglob(SALT)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size == 32 for path in (key, salt))
    assert not list(tmp_path.rglob("*.tmp"))


def test_files_of_a_patient_belong_together_and_stand_in_one_split(tmp_path):
    whose = write(tmp_path / "images")
    manifest = open_manifest(config_of(tmp_path))
    assert groups(manifest.table) == grouped(whose)
    assert manifest.patients_known
    assert (manifest.table.groupby("patient_id")["split"].nunique() == 1).all()
    assert len(groups(manifest.table, "study_id")) == 3 + 2 + 2 + 1 + 1
    assert "5 patients by PatientID of DICOM headers, hashed" in manifest.notes
    assert "9 studies by StudyInstanceUID of DICOM headers, hashed" in manifest.notes


def test_no_id_is_written_anywhere(tmp_path):
    write(tmp_path / "images")
    opened = open_data(config_of(tmp_path).data)
    shown = opened.manifest.table.to_csv() + "\n".join(opened.manifest.notes)
    for path in files(tmp_path / "stores"):
        shown += path.read_bytes().decode("latin-1")
    for name in (*SEEN, "1.2.0.0", "MRN", "Zephyrine"):
        assert name not in shown and name.encode().decode("latin-1") not in shown


def test_ids_are_the_same_each_time_also_where_the_stores_were_deleted(tmp_path):
    write(tmp_path / "images")
    first = open_data(config_of(tmp_path).data).manifest.table
    shutil.rmtree(tmp_path / "stores")
    pd.testing.assert_frame_equal(open_data(config_of(tmp_path).data).manifest.table, first)
    pd.testing.assert_frame_equal(open_manifest(config_of(tmp_path, data__store=False)).table, first)


def test_another_user_gets_other_ids_unless_the_stores_are_theirs_too(tmp_path, monkeypatch):
    whose = write(tmp_path / "images")
    config = config_of(tmp_path)
    mine = open_data(config.data).manifest.table
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another"))
    theirs = open_manifest(config_of(tmp_path, data__store=str(tmp_path / "elsewhere"))).table
    assert groups(theirs) == grouped(whose)
    assert not set(theirs["patient_id"]) & set(mine["patient_id"])

    # a moved project: images and stores lie elsewhere, and the account is another one
    (tmp_path / "moved").mkdir()
    for name in ("images", "stores"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = open_manifest(config_of(tmp_path / "moved")).table
    assert moved["patient_id"].tolist() == mine["patient_id"].tolist()
    assert moved["split"].tolist() == mine["split"].tolist()


def test_a_patient_keeps_their_id_when_the_data_set_grows(tmp_path):
    write(tmp_path / "images")
    before = open_data(config_of(tmp_path).data).manifest.table.set_index("image_id")["patient_id"]
    write(tmp_path / "images", ("new-1", *SEEN[:2], "new-2"), shift=30)
    after = open_manifest(config_of(tmp_path)).table.set_index("image_id")["patient_id"]
    assert after[before.index].tolist() == before.tolist()
    assert after["31-0"] == before["0-0"]


def test_headers_are_read_once(tmp_path, monkeypatch):
    whose = write(tmp_path / "images")
    open_data(config_of(tmp_path).data)
    monkeypatch.setattr(data.dicom_ids, "read_partial", None)  # a file that is read would name no patient
    assert groups(open_manifest(config_of(tmp_path)).table) == grouped(whose)
    assert not open_manifest(config_of(tmp_path), look_again=True).patients_known


def test_the_salt_is_for_its_owner_alone(tmp_path):
    write(tmp_path / "images")
    prepare(config_of(tmp_path))
    [salt] = tmp_path.glob(f"stores/*/{SALT}")
    assert salt.stat().st_mode & 0o077 == 0 and salt.stat().st_size == 32
    assert salt.read_bytes() not in (Path(os.environ["XDG_DATA_HOME"]) / "mae-cxr/key").read_bytes()


@pytest.mark.parametrize(
    "name", ["", "XXXX", "ANON", "anonymous_12", "0000", "Unknown", "N/A", "de-identified", "^", "x" * 65]
)
def test_ids_of_nobody_are_no_patients(name, tmp_path):
    write(tmp_path / "images", [name, "MRN-1", "MRN-2"], studies=False)
    manifest = open_manifest(config_of(tmp_path))
    assert len(groups(manifest.table)) == 3 + 2
    assert not manifest.patients_known
    assert "2 patients by PatientID of DICOM headers, hashed; 3 images without" in manifest.notes


def test_one_id_for_most_files_is_nobodys(tmp_path):
    write(tmp_path / "images", ["MRN-1", "MRN-2"], studies=False)
    save(dicom(STORED, PatientID="MRN-1"), tmp_path / "images/9")
    manifest = open_manifest(config_of(tmp_path))
    assert len(groups(manifest.table)) == 4
    assert "PatientID of DICOM headers is not used: 3 of 4 files have the same" in manifest.notes
    assert any(note.startswith("there are no patient ids") for note in manifest.notes)


def test_a_study_stands_for_a_patient_who_was_taken_away(tmp_path):
    for number in range(9):
        (tmp_path / "images").mkdir(exist_ok=True)
        save(dicom(STORED, PatientID="ANON", StudyInstanceUID=f"1.2.{number // 2}"), tmp_path / f"images/{number}")
    table = open_manifest(config_of(tmp_path)).table
    assert len(groups(table)) == 5
    assert (table.groupby("study_id")["split"].nunique() == 1).all()


def test_class_folders_and_tables_without_patients_get_them_too(tmp_path):
    whose = write(tmp_path / "images/Normal") | write(tmp_path / "images/TB", ("a-1", "b-2", "c-3"), ending=".dcm")
    picture(GREY, tmp_path / "images/TB/9.png")
    table = open_manifest(config_of(tmp_path, "folder")).table
    whose["9.png"] = "picture"
    names = table.assign(image_id=table["image_id"].str.split("/").str[1])
    assert groups(names) == grouped(whose)

    rows = pd.DataFrame({"path": table["image_id"], "label": table["label"]})
    rows.to_csv(tmp_path / "images/manifest.csv", index=False)
    assert open_manifest(config_of(tmp_path, "table")).table["patient_id"].tolist() == table["patient_id"].tolist()
    rows.assign(patient_id=[f"q{number}" for number in range(len(rows))]).to_csv(tmp_path / "images/manifest.csv")
    assert open_manifest(config_of(tmp_path, "table")).table["patient_id"].str.startswith("q").all()  # a column decides


def test_a_patient_in_two_given_splits_is_an_error_that_says_whose_ids_these_are(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"images/{split}/Normal", SEEN[:3], shift=3 * (split == "test"))
        write(tmp_path / f"images/{split}/TB", [f"{split}-{number}" for number in range(1, 4)])
    config = config_of(tmp_path, "folder")
    with pytest.raises(
        UserError, match=r"found patients in two splits \(3.*DICOM's PatientID.*data.dicom_ids=false"
    ) as caught:
        open_manifest(config)
    assert not re.search("|".join(SEEN), str(caught.value))
    assert not open_manifest(config_of(tmp_path, "folder", data__dicom_ids=False)).patients_known


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + bytes(range(256)) * 9, b"no image"]
)
def test_a_damaged_header_names_nobody(content, tmp_path):
    write(tmp_path / "images", ending=".dcm")
    (tmp_path / "images/broken.dcm").write_bytes(content)
    table = open_manifest(config_of(tmp_path)).table.set_index("image_id")
    assert table["patient_id"]["broken.dcm"] == "broken.dcm"


def test_a_mix_keeps_patients_of_two_hospitals_apart(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    parts = [{"source": "images", "root": f"{tmp_path}/{name}", "name": name} for name in "ab"]
    table = open_manifest(tiny_config(tmp_path, data__source="mix", data__sources=parts)).table
    assert len(groups(table)) == 10
