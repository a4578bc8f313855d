"""Laws of the manifest: no patient in two splits, splits and samples that nothing accidental changes."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from public_trees import build_chexpert_tree, build_nih_tree, radiograph

from data.config import UserError
from data.manifest import Manifest, open_manifest, sample_patients
from data.settings import DataSettings, SourceSettings

PATIENTS = 211


def hospital(seed: int = 0) -> pd.DataFrame:
    """A table of patients with one to four images; a third is abnormal, some labels are unknown."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 5, PATIENTS)
    patient = np.repeat(np.arange(PATIENTS), images)
    words = np.where(patient % 3 == 0, "abnormal", "normal")
    words[rng.random(len(words)) < 0.1] = ""
    names = [f"{number:04}.png" for number in range(len(patient))]
    return pd.DataFrame({"path": names, "label": words, "patient_id": [f"p{number}" for number in patient]})


def opened(root: Path, table: pd.DataFrame, **settings) -> Manifest:
    table.to_csv(root / "manifest.csv", index=False)
    return open_manifest(DataSettings(source="table", root=str(root), **settings))


def refusal(root: Path, table: pd.DataFrame, **settings) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, table, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def splits(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.table["image_id"], manifest.table["split"], strict=True))


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_patient_stands_in_two_splits(tmp_path, seed):
    table = opened(tmp_path, hospital(), split_seed=seed).table
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    assert set(table["split"]) == {"train", "validate", "test"}


def test_splits_hold_their_share_of_each_label(tmp_path):
    table = opened(tmp_path, hospital(), test_fraction=0.2, validate_fraction=0.25).table
    health = table.groupby("patient_id").agg(label=("label", "max"), split=("split", "first"))
    for label in (0, 1):
        patients = health[health["label"] == label]
        assert (patients["split"] == "test").sum() == round(0.2 * len(patients))
        assert (patients["split"] == "validate").sum() == round(0.25 * (patients["split"] != "test").sum())


def test_splits_do_not_depend_on_row_order_but_on_the_seed(tmp_path):
    table = hospital()
    shuffled = table.sample(frac=1, random_state=5)
    first = splits(opened(tmp_path, table))
    assert splits(opened(tmp_path, shuffled)) == first
    assert splits(opened(tmp_path, table, split_seed=1)) != first


def test_official_splits_are_kept(tmp_path):
    table = hospital()
    official = np.where(table["patient_id"].str.endswith("1"), "test", "train")
    official = np.where(table["patient_id"].str.endswith("2"), "val", official)
    manifest = opened(tmp_path, table.assign(split=official))
    assert [*splits(manifest).values()] == pd.Series(official).replace("val", "validate").tolist()
    assert not any("split is given" in note for note in manifest.notes)


@pytest.mark.parametrize("missing", ["validate", "test"])
def test_missing_split_is_carved_from_train_alone(tmp_path, missing):
    table = hospital()
    given = "test" if missing == "validate" else "validate"
    official = np.where(table["patient_id"].str.endswith("1"), given, "train")
    manifest = opened(tmp_path, table.assign(split=official))
    found = pd.Series([*splits(manifest).values()])
    assert (found[official == given] == given).all()
    assert set(found[official == "train"]) == {"train", missing}
    assert any(note.startswith(f"no {missing} split is given") for note in manifest.notes)


def test_data_set_of_test_images_alone_stays_one(tmp_path):
    manifest = opened(tmp_path, hospital().assign(split="test"))
    assert set(manifest.table["split"]) == {"test"}
    with pytest.raises(UserError, match=r"data: found images in test \d+, expected some in train"):
        manifest.of_split("train")


def test_smallest_strata_leave_someone_on_either_side(tmp_path):
    table = pd.DataFrame({"path": list("abcdef"), "label": [0, 0, 0, 1, 1, 1], "patient_id": list("uvwxyz")})
    manifest = opened(tmp_path, table)
    assert manifest.table.groupby("split")["label"].agg(["min", "max"]).to_numpy().tolist() == [[0, 1]] * 3


def test_images_without_patients_split_by_image_and_say_so(tmp_path):
    manifest = opened(tmp_path, hospital().drop(columns="patient_id"))
    assert manifest.table["patient_id"].tolist() == manifest.table["image_id"].tolist()
    assert any(note.startswith("there are no patient ids") for note in manifest.notes)
    table = hospital()
    table.loc[:6, "patient_id"] = None
    assert any(note.startswith("7 images have no patient id") for note in opened(tmp_path, table).notes)


# ---------------------------------------------------------------- samples


def test_sample_takes_whole_patients_of_the_training_split_only(tmp_path):
    whole = opened(tmp_path, hospital()).table
    manifest = opened(tmp_path, hospital(), sample=101)
    train = manifest.of_split("train")
    assert 101 <= train["label"].notna().sum() < 101 + 4
    everything = whole[whole["patient_id"].isin(train["patient_id"])]
    assert train["image_id"].tolist() == everything["image_id"].tolist()
    held_out = whole.loc[whole["split"] != "train", "image_id"].tolist()
    assert manifest.table.loc[manifest.table["split"] != "train", "image_id"].tolist() == held_out
    assert any(note.startswith("sample: ") for note in manifest.notes)


def test_smaller_sample_is_part_of_a_larger_one_even_taken_from_it(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    large, small = sample_patients(train, 173, seed=4), sample_patients(train, 29, seed=4)
    assert set(small["image_id"]) < set(large["image_id"])
    pd.testing.assert_frame_equal(sample_patients(large, 29, seed=4), small)


def test_sample_holds_no_patient_more_than_needed(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    sampled = sample_patients(train, 47, seed=0)
    pd.testing.assert_frame_equal(sample_patients(train, sampled["label"].notna().sum(), seed=0), sampled)


def test_sample_does_not_depend_on_row_order_but_on_the_seed(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    shuffled = train.sample(frac=1, random_state=7)
    first = set(sample_patients(train, 61, seed=0)["image_id"])
    assert set(sample_patients(shuffled, 61, seed=0)["image_id"]) == first
    assert set(sample_patients(train, 61, seed=1)["image_id"]) != first


def test_sampling_ignores_what_the_labels_say(tmp_path):
    train = opened(tmp_path, hospital()).of_split("train")
    flipped = train.assign(label=1 - train["label"])
    assert sample_patients(flipped, 61, seed=0).index.equals(sample_patients(train, 61, seed=0).index)


def test_sample_larger_than_the_labels_names_found_and_wanted(tmp_path):
    labelled = opened(tmp_path, hospital()).of_split("train")["label"].notna().sum()
    line = refusal(tmp_path, hospital(), sample=9_999)
    assert line == f"data.sample: found {labelled} labelled training images, expected at least 9,999"
    assert len(opened(tmp_path, hospital(), sample=int(labelled)).table)


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
    assert line == f"{tmp_path}: found patients in two splits (2, such as p9), expected each in one"


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
    assert refusal(tmp_path, table) == f"{tmp_path}: {expected}"


def test_table_without_rows_is_refused(tmp_path):
    assert refusal(tmp_path, pd.DataFrame({"path": [], "label": []})) == f"{tmp_path}: found no images"


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
    assert not opened(tmp_path, hospital()).credentialed


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
    """Let these files of the full manifest come to disk."""
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


# ---------------------------------------------------------------- several sources


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
