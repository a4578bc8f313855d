"""`data.patients` joins what a table says of a patient to that patient's images, and to nobody else's."""

import gzip
from pathlib import Path

import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from public_trees import build_mimic_dicom_tree, build_nih_tree
from tiny_world import tiny_config, write_table

from data.errors import UserError
from data.manifest import Manifest, open_manifest
from data.settings import DataSettings, SourceSettings


def opened(root: Path, patients: pd.DataFrame | str, **settings) -> Manifest:
    """The tiny images with a table of their patients."""
    if not (root / "images").exists():
        write_table(root / "images")
    text = patients if isinstance(patients, str) else patients.to_csv(index=False)
    (root / "people.csv").write_text(text)
    return open_manifest(tiny_config(root, data__patients=str(root / "people.csv"), **settings).data)


def refusal(root: Path, patients: pd.DataFrame | str, **settings) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, patients, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def people(**columns) -> pd.DataFrame:
    """A row for each of the tiny images' 30 patients."""
    return pd.DataFrame({"patient_id": [f"p{number}" for number in range(30)]}).assign(**columns)


def notes_of(manifest: Manifest) -> list[str]:
    return [note.removeprefix("people.csv: ") for note in manifest.notes if note.startswith("people.csv: ")]


# ---------------------------------------------------------------- whose row it is


def test_each_image_has_what_is_said_of_its_patient(tmp_path):
    table = people(gender=["F", "m", "female"] * 10, Age=range(30, 60), race=[f"group {n % 7}" for n in range(30)])
    images = opened(tmp_path, table.sample(frac=1, random_state=3)).table
    number = images["patient_id"].str.removeprefix("p").astype(int)
    assert images["sex"].tolist() == ["FMF"[each % 3] for each in number]
    assert (images["age"] == number + 30).all()
    assert (images["race"] == "group " + (number % 7).astype(str)).all()


def test_neither_labels_nor_splits_nor_fingerprint_change(tmp_path):
    joined = opened(tmp_path, people(sex="F"))
    plain = open_manifest(tiny_config(tmp_path).data)
    assert joined.fingerprint() == plain.fingerprint()
    pd.testing.assert_frame_equal(joined.table[plain.table.columns], plain.table)


@pytest.mark.parametrize("name", ["patient_id", "subject_id", "PatientID", "Patient ID", "SUBJECT"])
def test_the_column_of_ids_is_found(tmp_path, name):
    images = opened(tmp_path, people(sex="M").rename(columns={"patient_id": name})).table
    assert set(images["sex"]) == {"M"}


@pytest.mark.parametrize("change", [lambda text: text.str[1:], lambda text: text.str[1:] + ".0", lambda t: " " + t])
def test_an_id_may_be_written_as_a_spreadsheet_or_a_folder_does(tmp_path, change):
    table = people(age=range(30))
    images = opened(tmp_path, table.assign(patient_id=change(table["patient_id"]))).table
    assert (images["age"] == images["patient_id"].str[1:].astype(int)).all()


def test_an_id_that_may_be_two_patients_is_nobodys(tmp_path):
    table = people(age=41)
    table.loc[[3, 4], "patient_id"] = ["P5", "6"]  # the table has p5 and p6 as well
    images = opened(tmp_path, table).table
    assert set(images.loc[images["age"].isna(), "patient_id"]) == {"p3", "p4"}


def test_leading_zeros_are_part_of_an_id(tmp_path):
    table = write_table(tmp_path / "images")
    ids = "00" + table["patient_id"].str[1:]
    table.assign(patient_id=ids).to_csv(tmp_path / "images/manifest.csv", index=False)
    line = refusal(tmp_path, people().assign(patient_id=[str(number) for number in range(30)], age=7))
    assert "found none of the 30 patients" in line


