"""CheXpert, the original and the small one, as Stanford lays it out.

    train.csv   valid.csv   train/patient00001/study1/view1_frontal.jpg   valid/…
    test.csv or test_labels.csv, test/…     (where the test set was added)

Paths in the CSVs begin with `CheXpert-v1.0/` or `CheXpert-v1.0-small/`: that folder, or the one it lies in, is the
root. Radiologists' CSVs may lack views and `No Finding`. No image is looked for here.
"""

from pathlib import Path

import pandas as pd

from data.errors import UserError
from data.labels import FINDINGS, judge, tally, with_no_finding
from data.places import require_folder
from data.settings import DataSettings
from data.sex_and_age import people_columns, read_people
from data.sources import csv_columns, manifest_table, read_findings, require_filled

FILES = {"train": ("train.csv",), "validate": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
WHERE = "https://stanfordaimi.azurewebsites.net (registration)"
LATERAL, FRONTAL = "LATERAL", "FRONTAL"  # FRONTAL: AP or PA, nobody says which


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image of the CSVs, `image_id` such as `train/patient00001/study1/view1_frontal.jpg`.

    Raises UserError for a missing folder, CSV or column, and for values that are not official.
    """
    require_folder(root)
    folder = _find_folder(root)
    found = {split: [folder / name for name in names if (folder / name).is_file()] for split, names in FILES.items()}
    parts = {paths[0].name: _read_part(paths[0], split) for split, paths in found.items() if paths}
    notes = [f"{name}: {len(part):,} images" for name, part in parts.items()]
    images, about_people = read_people(pd.concat(parts.values(), ignore_index=True))
    notes += about_people
    label, rule = judge(images[list(FINDINGS)], settings.uncertain, settings.target)
    images = images.assign(label=label, rule=rule, path=f"{folder}/" + images["image_id"])
    notes += [f"{text}: {count:,} images" for text, count in tally(rule).items()]
    return manifest_table(images, settings.source, FINDINGS), notes


def _find_folder(root: Path) -> Path:
    """Where train.csv lies: root, or the one `CheXpert-v1.0…` folder below it."""
    places = [root, *sorted(root.glob("CheXpert-v1.0*/"))]
    found = [place for place in places if (place / "train.csv").is_file()]
    if not found:
        raise UserError(f"{root}: found no train.csv, expected CheXpert's folder or the one it lies in; from {WHERE}")
    if len(found) > 1:
        names = ", ".join(str(place) for place in found)
        raise UserError(f"{root}: found several CheXperts ({names}), expected one; give it as data.root")
    return found[0]


def _read_part(path: Path, split: str) -> pd.DataFrame:
    """image_id, patient_id, study_id, split, view, all findings, and any sex and age of one CSV."""
    header = csv_columns(path)
    views = [name for name in ("Frontal/Lateral", "AP/PA") if name in header]
    needed = FINDINGS if split != "test" else [name for name in FINDINGS if name in header]
    people = people_columns(header)
    table = read_findings(path, ["Path", *views, *people], needed)
    require_filled(table, ["Path"], path)

    # only the path tells patient and study
    below = table["Path"].str.replace(r"^CheXpert-v1\.0[^/]*/", "", regex=True)
    parts = below.str.extract(r"(patient[^/]+)/(study[^/]+)/[^/]+$")
    if parts[0].isna().any():
        row = parts[0].isna().to_numpy().argmax()
        raise UserError(f"{path}: row {row + 2}: found no patient and study in Path, expected …/patient00001/study1/…")

    named = {"image_id": below, "patient_id": parts[0], "study_id": parts[0] + "/" + parts[1]}
    findings = with_no_finding(table[list(needed)]).reindex(columns=list(FINDINGS))
    images = pd.DataFrame({**named, "split": split, "view": _views(table)})
    return pd.concat([images, table[list(people)].rename(columns=people), findings], axis=1)


def _views(table: pd.DataFrame) -> pd.Series:
    """AP, PA and rarer ones; LATERAL; FRONTAL where its kind is not given. File names tell the side too."""
    named = table["Path"].str.extract(r"_(frontal|lateral)\b[^/]*$", expand=False)
    side = table["Frontal/Lateral"].str.lower() if "Frontal/Lateral" in table else named
    frontal = table["AP/PA"].fillna(FRONTAL) if "AP/PA" in table else pd.Series(FRONTAL, index=table.index)
    return frontal.where(side == "frontal", side.map({"lateral": LATERAL}))
