"""Laws of files that cannot be read: they are listed, the rest goes on, and too many stop the command."""

import numpy as np
import pandas as pd
import pytest
from interrupted_reading import spoil, stop_at
from PIL import Image
from radiograph_files import STORED, dicom, save
from tiny_world import radiograph, tiny_config, write_table

from data.errors import UserError
from data.inputs import find_inputs, read_inputs
from data.loader import open_data
from data.manifest import open_manifest
from data.preparation import prepare
from data.rejections import rejection_lines
from data.store import StoreWriter
from data.writing import write_csv


def test_unreadable_files_are_rejected_and_the_rest_goes_on(tmp_path, capsys):
    config = tiny_config(tmp_path)
    bad = spoil(tmp_path / "images", 7)
    opened = open_data(config.data)
    store = opened.store
    assert len(store) == 53
    assert (store.rows(bad) == -1).all()
    rejected = pd.read_csv(store.folder / "rejected.csv")
    assert rejected["image_id"].tolist() == bad
    assert rejected["path"].tolist() == [str(tmp_path / "images" / image_id) for image_id in bad]
    assert rejected["reason"].str.contains("found").all()
    assert not rejected["reason"].str.contains("\n").any()
    assert f"7 unreadable files are listed in {store.folder / 'rejected.csv'}" in capsys.readouterr().err
    splits = [opened.split(name) for name in ("train", "validate", "test")]
    assert sum(map(len, splits)) == 53
    assert not set(bad) & set(pd.concat(splits)["image_id"])


def test_why_files_are_unreadable_is_said_the_most_frequent_reason_first(tmp_path, capsys):
    config = tiny_config(tmp_path)
    contents = [b"%PDF-1.7", b"%PDF-1.4", b"<html>", b"", b"PK\x03\x04", b"%PDF-1.3"]
    for number, content in enumerate(contents):
        (tmp_path / f"images/{number:04}.png").write_bytes(content)
    store = prepare(config)
    first, *reasons = capsys.readouterr().err.splitlines()
    assert first == f"6 unreadable files are listed in {store.folder / 'rejected.csv'}"
    assert len(reasons) == 3
    assert reasons[0] == "3 of 60 unreadable, found a PDF, expected JPEG, PNG or DICOM"
    assert reasons[1].startswith("1 of 60 unreadable, ") and reasons[2].endswith("; 1 more for other reasons")
    prepare(config)  # again, of the finished store
    assert len(capsys.readouterr().err.splitlines()) == 4


ODD = ["two  blanks", " first", "last ", "a\ttab", "two\nlines", "an\x1b[31mescape", "a\u3000wide one"]


def test_names_are_not_taken_for_reasons(tmp_path, capsys):
    config = tiny_config(tmp_path, data__source="images", data__root=str(tmp_path / "odd"))
    for number, name in enumerate(ODD):
        (tmp_path / "odd" / name).mkdir(parents=True)
        (tmp_path / "odd" / name / f"{name}.png").write_bytes(b"")
        for other in range(3):
            image = Image.fromarray(radiograph(False, np.random.default_rng(3 * number + other)))
            image.save(tmp_path / "odd" / f"{number}-{other}.png")
    prepare(config)
    _, told = capsys.readouterr().err.splitlines()
    assert told == "7 of 28 unreadable, found an empty file, expected JPEG, PNG or DICOM"

    inputs = find_inputs([tmp_path / "odd"], say=lambda text: None)
    reasons = [reason for images in read_inputs(inputs, config.data) for reason in images.reasons if reason]
    assert reasons == ["found an empty file, expected JPEG, PNG or DICOM"] * 7


def test_a_plugin_that_may_help_is_named_with_the_way_to_get_it(tmp_path):
    reason = "a.dcm: found JPEG-LS pixel data, expected a plugin that decodes it (gdcm - requires python-gdcm)"
    rows = [("1", "a.dcm", reason, "pydicom 3.0"), ("2", "b.dcm", reason.replace("LS", "XR"), "pydicom 3.0")]
    write_csv(tmp_path / "rejected.csv", ("image_id", "path", "reason", "plugins"), rows)
    assert rejection_lines(tmp_path, 19, "pydicom 3.0")[1] == (
        "2 of 19 unreadable, GDCM may help: pip install 'mae-cxr[dicom]', then mae-prepare again"
    )
    assert "a further plugin may help" in rejection_lines(tmp_path, 19, "pydicom 3.0, python-gdcm 3.1")[1]


