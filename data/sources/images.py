"""A folder of radiographs without labels, at any depth, for pretraining: JPEG, PNG and DICOM files."""

from pathlib import Path

import pandas as pd

from data.class_names import holds_masks, is_of_masks
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

    images = [name for name in found.images if not _is_mask(name)]
    if not images:
        raise UserError(f"data.root: {root}: found images in folders of masks alone, expected radiographs")

    notes = [f"{len(images):,} images without labels, for pretraining", *found.notes()]
    if len(images) < len(found.images):
        notes.append(f"{len(found.images) - len(images):,} images left out: in folders of masks")
    table = pd.DataFrame({"image_id": images, "path": [f"{root}/{name}" for name in images]})
    return manifest_table(table, settings.source), notes


def _is_mask(name: str) -> bool:
    """Whether a folder above says so: sets for segmentation have masks beside the radiographs."""
    return any(holds_masks(folder) or is_of_masks(folder) for folder in name.split("/")[:-1])