@pytest.mark.parametrize("otherwise", [str.upper, lambda name: f"x00{name[1:]}", lambda name: f"X0{name[1:]}"])
def test_ids_that_differ_in_case_or_zeros_are_not_joined_and_said(tmp_path, otherwise):
    images = write_table(tmp_path / "images")
    images.assign(patient_id="x" + images["patient_id"].str[1:]).to_csv(tmp_path / "images/manifest.csv", index=False)
    ids = [f"x{number}" for number in range(30)]
    table = people(age=41).assign(patient_id=[*map(otherwise, ids[:7]), *ids[7:]])
    said = "7 of these patients' ids differ in case or leading zeros alone from ids there"

    manifest = opened(tmp_path, table)
    assert set(manifest.table.loc[manifest.table["age"].isna(), "patient_id"]) == set(ids[:7])
    [note] = [note for note in notes_of(manifest) if "leading zeros" in note]
    assert note.startswith(f"{said} (x")
    [note] = [note for note in notes_of(opened(tmp_path, table, data__credentialed=True)) if "leading zeros" in note]
    assert note.startswith(f"{said};")
    assert said in refusal(tmp_path, table[:7])


def test_a_patient_who_is_missing_is_not_taken_for_a_spelling(tmp_path):
    assert not [note for note in notes_of(opened(tmp_path, people(age=41)[5:])) if "leading zeros" in note]


def test_a_packed_table_is_read(tmp_path):
    write_table(tmp_path / "images")
    with gzip.open(tmp_path / "people.csv.gz", "wt") as file:
        people(sex="F").to_csv(file, index=False)
    images = open_manifest(tiny_config(tmp_path, data__patients=str(tmp_path / "people.csv.gz")).data).table
    assert set(images["sex"]) == {"F"}


def test_the_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("PEOPLE", str(tmp_path))
    opened(tmp_path, people(sex="F"))
    assert "sex" in open_manifest(tiny_config(tmp_path, data__patients="${PEOPLE}/people.csv").data).table


# ---------------------------------------------------------------- what is missing, doubled, or stated twice


def test_patients_who_are_missing_are_counted(tmp_path):
    manifest = opened(tmp_path, people(sex="F").iloc[5:])
    assert "lacks 5 patients, of 10 images" in notes_of(manifest)
    assert manifest.table["sex"].isna().sum() == 10


def test_rows_that_disagree_are_counted_and_say_nothing(tmp_path):
    table = people(race="a", sex="F", site="north")
    twice = table.iloc[:7].assign(race=["a", "b", "b", "a", None, "a", "a"], sex=["F", "F", "M"] + ["female"] * 4)
    manifest = opened(tmp_path, pd.concat([table, twice]))
    assert "2 patients have rows that disagree (sex 1, race 2): unknown there" in notes_of(manifest)
    unknown = manifest.table[manifest.table["race"].isna()]
    assert set(unknown["patient_id"]) == {"p1", "p2"}
    assert set(manifest.table.loc[manifest.table["sex"].isna(), "patient_id"]) == {"p2"}
    assert set(manifest.table["site"]) == {"north"}
    assert len(manifest.table) == 60


def test_what_the_images_say_themselves_stays_and_the_rest_is_filled(tmp_path):
    table = write_table(tmp_path / "images")
    sex = ["M" if number < 6 else "" for number in range(60)]
    table.assign(sex=sex, site="mine").to_csv(tmp_path / "images/manifest.csv", index=False)
    manifest = opened(tmp_path, people(sex="F", site="mine"))
    assert (manifest.table["sex"] == "M").sum() == 6 and (manifest.table["sex"] == "F").sum() == 54
    assert "another sex than the images' own for 6: theirs are kept" in notes_of(manifest)


@pytest.mark.parametrize("name", ["label", "split", "view", "path", "study_id", "score"])
def test_columns_of_the_manifests_own_are_refused(tmp_path, name):
    line = refusal(tmp_path, people(**{name: 1}))
    assert line.startswith(f"{tmp_path / 'people.csv'}: found column {name}, which the images have already")


