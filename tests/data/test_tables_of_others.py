"""Tables as people have them: other separators, other names of columns, spreadsheets, paths of another machine."""

import gzip
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from source_files import read, refusal, touch

ROWS = [("path", "label", "patient_id"), ("a.png", "0", "p,1"), ("b b.png", "1", "p2"), ("c.png", "", "p2")]


def write(root: Path, content: str | bytes, name: str = "manifest.csv") -> Path:
    data = content.encode() if isinstance(content, str) else content
    (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return root


def text(*header: str, rows: int = 3) -> str:
    """A table of these columns, whose cells are a path, a label, and texts."""
    lines = [",".join(header)]
    for number in range(rows):
        lines.append(",".join([f"{number}.png", str(number % 2), *[f"x{number}"] * (len(header) - 2)]))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- separators


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
@pytest.mark.parametrize("before", ["", "\ufeff", "sep={}\r\n"], ids=["plain", "bom", "sep"])
@pytest.mark.parametrize("file", ["manifest.csv", "manifest.csv.gz"])
def test_another_separator_is_read_and_said(separator, name, before, file, tmp_path):
    content = before.format(separator) + "\r\n".join(separator.join(row) for row in ROWS)
    table, notes = read(write(tmp_path, content, file), "table", table=file)
    assert table["image_id"].tolist() == ["a.png", "b b.png", "c.png"]
    assert table["patient_id"].tolist() == ["p,1", "p2", "p2"]
    assert table["label"].fillna(-1).tolist() == [0, 1, -1]
    assert f"{file}: columns are separated by {name}" in notes


@pytest.mark.parametrize("before", ["sep=,\r\n", "\ufeffsep=,\n", '"sep=,"\r\n'], ids=ascii)
def test_a_line_may_say_that_commas_separate(before, tmp_path):
    content = before + 'path,label,patient_id\r\na.png,0,"p,1"\r\nb;b.png,1,p2\r\n'
    table, _ = read(write(tmp_path, content), "table")
    assert table["image_id"].tolist() == ["a.png", "b;b.png"]
    assert table["patient_id"].tolist() == ["p,1", "p2"]
    assert table["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "content",
    ["path;label\na;1;2\n", "path;label|x\na;1|2\nb;c|d\n", 'path;label\n"a;1\n', "path;label,x\na;1,2\n"],
    ids=["ragged", "two that fit", "open quote", "commas"],
)
def test_a_separator_is_not_guessed(content, tmp_path):
    assert "expected column" in refusal(write(tmp_path, content), "table")


def test_a_comma_in_a_name_separates_nothing(tmp_path):
    content = "path;label;age, years\na.png;0;7\nb.png;1;12\n"
    assert read(write(tmp_path, content), "table")[0]["label"].tolist() == [0, 1]


def test_a_decimal_comma_is_no_other_column(tmp_path):
    content = "path;label;patient_id\na.png;0;1,5\nb.png;1;2,5\n"
    assert read(write(tmp_path, content), "table")[0]["patient_id"].tolist() == ["1,5", "2,5"]


@pytest.mark.parametrize("file", ["manifest.csv", "manifest.csv.gz"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_is_unpacked_if_it_is_packed_whatever_its_name(file, separator, tmp_path):
    content = "\n".join(separator.join(row) for row in [*ROWS[:1], *ROWS[2:]]).encode()
    (tmp_path / file).write_bytes(content if file.endswith(".gz") else gzip.compress(content))
    assert read(tmp_path, "table", table=file)[0]["image_id"].tolist() == ["b b.png", "c.png"]


@pytest.mark.parametrize(("cell", "column"), [("yes", "Edema"), ("0,5", "Edema"), ("3 cm", "Mass")])
def test_a_finding_that_is_no_number_is_named(cell, column, tmp_path):
    write(tmp_path, f'path,label,{column}\na.png,0,1\nb.png,1,\nc.png,1,"{cell}"\n')
    said = f"row 4: found {cell!r} in column {column}, expected a number or blank"
    assert refusal(tmp_path, "table").endswith(said)
    assert refusal(tmp_path, "table", target=column).endswith(said)


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "header", [("Path", "LABEL", "Patient ID"), ("path", "Label", "PatientID"), ("PATH", "label", "patient-id")]
)
def test_a_spelling_of_our_names_is_read_and_said(header, tmp_path):
    table, notes = read(write(tmp_path, text(*header)), "table")
    assert table["patient_id"].tolist() == ["x0", "x1", "x2"]
    assert f"column {header[2]} is read as patient_id" in notes


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (("Image Index", "label"), "expected column path; did you mean 'data.columns.path=Image Index'?"),
        (("filename", "class"), "expected column path; did you mean data.columns.path=filename?"),
        (("path", "Diagnosis"), "expected column label; did you mean data.columns.label=Diagnosis?"),
        (("path", "gt", "class"), "expected column label; did you mean data.columns.label=class?"),
        (
            ("bla", "blub"),
            "found columns bla, blub, expected column path; if another one is it, give data.columns.path=NAME",
        ),
    ],
)
def test_another_name_is_suggested(header, said, tmp_path):
    assert refusal(write(tmp_path, text(*header)), "table") == f"{tmp_path}/manifest.csv: " + (
        said if said.startswith("found") else f"found columns {', '.join(header)}, {said}"
    )


