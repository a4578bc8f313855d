"""MIMIC-CXR, CheXpert and others are recognised whatever source reads them, and other data are not taken for them."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mimic_tree import build_mimic_tree
from tiny_world import write_table

from data.inputs import find_inputs
from data.manifest import open_manifest
from data.privacy import credentialed_places, credentialed_sources
from data.settings import DataSettings


@pytest.fixture(scope="module")
def mimic(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("credentialed") / "tree"
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (20, 20), np.uint8) for _ in range(6)]
    build_mimic_tree(root, images, [True, False] * 3)
    return root


def is_private(source: str, root: Path, **settings: object) -> bool:
    return bool(credentialed_sources(DataSettings(source=source, root=str(root), **settings)))


def some_image(mimic: Path) -> Path:
    return sorted(mimic.rglob("*.jpg"))[0]


def test_its_folder_and_every_part_of_it_are_known(mimic):
    image = some_image(mimic)
    for folder in (mimic, mimic / "files", *list(image.parents)[:3]):
        assert is_private("images", folder), folder
        assert not is_private("images", folder, credentialed=False)


def test_a_part_without_tables_is_known(mimic, tmp_path):
    image = some_image(mimic)
    for name in ("files/p10/p10000032/s50414267/a.jpg", f"x/{image.name}", image.name):
        copy = tmp_path / name.replace("/", "-") / name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(image.read_bytes())
        assert is_private("images", tmp_path / name.replace("/", "-"))


@pytest.mark.parametrize("whole", [True, False])
def test_links_to_it_are_known(whole, mimic, tmp_path):
    folder = tmp_path / "mine/NORMAL"
    folder.mkdir(parents=True)
    (folder / "a").symlink_to(mimic / "files" if whole else some_image(mimic))
    assert is_private("folder", tmp_path / "mine")


@pytest.mark.parametrize("column", ["path", "image_id"])
def test_a_table_that_lists_it_is_known(column, mimic, tmp_path):
    table = pd.DataFrame({"path": ["a.png"], "image_id": ["1"], "label": [0]})
    table[column] = str(some_image(mimic)) if column == "path" else some_image(mimic).stem
    for name in ("list.csv", "list.csv.gz"):
        table.to_csv(tmp_path / name, index=False)
        assert is_private("table", tmp_path, table=name)


@pytest.mark.parametrize("name", ["list.csv", "list.CSV", "list.csv.gz", "list.tsv", "list.txt"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_list_of_paths_that_is_read_is_known(name, packed, mimic, tmp_path):
    content = f"path\n{some_image(mimic)}\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert [one.path for one in find_inputs([tmp_path / name])] == [some_image(mimic)]
    assert credentialed_places([tmp_path / name]) == ("MIMIC-CXR",)


def test_a_part_of_a_mix_is_known(mimic, tmp_path):
    write_table(tmp_path / "open", count=3)
    parts = ({"source": "images", "root": str(mimic), "name": "one"}, {"source": "images", "root": f"{tmp_path}/open"})
    assert credentialed_sources(DataSettings(sources=parts)) == ("one",)


def test_chexpert_is_known(tmp_path):
    image = tmp_path / "archive/train/patient00001/study1/view1_frontal.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    (tmp_path / "CheXpert-v1.0-small/valid").mkdir(parents=True)
    assert is_private("images", tmp_path / "archive/train")
    assert is_private("folder", tmp_path / "CheXpert-v1.0-small/valid")


@pytest.mark.parametrize(
    "place",
    [
        "images/id_0084b42f-a2f1-4bb8-9d3a-6a6a7a2d1c3e/Study_12345678.87654321/Series_1.2/image-3-4.png",
        "brax/1.1.0/images/a.png",
        "physionet.org/files/vindr-cxr/1.0.0/train/0005e8e3701dfb1dd93d53e2ff537b6e.dicom",
        "VinDr-PCXR/test/a.dicom",
    ],
)
def test_other_sets_of_physionet_are_known_by_folder_and_in_lists(place, tmp_path):
    image = tmp_path / "mine" / place
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    assert is_private("images", tmp_path / "mine")
    assert is_private("images", image.parent)
    (tmp_path / "lists").mkdir()
    pd.DataFrame({"path": [place], "label": [0]}).to_csv(tmp_path / "lists/list.csv", index=False)
    assert is_private("table", tmp_path / "lists", table="list.csv")


def test_other_data_are_not_taken_for_them(mimic, tmp_path):
    """Even where they lie beside each other."""
    (tmp_path / "CheXpert-v1.0").mkdir()
    (tmp_path / "mimic").symlink_to(mimic)
    write_table(tmp_path / "open", count=3)
    (tmp_path / "open/p1/p12").mkdir(parents=True)
    (tmp_path / "open/id_7/Study_1").mkdir(parents=True)
    (tmp_path / "open/123e4567-e89b-12d3-a456-426614174000.png").write_bytes(b"")
    for source in ("images", "table", "folder"):
        assert not is_private(source, tmp_path / "open")
    assert not is_private("images", tmp_path / "there is none")


def test_the_phantom_that_is_laid_out_like_it_is_open(tmp_path):
    open_manifest(DataSettings(source="phantom", root=f"{tmp_path}/phantom", phantom={"images": 40}))
    assert not is_private("images", tmp_path / "phantom")
    assert not is_private("images", tmp_path / "phantom/files")


def test_it_is_said(mimic):
    manifest = open_manifest(DataSettings(source="images", root=str(mimic)))
    assert manifest.credentialed
    assert "images: found MIMIC-CXR's files, so it is treated as credentialed (see data.credentialed)" in manifest.notes