def test_a_finding_is_no_patients(tmp_path):
    build_nih_tree(tmp_path / "nih", ["No Finding", "Mass"] * 10)
    (tmp_path / "people.csv").write_text("patient_id,Mass\n1,1\n")
    settings = DataSettings(source="nih-cxr14", root=f"{tmp_path}/nih", patients=f"{tmp_path}/people.csv")
    with pytest.raises(UserError, match="found column Mass, which the images have already"):
        open_manifest(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,sex\nA,F\n", "found columns name, sex, expected column patient_id or subject_id"),
        ("patient_id,sex\nq1,F\n", "found none of the 30 patients of source table, expected some of them"),
        ("patient_id,sex\n", "found none of the 30 patients"),
        ("", "not a readable CSV"),
    ],
)
def test_a_table_that_is_no_use_is_one_line(tmp_path, text, expected):
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'people.csv'}: {expected}")


@pytest.mark.parametrize("name", ["key", "name", "index", "0", "split!"])
def test_a_column_may_have_any_other_name(tmp_path, name):
    assert set(opened(tmp_path, people(**{name: "x"})).table[name]) == {"x"}


def test_a_table_that_is_not_there_is_named(tmp_path):
    write_table(tmp_path / "images")
    with pytest.raises(UserError, match=r"nobody\.csv: found no such file or directory, expected a table"):
        open_manifest(tiny_config(tmp_path, data__patients=str(tmp_path / "nobody.csv")).data)


def test_images_without_patients_cannot_be_joined(tmp_path):
    table = write_table(tmp_path / "images")
    table.drop(columns="patient_id").to_csv(tmp_path / "images/manifest.csv", index=False)
    assert refusal(tmp_path, people(sex="F")).startswith("data.patients: found no patient ids in source table")


def test_confidential_values_are_not_said(tmp_path):
    line = refusal(tmp_path, "Mrs. Smith,p7\np8,p9\n", data__credentialed=True)  # no header, so it may be a patient
    assert "Smith" not in line and "p7" not in line
    table = people(sex="X" * 7, age="Mrs. Smith", note="Mrs. Smith " * 10)
    notes = notes_of(opened(tmp_path, table, data__credentialed=True))
    assert len(notes) == 4 and not [note for note in notes if "Smith" in note or "XX" in note]


# ---------------------------------------------------------------- several data sets


def test_a_part_of_a_mix_has_a_table_of_its_own(tmp_path):
    opened(tmp_path, people(sex="F"))
    build_nih_tree(tmp_path / "nih", ["No Finding", "Mass"] * 10)
    own = {"source": "table", "root": f"{tmp_path}/images", "patients": f"{tmp_path}/people.csv"}
    nih = {"source": "nih-cxr14", "root": f"{tmp_path}/nih"}
    table = open_manifest(
        DataSettings(sources=(SourceSettings(**own), SourceSettings(**nih)), store=str(tmp_path / "stores"))
    ).table
    assert table.groupby("source")["sex"].unique().map(list).to_dict() == {"table": ["F"], "nih-cxr14": ["M"]}


def test_a_table_for_all_parts_of_a_mix_is_refused(tmp_path):
    parts = [{"source": "table", "root": "a"}, {"source": "nih-cxr14", "root": "b"}]
    with pytest.raises(UserError, match=r"data\.patients: found it beside several sources, expected it in the entry"):
        tiny_config(tmp_path, data__source="mix", data__sources=parts, data__patients="people.csv")


# ---------------------------------------------------------------- MIMIC-IV