def test_columns_may_be_named_in_the_config(tmp_path):
    write(tmp_path, text("Image Index", "Diagnosis", "pid", "label"))
    columns = {"path": "Image Index", "label": "Diagnosis", "patient_id": "pid"}
    table, notes = read(tmp_path, "table", columns=columns)
    assert table["path"].tolist() == [f"{tmp_path}/{number}.png" for number in range(3)]
    assert table["label"].tolist() == [0, 1, 0]
    assert table["patient_id"].tolist() == ["x0", "x1", "x2"]
    assert "column label is not kept: the name is taken" in notes
    line = refusal(tmp_path, "table", columns=columns | {"patient_id": "pit"})
    assert (
        line == f"data.columns.patient_id: found 'pit', expected a column of {tmp_path}/manifest.csv; did you mean pid?"
    )
    assert "expected different columns" in refusal(tmp_path, "table", columns=columns | {"split": "pid"})


@pytest.mark.parametrize("target", [None, "Edema"])
def test_one_column_may_name_the_file_and_the_image(target, tmp_path):
    write(tmp_path, "file,label,Edema\na.png,0,1\nb.png,1,0\nc.png,0,\n")
    table, _ = read(tmp_path, "table", columns={"path": "file", "image_id": "file"}, target=target)
    assert table["image_id"].tolist() == ["a.png", "b.png", "c.png"]
    assert table["path"].tolist() == [f"{tmp_path}/{name}.png" for name in "abc"]


def test_the_target_may_be_named_as_the_label_too(tmp_path):
    write(tmp_path, "path,Edema,Fracture\na.png,0,\nb.png,1,1\nc.png,,0\n")
    expected, _ = read(tmp_path, "table", target="Edema")
    table, _ = read(tmp_path, "table", columns={"label": "Edema"}, target="Edema")
    pd.testing.assert_frame_equal(table, expected)
    assert table["label"].tolist() == [0, 1, 0]


def test_patients_under_another_name_are_pointed_out(tmp_path):
    table, notes = read(write(tmp_path, text("path", "label", "subject_id")), "table")
    assert table["patient_id"].isna().all() and table["subject_id"].tolist() == ["x0", "x1", "x2"]
    assert "no column patient_id; if subject_id is it, give data.columns.patient_id=subject_id" in notes


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("no", "yes"), [("0.0", "1.0"), ("No", "YES"), ("negative", "Positive "), ('"0"', "'1'"[1:2]), ("FALSE", "true")]
)
def test_labels_are_read_in_the_words_people_use(no, yes, tmp_path):
    content = f"path,label\na.png,{no}\nb.png,{yes}\nc.png,\n"
    assert read(write(tmp_path, content), "table")[0]["label"].fillna(-1).tolist() == [0, 1, -1]


