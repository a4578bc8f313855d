"""Laws of the manifest: views, what is refused, what is recorded, and what is on disk."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hospital import hospital, opened, refusal, splits
from mimic_tree import build_mimic_tree
from public_trees import build_chexpert_tree, build_nih_tree

from data.errors import UserError
from data.manifest import open_manifest
from data.settings import DataSettings

# ---------------------------------------------------------------- views


def test_views_are_kept_by_name_and_blank_views_left_out(tmp_path):
    views = ["ap", "LL", "", "PA", "LATERAL", "PA"]
    table = pd.DataFrame({"path": list("abcdef"), "label": "1", "view": views, "split": "train"})
    kept = opened(tmp_path, table)
    assert kept.table["image_id"].tolist() == ["a", "d", "f"]
    assert "2 images left out: view LATERAL, LL" in kept.notes
    assert "1 images left out: no view" in kept.notes
    assert opened(tmp_path, table, views=("LL",)).table["image_id"].tolist() == ["b"]
    assert len(opened(tmp_path, table, views=()).table) == 6


def test_frontal_of_either_kind_is_kept_where_both_kinds_are(tmp_path):
    table = pd.DataFrame({"path": list("abcd"), "label": "1", "view": ["frontal", "PA", "AP", "LATERAL"]})
    assert opened(tmp_path, table, validate_fraction=0.3).table["image_id"].tolist() == ["a", "b", "c"]
    assert opened(tmp_path, table, views=("PA",)).table["image_id"].tolist() == ["b"]


def test_no_image_of_the_views_names_the_views_there_are(tmp_path):
    table = pd.DataFrame({"path": list("abc"), "label": "1", "view": ["LL", "LATERAL", "LL"]})
    line = refusal(tmp_path, table)
    assert line == "data.views: found views LL (2), LATERAL (1), expected some of AP, PA"


# ---------------------------------------------------------------- checks


def test_patient_in_two_splits_is_refused(tmp_path):
    table = hospital().assign(split="train")
    again = table[table["patient_id"].isin(["p9", "p40"])].drop_duplicates("patient_id")
    table = pd.concat([table, again.assign(split="test", path=["again.png", "once more.png"])])
    line = refusal(tmp_path, table)
    assert line == f"{tmp_path}/manifest.csv: found patients in two splits (2, such as p9), expected each in one"


def test_confidential_ids_stay_out_of_errors(tmp_path):
    metadata = build_mimic_tree(tmp_path, [None] * 20, [True, False] * 10)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv"
    table = pd.read_csv(path)
    table.loc[0, "split"] = "test"
    table.to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        open_manifest(DataSettings(source="mimic-cxr-jpg", root=str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: found patients in two splits (1), expected each in one"
    assert not any(str(one) in str(caught.value) for one in metadata["subject_id"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_id": "same"}, "found repeated image_id (2, such as same), expected unique ones"),
        (
            {"split": ["train", "", "test"]},
            "found 1 images without a split, expected one for all images or for none",
        ),
    ],
)
def test_inconsistent_rows_are_refused(tmp_path, change, expected):
    table = pd.DataFrame({"path": list("abc"), "label": "1"}).assign(**change)
    assert refusal(tmp_path, table) == f"{tmp_path}/manifest.csv: {expected}"


def test_table_without_rows_is_refused(tmp_path):
    said = refusal(tmp_path, pd.DataFrame({"path": [], "label": []}))
    assert said == f"{tmp_path}/manifest.csv: found no images, expected some"


def test_root_is_expanded_from_the_environment(tmp_path, monkeypatch):
    hospital().to_csv(tmp_path / "manifest.csv", index=False)
    settings = DataSettings(source="table", root="${A_ROOT_OF_THIS_TEST}")
    with pytest.raises(UserError, match=r"data\.root: \$\{A_ROOT_OF_THIS_TEST\} is not set"):
        open_manifest(settings)
    monkeypatch.setenv("A_ROOT_OF_THIS_TEST", str(tmp_path))
    assert len(open_manifest(SimpleNamespace(data=settings)).table) == len(hospital())


# ---------------------------------------------------------------- records


def test_summary_counts_every_split(tmp_path):
    rows = [("train", 1)] * 5 + [("train", 0)] * 4 + [("train", "")] * 3 + [("validate", 1)] * 2 + [("test", 0)]
    table = pd.DataFrame(rows, columns=["split", "label"])
    table["path"] = [f"{number}.png" for number in range(15)]
    table["patient_id"] = ["a", "b"] * 6 + ["c", "c", "d"]
    lines = [line.split() for line in opened(tmp_path, table).summary().splitlines()]
    assert lines[0] == ["images", "patients", "normal", "abnormal", "unknown"]
    assert lines[1:] == [
        ["train", "12", "2", "4", "5", "3"],
        ["validate", "2", "1", "0", "2", "0"],
        ["test", "1", "1", "1", "0", "0"],
        ["all", "15", "4", "5", "7", "3"],
    ]


def change_csv(root: Path, kind: str, column: str, row: int, value: object) -> None:
    path = root / f"mimic-cxr-2.0.0-{kind}.csv"
    table = pd.read_csv(path)
    table.loc[row, column] = value
    table.to_csv(path, index=False)


def test_breakdown_counts_splits_views_rules_and_what_was_left_out(tmp_path):
    """18 images: one without a split, one lateral, one without a view, one not on disk."""
    build_mimic_tree(tmp_path, [None] * 18, [True] * 6 + [False] * 6 + [None] * 6, views=("AP", "PA", "AP"))
    change_csv(tmp_path, "metadata", "ViewPosition", 0, "LL")
    change_csv(tmp_path, "metadata", "ViewPosition", 7, None)
    change_csv(tmp_path, "chexpert", "Edema", 8, -1)
    change_csv(tmp_path, "split", "dicom_id", 17, "of another image")
    settings = DataSettings(source="mimic-cxr-jpg", root=str(tmp_path))
    for path in open_manifest(settings).table["path"][:-1]:
        Path(path).touch()
    found = [line.split("  ") for line in open_manifest(settings).breakdown().splitlines()]
    assert {words[0]: [int(word) for word in words[1:] if word.strip()] for words in found[1:]} == {
        "train, AP": [8, 6, 3, 3, 2],
        "train, PA": [4, 4, 1, 2, 1],
        "validate, AP": [2, 1, 0, 0, 2],
        "all": [14, 8, 4, 5, 5],
        "rule: a finding is 1 → abnormal": [5, 3, 0, 5, 0],
        "rule: No Finding is 1 → normal": [4, 3, 4, 0, 0],
        "rule: nothing decides → unknown": [4, 2, 0, 0, 4],
        "rule: a finding is -1 → unknown": [1, 1, 0, 0, 1],
        "left out: not in the split CSV": [1],
        "left out: view LL": [1],
        "left out: no view": [1],
        "left out: not on disk": [1],
    }


def test_label_words_follow_the_target(tmp_path):
    table = pd.DataFrame({"path": list("abc"), "Edema": [1, 0, ""], "split": "train"})
    manifest = opened(tmp_path, table, target="Edema")
    assert manifest.summary().split()[:5] == ["images", "patients", "negative", "positive", "unknown"]
    assert manifest.target == "Edema"
    assert "rule: Edema is 1 → positive" in manifest.breakdown()


def test_fingerprint_follows_content_not_order(tmp_path):
    table = hospital()
    first = opened(tmp_path, table).fingerprint()
    assert opened(tmp_path, table.iloc[::-1]).fingerprint() == first
    relabelled = table.assign(label=table["label"].mask(table.index == 11, "abnormal"))
    assert table["label"][11] != "abnormal"
    assert (
        len(
            {
                first,
                *(opened(tmp_path, t, split_seed=s).fingerprint() for t, s in ((relabelled, 0), (table, 1))),
            }
        )
        == 3
    )


def test_only_data_under_terms_is_credentialed(tmp_path):
    build_mimic_tree(tmp_path, [None] * 20, [True, False] * 10)
    manifest = open_manifest(DataSettings(source="mimic-cxr-jpg", root=str(tmp_path)))
    assert manifest.credentialed
    assert [len(manifest.of_split(split)) for split in ("train", "validate", "test")] == [14, 2, 4]
    assert open_manifest(DataSettings(source="chexpert", root=str(build_chexpert_tree(tmp_path)))).credentialed
    own = tmp_path / "own"
    own.mkdir()
    assert not opened(own, hospital()).credentialed


def test_any_source_can_be_declared_credentialed(tmp_path):
    assert opened(tmp_path, hospital(), credentialed=True).credentialed


def test_patients_are_known_only_where_every_image_has_one(tmp_path):
    table = hospital()
    assert opened(tmp_path, table).patients_known
    assert not opened(tmp_path, table.assign(patient_id=None)).patients_known


# ---------------------------------------------------------------- what is on disk


def download(root: Path, count: int = 40) -> DataSettings:
    build_mimic_tree(root, [None] * count, [True, False] * (count // 2))
    return DataSettings(source="mimic-cxr-jpg", root=str(root), store=str(root / "stores"))


def arrive(settings: DataSettings, rows: slice) -> None:
    """Put these files of the full manifest on disk."""
    for path in mimic_paths(settings)[rows]:
        Path(path).touch()


def mimic_paths(settings: DataSettings) -> list[str]:
    metadata = pd.read_csv(f"{settings.root}/mimic-cxr-2.0.0-metadata.csv", dtype=str)
    ids = metadata[["subject_id", "study_id", "dicom_id"]].itertuples(index=False)
    return [f"{settings.root}/files/p{who[:2]}/p{who}/s{study}/{image}.jpg" for who, study, image in ids]


def test_incomplete_download_goes_on_with_what_is_there(tmp_path):
    settings = download(tmp_path)
    arrive(settings, slice(0, 13))
    manifest = open_manifest(settings)
    assert manifest.table["path"].tolist() == mimic_paths(settings)[:13]
    assert "27 images left out: not on disk" in manifest.notes


def test_labels_can_be_counted_before_anything_is_downloaded(tmp_path):
    manifest = open_manifest(download(tmp_path))
    assert len(manifest.table) == 40
    assert "none of the 40 images is on disk" in manifest.notes
    with pytest.raises(UserError, match="found none of the 40 images that its CSVs list, expected some"):
        manifest.looks[0].require_some()


def test_carved_splits_do_not_depend_on_how_far_a_download_came(tmp_path):
    build_nih_tree(tmp_path, ["No Finding", "Edema"] * 100)
    settings = DataSettings(source="nih-cxr14", root=str(tmp_path), validate_fraction=0.3)
    whole = splits(open_manifest(settings))
    gone = sorted(tmp_path.glob("images_*/images/*.png"))[:77]
    for path in gone:
        path.unlink()
    left = splits(open_manifest(settings))
    assert len(left) == 200 - 77
    assert left == {image: split for image, split in whole.items() if image in left}


def test_what_is_on_disk_is_remembered_until_asked_again(tmp_path):
    settings = download(tmp_path)
    arrive(settings, slice(0, 13))
    open_manifest(settings).looks[0].remember(tmp_path / "stores")
    arrive(settings, slice(0, 40))
    assert len(open_manifest(settings).table) == 13
    assert len(open_manifest(settings, look_again=True).table) == 40


def test_damaged_memory_is_not_believed(tmp_path):
    settings = download(tmp_path)
    arrive(settings, slice(0, 13))
    open_manifest(settings).looks[0].remember(tmp_path / "stores")
    [memory] = (tmp_path / "stores/on-disk").iterdir()
    memory.write_bytes(memory.read_bytes()[:50])
    assert len(open_manifest(settings).table) == 13


def test_file_that_a_users_own_table_lists_is_not_left_out(tmp_path):
    manifest = opened(tmp_path, hospital())
    assert len(manifest.table) == len(hospital())
    assert not any("disk" in note for note in manifest.notes)