def mimic(root: Path, table: pd.DataFrame, *others: pd.DataFrame, **settings) -> Manifest:
    ill = [number % 3 == 0 for number in range(40)]
    if settings.get("source") == "mimic-cxr-dicom":
        build_mimic_dicom_tree(root / "mimic", root / "labels", ill)
        settings["labels_root"] = str(root / "labels")
    else:
        build_mimic_tree(root / "mimic", [None] * 40, ill)
        (root / "mimic/files").mkdir(exist_ok=True)
    files = []
    for number, each in enumerate((table, *others)):
        files.append(f"{root}/{('patients', 'admissions')[number]}.csv.gz")
        each.to_csv(files[-1], index=False)
    given = {"source": "mimic-cxr-jpg", "patients": tuple(files) if others else files[0]} | settings
    return open_manifest(DataSettings(root=f"{root}/mimic", **given))


def mimic_patients() -> pd.DataFrame:
    """MIMIC-IV's columns; all studies of the tree are of 2180."""
    return pd.DataFrame(
        {
            "subject_id": [10_000_032 + 77_777 * number for number in range(20)],
            "gender": ["F", "M"] * 10,
            "anchor_age": range(30, 50),
            "anchor_year": [2180 - number % 3 for number in range(20)],
            "anchor_year_group": "2014 - 2016",
            "dod": "",
        }
    )


@pytest.mark.parametrize("source", ["mimic-cxr-jpg", "mimic-cxr-dicom"])
def test_the_age_is_that_at_the_study(tmp_path, source):
    patients = mimic_patients()
    manifest = mimic(tmp_path, patients, source=source)
    number = (manifest.table["patient_id"].astype(int) - 10_000_032) // 77_777
    assert (manifest.table["age"] == 30 + number + number % 3).all()
    assert manifest.table["sex"].tolist() == ["FM"[each % 2] for each in number]
    assert set(manifest.table["anchor_year_group"]) == {"2014 - 2016"}
    assert not {"anchor_age", "anchor_year", "study_date"} & set(manifest.table)
    assert "patients.csv.gz: age is that at the study, by the anchor year" in manifest.notes


def test_without_the_anchors_year_the_age_is_the_anchors_and_that_is_said(tmp_path):
    manifest = mimic(tmp_path, mimic_patients().drop(columns="anchor_year"))
    number = (manifest.table["patient_id"].astype(int) - 10_000_032) // 77_777
    assert (manifest.table["age"] == 30 + number).all()
    assert "patients.csv.gz: age is that of the anchor year" in manifest.notes


def test_an_age_that_nobody_has_is_unknown(tmp_path):
    patients = mimic_patients()
    patients.loc[0, "anchor_year"] = 2280
    patients.loc[1, "anchor_age"] = 119
    manifest = mimic(tmp_path, patients)
    unknown = manifest.table["age"].isna()
    assert set((manifest.table.loc[unknown, "patient_id"].astype(int) - 10_000_032) // 77_777) == {0}
    assert "patients.csv.gz: age: none of 0 to 120 years for 2 images: unknown" in manifest.notes


def test_several_tables_are_joined_one_after_the_other(tmp_path):
    admissions = mimic_patients()[["subject_id"]].assign(race="WHITE")
    both = mimic(tmp_path, mimic_patients()).table
    for order in ((mimic_patients(), admissions), (admissions, mimic_patients())):
        images = mimic(tmp_path, *order).table
        assert set(images["race"]) == {"WHITE"} and set(images["sex"]) == {"F", "M"}
        assert images["age"].tolist() == both["age"].tolist()
        assert not {"anchor_age", "anchor_year", "study_date"} & set(images)


def test_admissions_say_the_race_where_they_agree(tmp_path):
    patients = mimic_patients()[["subject_id"]]
    admissions = pd.concat([patients.assign(race="WHITE"), patients.iloc[:3].assign(race="UNKNOWN")])
    admissions["hadm_id"] = range(len(admissions))
    manifest = mimic(tmp_path, admissions)
    assert manifest.table["race"].isna().sum() == 6 and set(manifest.table["race"].dropna()) == {"WHITE"}
    line = "patients.csv.gz: 3 patients have rows that disagree (race 3, hadm_id 3): unknown there"
    assert line in manifest.notes
