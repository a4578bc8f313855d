"""`data.where` keeps the rows whose columns match, before anything is drawn from them."""

from pathlib import Path

import pandas as pd
import pytest
from tiny_world import tiny_config, write_table

from data.config import change_config, load_config, print_config
from data.errors import UserError
from data.manifest import Manifest, open_manifest
from data.settings import DataSettings, SourceSettings
from data.sources import SPLITS


def with_columns(root: Path, **columns) -> pd.DataFrame:
    table = write_table(root / "images").assign(**columns)
    table.to_csv(root / "images/manifest.csv", index=False)
    return table


def manifest_of(root: Path, where: dict, **changed) -> Manifest:
    return open_manifest(tiny_config(root, data__where=where, **changed).data)


PIXELS = ["128", "64", "128.0"] * 20


@pytest.fixture
def table(tmp_path):
    return with_columns(tmp_path, pixels=PIXELS, view=["PA", "AP", "LATERAL", "PA"] * 15, age=list(range(20, 80)))


@pytest.mark.parametrize("value", [128, 128.0, "128", [128], ["128.0"], [128, 7]])
def test_numbers_are_equal_as_numbers(tmp_path, table, value):
    found = manifest_of(tmp_path, {"pixels": value}, data__views=[]).table
    assert found["image_id"].tolist() == table["path"][[pixels != "64" for pixels in PIXELS]].tolist()


@pytest.mark.parametrize("wanted", [{"view": ["PA", "AP"]}, {"label": 1}, {"age": [20, 33, 71]}, {"view": "AP"}])
def test_each_column_must_have_one_of_its_values(tmp_path, table, wanted):
    found = manifest_of(tmp_path, wanted, data__views=[]).table
    [(column, values)] = wanted.items()
    kept = table[table[column].isin(values if isinstance(values, list) else [values])]
    assert found["image_id"].tolist() == kept["path"].tolist()
    both = manifest_of(tmp_path, {**wanted, "pixels": 64}, data__views=[]).table
    assert both["image_id"].tolist() == kept["path"][kept["pixels"] == "64"].tolist()


def test_nothing_asked_keeps_everything(tmp_path, table):
    before = open_manifest(tiny_config(tmp_path).data)
    after = manifest_of(tmp_path, {})
    pd.testing.assert_frame_equal(before.table, after.table)
    assert before.notes == after.notes


def test_splits_are_drawn_of_the_rows_that_are_kept(tmp_path):
    table = with_columns(tmp_path, site=["north"] * 30 + ["south"] * 30).drop(columns="split")
    table.to_csv(tmp_path / "images/manifest.csv", index=False)
    chosen = manifest_of(tmp_path, {"site": "south"})
    table[30:].to_csv(tmp_path / "images/south.csv", index=False)
    alone = open_manifest(tiny_config(tmp_path, data__table="south.csv").data)
    pd.testing.assert_frame_equal(chosen.table, alone.table)
    assert set(chosen.table["split"]) == set(SPLITS)
    assert chosen.fingerprint() == alone.fingerprint() != open_manifest(tiny_config(tmp_path).data).fingerprint()


def test_what_is_left_out_is_counted(tmp_path, table):
    manifest = manifest_of(tmp_path, {"pixels": [128, 32]}, data__views=[])
    assert "20 images left out: not pixels 128 or 32 (data.where)" in manifest.notes
    assert "data.where: no image has pixels 32" in manifest.notes


def test_a_column_that_is_not_there_is_named_with_what_may_be_meant(tmp_path, table):
    with pytest.raises(UserError, match=r"^data.where: found no column Pixel in .*; did you mean pixels\?$"):
        manifest_of(tmp_path, {"Pixel": 128})


def test_a_column_that_is_not_kept_is_told_to_be_so(tmp_path):
    with_columns(tmp_path, report=[f"{number} words\nof a report" for number in range(60)])
    with pytest.raises(UserError, match=r"found no column report in .*view.* \(columns of free text are not kept\)"):
        manifest_of(tmp_path, {"report": "7"})


def test_values_that_nothing_has_are_told_with_those_that_are_there(tmp_path, table):
    with pytest.raises(UserError, match=r"^data.where: pixels: found 128.0 \(40\), .*expected some of 256$"):
        manifest_of(tmp_path, {"pixels": 256}, data__views=[])


def test_blank_cells_and_texts_have_no_number(tmp_path):
    with_columns(tmp_path, pixels=["", "1e2", "nan", "100", "x100"] * 12)
    found = manifest_of(tmp_path, {"pixels": 100})
    assert len(found.table) == 12


def test_values_of_confidential_tables_are_not_told(tmp_path, table):
    with pytest.raises(UserError, match=r"found 2 other values in source table"):
        manifest_of(tmp_path, {"pixels": 256}, data__credentialed=True, data__views=[])


def test_parts_of_a_mix_are_chosen_each_by_its_own(tmp_path):
    with_columns(tmp_path, site=["north", "south"] * 30)
    root = str(tmp_path / "images")
    one = SourceSettings(source="table", root=root, name="one", where={"site": ("north",)})
    rest = SourceSettings(source="table", root=root, name="rest")
    settings = DataSettings(sources=(one, rest), where={"site": ("south",)}, store=str(tmp_path / "stores"))
    table = open_manifest(settings).table
    assert table.groupby(table["image_id"].str.split("/").str[0])["site"].unique().to_dict() == {
        "one": ["north"],
        "rest": ["south"],
    }


def test_the_setting_comes_through_files_and_command_lines(tmp_path):
    config = tiny_config(tmp_path, data__where={"pixels": 128, "view": ["PA", "AP"]})
    (tmp_path / "written.yaml").write_text(print_config(config))
    again = load_config(tmp_path / "written.yaml")
    assert again == config
    assert hash(again.data) == hash(config.data)
    assert change_config(again, {"data.where.view": "PA"}).data.where == {"pixels": (128,), "view": ("PA",)}
    assert change_config(again, {"data.where": {}}).data.where == {}


@pytest.mark.parametrize("wrong", [{"a": True}, {"a": None}, {"a": []}, {"a": {"b": 1}}, 3, {"": 1}])
def test_what_is_no_value_is_one_line(tmp_path, wrong):
    with pytest.raises(UserError, match=r"data\.where"):
        tiny_config(tmp_path, data__where=wrong)


def test_long_numbers_are_told_apart_by_their_last_digit(tmp_path):
    first, second = "12345678901234567", "12345678901234568"
    table = with_columns(tmp_path, accession=[first, second] * 30)
    for value in (int(first), first):
        found = manifest_of(tmp_path, {"accession": value}).table
        assert found["image_id"].tolist() == table["path"][::2].tolist()


@pytest.mark.parametrize(("value", "kept"), [(7, ["7"]), ("007", ["007"]), (["7", "007"], ["7", "007"])])
def test_ids_are_texts_here_too(tmp_path, value, kept):
    with_columns(tmp_path, patient_id=[*["7", "007", "70"] * 2, *range(100, 154)], split="train")
    assert sorted(set(manifest_of(tmp_path, {"patient_id": value}).table["patient_id"])) == sorted(kept)


def test_a_split_of_the_data_sets_own_that_is_left_empty_is_said(tmp_path, table):
    notes = manifest_of(tmp_path, {"split": "train"}).notes
    for split in set(table["split"]) - {"train"}:
        assert f"data.where: leaves no image of the data set's own split {split}" in notes
    assert any(note.startswith("no test split is given: drawn 15%") for note in notes)
    assert not any("leaves no image" in note for note in manifest_of(tmp_path, {"age": list(range(20, 80))}).notes)
