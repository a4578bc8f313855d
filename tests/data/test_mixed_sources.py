"""Laws of several sources in one manifest."""

import os
from pathlib import Path

import pandas as pd
import pytest
from public_trees import build_chexpert_tree, build_nih_tree, radiograph

from data.errors import UserError
from data.manifest import Manifest, open_manifest
from data.settings import DataSettings, SourceSettings


def mix(root: Path, *sources: dict, **settings) -> Manifest:
    parts = tuple(SourceSettings(**{**source, "root": str(root / source["root"])}) for source in sources)
    return open_manifest(DataSettings(sources=parts, store=str(root / "stores"), **settings))


CHEXPERT = {"source": "chexpert", "root": "CheXpert-v1.0-small"}
NIH = {"source": "nih-cxr14", "root": "nih"}
BARE = {"source": "images", "root": "bare", "name": "mine"}


@pytest.fixture
def hospitals(tmp_path):
    """Three data sets; the patients of two have the same names."""
    build_chexpert_tree(tmp_path)
    build_nih_tree(tmp_path / "nih", ["No Finding", "Edema", "Effusion", "Mass"] * 10)
    (tmp_path / "bare").mkdir()
    for number in range(11):
        (tmp_path / f"bare/{number}.png").write_bytes(radiograph(number).tobytes())
    return tmp_path


def test_mixed_sources_keep_their_rows_splits_and_labels(hospitals):
    manifest = mix(hospitals, CHEXPERT, NIH, BARE)
    alone = {name: mix(hospitals, source).table for name, source in (("chexpert", CHEXPERT), ("nih-cxr14", NIH))}
    for name, table in alone.items():
        part = manifest.table[manifest.table["source"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part[table.columns], table)
        assert part["image_id"].str.startswith(f"{name}/").all()
    mine = manifest.table[manifest.table["source"] == "images"]
    assert mine["image_id"].str.startswith("mine/").all() and mine["label"].isna().all()
    assert set(mine["split"]) == {"train", "validate"}  # nothing to test without labels
    assert manifest.table["image_id"].is_unique
    assert manifest.credentialed and not manifest.patients_known


def test_patients_of_different_sources_differ(hospitals):
    twice = mix(hospitals, NIH, {**NIH, "name": "again"})
    assert twice.table["patient_id"].nunique() == 2 * mix(hospitals, NIH).table["patient_id"].nunique()


def test_notes_and_breakdown_of_a_mix_name_the_source(hospitals):
    manifest = mix(hospitals, CHEXPERT, NIH)
    assert "20 images left out: chexpert: view LATERAL" in manifest.notes
    assert "left out: chexpert: view LATERAL" in manifest.breakdown()
    assert any(note.startswith("nih-cxr14: Data_Entry") for note in manifest.notes)


def test_a_source_of_a_mix_may_have_its_own_settings(hospitals):
    manifest = mix(hospitals, {**CHEXPERT, "views": ("LATERAL",)}, NIH, views=("PA",))
    views = manifest.table.groupby("source")["view"].unique().map(list).to_dict()
    assert views == {"chexpert": ["LATERAL"], "nih-cxr14": ["PA"]}


def test_target_of_a_mix_is_unknown_where_a_source_has_no_such_column(hospitals):
    manifest = mix(hospitals, CHEXPERT, NIH, target="Mass")
    known = manifest.table["label"].notna().groupby(manifest.table["source"]).any()
    assert known.to_dict() == {"chexpert": False, "nih-cxr14": True}
    assert "chexpert: no findings named Mass: labels are unknown" in manifest.notes
    with pytest.raises(UserError, match=r"data.target: found no findings in source chexpert, mine, expected Mass"):
        mix(hospitals, CHEXPERT, BARE, target="Mass")


def test_target_needs_findings(hospitals):
    settings = DataSettings(source="images", root=str(hospitals / "bare"), target="Edema")
    with pytest.raises(UserError, match=r"data.target: found no findings in source images, expected Edema"):
        open_manifest(settings)
    with pytest.raises(UserError, match=r"data.target: found 'Edemas', expected one of Atelectasis, "):
        open_manifest(DataSettings(source="chexpert", root=str(hospitals), target="Edemas"))


@pytest.mark.parametrize("source", ["images", "folder"])
def test_names_that_are_not_utf8_are_one_line(tmp_path, source):
    root = tmp_path / "data"
    (root / "NORMAL").mkdir(parents=True)
    (root / "NORMAL/b.png").write_bytes(radiograph(1).tobytes())
    try:
        Path(os.fsdecode(os.fsencode(root / "NORMAL") + b"/M\xfcller.png")).write_bytes(radiograph(2).tobytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    expected = r"NORMAL/M\\xfcller.png: found a name not in UTF-8 \(1 such\), expected UTF-8; rename$"
    with pytest.raises(UserError, match=expected):
        open_manifest(DataSettings(source=source, root=str(root)))
