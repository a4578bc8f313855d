"""A folder of radiographs without labels, at any depth, for pretraining: JPEG, PNG and DICOM files."""

from pathlib import Path

import pandas as pd

from data.errors import UserError
from data.places import require_folder
from data.settings import DataSettings
from data.sources import manifest_table
from data.sources.found_images import find_images


def read(settings: DataSettings, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row per image, sorted by `image_id`, the path below root; no labels, patients, splits or views.

    Raises UserError where there are none.
    """
    require_folder(root)
    found = find_images(root)
    if not found.images:
        others = found.passed_over.total()
        raise UserError(f"data.root: {root}: found no images among {others:,} files, expected JPEG, PNG or DICOM files")

    notes = [f"{len(found.images):,} images without labels, for pretraining", *found.notes()]
    table = pd.DataFrame({"image_id": found.images, "path": [f"{root}/{name}" for name in found.images]})
    return manifest_table(table, settings.source), notes