def test_counts_leave_out_rejected_files(tmp_path):
    config = tiny_config(tmp_path)
    whole = open_manifest(config)
    bad = spoil(tmp_path / "images", 7)
    manifest = open_data(config.data).manifest
    assert manifest.summary().split()[-5:] == ["53", *counts(whole.table, bad)]
    assert whole.summary().split()[-5] == "60"
    assert "7 images left out: unreadable (rejected.csv of the store says why)" in manifest.notes


def counts(table: pd.DataFrame, bad: list[str]) -> list[str]:
    """Of what can be read: patients, and normal, abnormal and unknown images."""
    read = table[~table["image_id"].isin(bad)]
    labels = read["label"]
    counted = [read["patient_id"].nunique(), (labels == 0).sum(), (labels == 1).sum(), labels.isna().sum()]
    return [str(count) for count in counted]


def test_a_rejected_file_is_listed_once_though_prepare_was_interrupted(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    spoil(tmp_path / "images", 3)
    with monkeypatch.context() as patch:
        note = StoreWriter.note

        def killed(self, row, *rest):
            if row == 2:  # its reason is written, but not that it is done
                monkeypatch.setattr(self, "state", self.state.copy())
                note(self, row, *rest)
                raise KeyboardInterrupt
            note(self, row, *rest)

        patch.setattr(StoreWriter, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert len(pd.read_csv(prepare(config).folder / "rejected.csv")) == 3


@pytest.mark.parametrize(("images", "bad", "stops"), [(60, 10, False), (60, 11, True), (1210, 12, False)])
def test_more_than_ten_files_and_one_percent_stop(images, bad, stops, tmp_path, monkeypatch):
    write_table(tmp_path / "images", images)
    config = tiny_config(tmp_path)
    spoil(tmp_path / "images", bad)
    if not stops:
        assert len(prepare(config)) == images - bad
        return
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert f"found {bad} unreadable of {images} files, expected at most 10" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("stores/*/store.json"))
    paths = stop_at(monkeypatch, 0)
    with pytest.raises(UserError):  # again, at once
        prepare(config)
    assert not paths


@pytest.mark.parametrize(("limit", "stops"), [(12, False), (11, True), (0.2, False), (0.19, True), (0, True)])
def test_how_many_files_may_be_unreadable_can_be_set(limit, stops, tmp_path, capsys):
    write_table(tmp_path / "images", 60)
    spoil(tmp_path / "images", 12)
    if not stops:
        assert len(prepare(tiny_config(tmp_path, data__max_rejected=limit))) == 48
        return
    with pytest.raises(UserError, match=r"found 12 unreadable of 60 files.*go on without them: data.max_rejected=12$"):
        prepare(tiny_config(tmp_path, data__max_rejected=limit))
    assert len(prepare(tiny_config(tmp_path, data__max_rejected=12))) == 48  # as it says; nothing is decoded again


def test_reports_among_images_are_left_out_and_are_no_unreadable_images(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        save(dicom(STORED + number), images / f"{number}.dcm")
    report = dicom(STORED)
    del report.PixelData
    report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    for number in range(12):
        save(report, images / f"report{number}.dcm")
    folder = {"data__source": "images", "data__root": str(images)}
    assert len(prepare(tiny_config(tmp_path, data__max_rejected=0, **folder))) == 3
    assert "12 of 15 unreadable, found no PixelData (7FE0,0010) in an object of class Basic Text SR" in (
        capsys.readouterr().err
    )
    files = open_data(tiny_config(tmp_path, data__max_rejected=0, data__store=False, **folder).data).store
    [read] = files.read([files.rows(["0.dcm", *(f"report{number}.dcm" for number in range(12))])])
    assert len(files.unreadable) == 12 and (read == read[0]).all()

    (images / "broken.dcm").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"found 1 unreadable of 16 files, expected at most 0;.*data.max_rejected=1$"):
        prepare(tiny_config(tmp_path, data__max_rejected=0, **folder))
    for number in range(3):
        (images / f"{number}.dcm").unlink()
    (images / "broken.dcm").unlink()
    with pytest.raises(UserError, match=r"found none of 12 files readable"):
        prepare(tiny_config(tmp_path, **folder))


def test_a_limit_of_rejected_files_is_a_count_or_a_share(tmp_path):
    with pytest.raises(UserError, match=r"data.max_rejected.*a count of files, a share below 1, or null"):
        tiny_config(tmp_path, data__max_rejected=1.5)