def test_labels_may_be_names_of_classes(tmp_path):
    write(tmp_path, "path,label\na.png,NORMAL\nb.png,COVID\nc.png,\nd.png,Pneumonia\ne.png,unlabelled\n")
    line = refusal(tmp_path, "table")
    assert "row 3: found label 'COVID', expected one of normal, abnormal, 0, 1" in line
    assert line.endswith("; where labels name classes, 'data.normal=[NORMAL]' makes all others abnormal")
    table, notes = read(tmp_path, "table", normal="normal")
    assert table["label"].fillna(-1).tolist() == [0, 1, -1, 1, -1]
    assert (
        "normal: NORMAL (1 image); abnormal: COVID (1 image), Pneumonia (1 image); unknown: unlabelled (1 image)"
        in notes
    )


# ---------------------------------------------------------------- rows and files


def test_a_file_in_two_rows_is_an_error_and_a_conflict_is_said(tmp_path):
    write(tmp_path, "image_id,path,label\n1,a.png,0\n2,b.png,1\n3,a.png,1\n")
    line = refusal(tmp_path, "table")
    assert "found 1 files in several rows, such as a.png, 1 of them with different labels, expected a row for" in line


def test_backslashes_are_read_where_the_files_are_there_without(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png")
    write(tmp_path, "path,label\nimages\\a.png,0\nimages\\b.png,1\n")
    table, notes = read(tmp_path, "table")
    assert table["path"].tolist() == [f"{tmp_path}/images/a.png", f"{tmp_path}/images/b.png"]
    assert "2 paths are written with backslashes, read as /" in notes


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_spellings_are_told_by_any_file_that_is_there(gone, tmp_path):
    touch(tmp_path, *(f"images/{number}.png" for number in range(5) if number != gone))
    write(tmp_path, "path,label\n" + "".join(f"images\\{number}.png,0\n" for number in range(5)))
    assert read(tmp_path, "table")[0]["path"].tolist() == [f"{tmp_path}/images/{number}.png" for number in range(5)]


def test_a_name_that_has_a_backslash_keeps_it(tmp_path):
    touch(tmp_path, "images\\1.png", "images/2.png")
    write(tmp_path, "path,label\nimages\\0.png,0\nimages\\1.png,1\nimages\\2.png,1\n")
    assert read(tmp_path, "table")[0]["path"].tolist() == [f"{tmp_path}/images\\{number}.png" for number in range(3)]


@pytest.mark.parametrize(("written", "there"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_of_another_system_are_read_where_the_files_are_there(written, there, tmp_path):
    (tmp_path / unicodedata.normalize(there, "Müller.png")).touch()
    name = unicodedata.normalize(written, "Müller.png")
    table, notes = read(write(tmp_path, f"path,label\n{name},0\nb.png,1\n"), "table")
    assert table["path"].tolist() == [f"{tmp_path}/{unicodedata.normalize(there, name)}", f"{tmp_path}/b.png"]
    assert any(note.startswith("1 paths are read with each accent") for note in notes)


def test_a_file_under_both_spellings_of_its_accents_is_in_two_rows(tmp_path):
    names = [unicodedata.normalize(form, "Müller.png") for form in ("NFC", "NFD")]
    (tmp_path / names[0]).touch()
    line = refusal(write(tmp_path, f"path,label\n{names[0]},0\n{names[1]},1\n"), "table")
    assert "found 1 files in several rows" in line
    assert "1 of them with different labels" in line


def test_rows_of_separators_alone_below_the_last_are_left_out(tmp_path):
    table, notes = read(write(tmp_path, "path;label;age\na.png;0;7\nb.png;1;8\n;;\n;;\n"), "table")
    assert table["label"].tolist() == [0, 1]
    assert "2 empty rows at the end are left out" in notes
    assert "row 3: found no path" in refusal(write(tmp_path, "path;label\na.png;0\n;\nb.png;1\n"), "table")


def test_the_table_that_is_there_is_suggested(tmp_path):
    write(tmp_path, text("path", "label"), "labels.csv")
    assert refusal(tmp_path, "table").endswith("below data.root; did you mean data.table=labels.csv?")


@pytest.mark.parametrize(("name", "start"), [("a.xlsx", b"PK\x03\x04"), ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")])
def test_a_spreadsheet_is_to_be_saved_as_csv(name, start, tmp_path):
    write(tmp_path, start + bytes(99), name)
    assert refusal(tmp_path, "table", table=name).endswith("expected a table; save it as CSV in UTF-8")
