"""A user's own columns that mean nothing to us are kept for subgroups, with their names and values as written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from public_trees import build_nih_tree
from source_files import read
from tiny_world import tiny_config, write_table

from data.manifest import Manifest, open_manifest
from data.settings import DataSettings, SourceSettings
from data.sources import COLUMNS, kinds_of_columns


def open_mix(root: Path, *parts: dict) -> Manifest:
    sources = tuple(SourceSettings(**part) for part in parts)
    return open_manifest(DataSettings(sources=sources, store=str(root / "stores")))


def with_columns(root: Path, **columns) -> pd.DataFrame:
    table = write_table(root / "images", count=12).assign(**columns)
    table.to_csv(root / "images/manifest.csv", index=False)
    return table


def test_further_columns_are_texts_at_the_end(tmp_path):
    scanner = ["Siemens", " Philips ", "", "007"] * 3
    with_columns(tmp_path, scanner=scanner, Sex="female", Age="058Y", Edema=1.0, dose=1.50)
    table, _ = read(tmp_path / "images", "table")
    assert list(table) == [*COLUMNS, "sex", "age", "Edema", "scanner", "dose"]
    assert table["scanner"].fillna("-").tolist() == ["Siemens", "Philips", "-", "007"] * 3
    assert set(table["dose"]) == {"1.5"}
    kinds = kinds_of_columns(table)
    assert kinds == (["sex", "age"], ["Edema"], ["scanner", "dose"])


def test_columns_are_the_same_with_a_target(tmp_path):
    with_columns(tmp_path, site=["north", "south"] * 6, gender="M", Tuberculosis=[0, 1] * 6)
    table, _ = read(tmp_path / "images", "table", target="Tuberculosis")
    assert list(table) == [*COLUMNS, "sex", "Tuberculosis", "site", "rule"]
    assert table["site"].tolist() == ["north", "south"] * 6


def test_scored_images_have_the_same_columns_beside_their_scores(tmp_path):
    with_columns(tmp_path, site="north", age=41)
    table = open_manifest(tiny_config(tmp_path).data).table
    scored = table.assign(row=7, logit=0.5, score=0.5, calibrated=0.5, predicted=1)
    assert kinds_of_columns(scored) == kinds_of_columns(table) == (["age"], [], ["site"])


@pytest.mark.parametrize("name", ["score", "predicted", "rule", "row", "own_id"])
def test_a_name_that_is_taken_is_not_kept_and_said(tmp_path, name):
    with_columns(tmp_path, **{name: 3, "site": "north"})
    table, notes = read(tmp_path / "images", "table")
    assert kinds_of_columns(table).further == ["site"]
    assert f"column {name} is not kept: the name is taken" in notes


def test_reports_names_and_identifiers_are_not_kept(tmp_path):
    count = 1101
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(count)], "label": 0})
    table["accession"] = [f"A{n}" for n in range(count)]
    table["weight"] = np.arange(count) / 7
    table["report"] = "No change.\nNormal heart size."
    table["comment"] = "x" * 101
    table["site"] = "north"
    table.to_csv(tmp_path / "manifest.csv", index=False)
    found, notes = read(tmp_path, "table")
    assert kinds_of_columns(found).further == ["weight", "site"]
    [line] = [note for note in notes if "free text" in note]
    assert line.endswith(": accession, report, comment")


def test_an_index_that_pandas_wrote_is_no_column(tmp_path):
    write_table(tmp_path / "images", count=12).to_csv(tmp_path / "images/manifest.csv")
    table, _ = read(tmp_path / "images", "table")
    assert list(table) == list(COLUMNS)


def test_of_absurdly_many_columns_the_first_are_kept(tmp_path):
    with_columns(tmp_path, **{f"c{number}": number for number in range(67)})
    table, notes = read(tmp_path / "images", "table")
    assert kinds_of_columns(table).further == [f"c{number}" for number in range(64)]
    assert "3 further columns are not kept, only the first 64" in notes


def test_a_mix_has_the_columns_of_all_its_parts(tmp_path):
    with_columns(tmp_path, site="north", Edema=1)
    build_nih_tree(tmp_path / "nih", ["No Finding", "Edema", "Effusion", "Mass"] * 5)
    parts = [{"source": "table", "root": f"{tmp_path}/images"}, {"source": "nih-cxr14", "root": f"{tmp_path}/nih"}]
    mixed = open_mix(tmp_path, *parts).table
    alone = [open_manifest(DataSettings(**part, store=str(tmp_path / "stores"))).table for part in parts]
    own, nih = (mixed[mixed["source"] == part["source"]].reset_index(drop=True) for part in parts)
    assert own[["sex", "age"]].isna().all(axis=None) and set(own["site"]) == {"north"} and set(own["Edema"]) == {1}
    assert nih["site"].isna().all()
    columns = ["sex", "age", "Edema", "Mass"]
    pd.testing.assert_frame_equal(nih[columns], alone[1][columns])
    kinds = kinds_of_columns(mixed)
    assert kinds.people == ["sex", "age"] and kinds.further == ["site"] and "Mass" in kinds.findings


# ---------------------------------------------------------------- labels


def test_the_label_policy_counts_each_image_once(tmp_path):
    build_nih_tree(tmp_path / "nih", ["No Finding", "Edema", "Effusion"] * 10)
    with_columns(tmp_path)
    parts = [{"source": "table", "root": f"{tmp_path}/images"}, {"source": "nih-cxr14", "root": f"{tmp_path}/nih"}]
    manifest = open_mix(tmp_path, *parts)
    rows = manifest.label_policy()
    assert {row["rule"]: row["became"] for row in rows if row["rule"][0] in "aN"} == {
        "a finding is 1 → abnormal": "abnormal",
        "No Finding is 1 → normal": "normal",
    }
    given = [row for row in rows if row["rule"] == "the label of the data set's own table"]
    assert {row["became"] for row in given} == {"normal", "abnormal"} and sum(row["images"] for row in given) == 12
    for split in ("train", "validate", "test"):
        part = manifest.of_split(split)
        assert sum(row[split] for row in rows) == len(part)
        assert sum(row[split] for row in rows if row["became"] == "abnormal") == (part["label"] == 1).sum()
    assert all(row["images"] == row["train"] + row["validate"] + row["test"] for row in rows)


def test_unknown_labels_have_their_rule(tmp_path):
    with_columns(tmp_path, Pneumonia=[1, 0, -1] * 4, label=0)
    rows = open_manifest(tiny_config(tmp_path, data__target="Pneumonia").data).label_policy()
    assert {row["became"]: row["images"] for row in rows} == {"positive": 4, "negative": 4, "unknown": 4}
