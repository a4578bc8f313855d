"""Laws of stores whose data set grows, and mae-prepare on every public layout."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from interrupted_reading import bytes_of, stop_at
from mimic_tree import build_mimic_tree
from PIL import Image
from public_trees import build_chexpert_tree, build_mimic_dicom_tree, build_nih_tree, radiograph, write_dicom
from tiny_world import call, succeed, tiny_config

import data.preparation
from classify.settings import ClassifyConfig
from data.cli import prepare as main
from data.config import load_config, make_config
from data.errors import UserError
from data.images import read_fitted
from data.loader import open_data
from data.manifest import open_manifest
from data.preparation import prepare

COUNT = 40


@pytest.fixture
def config(tmp_path) -> ClassifyConfig:
    """A MIMIC-CXR-JPG of 40 images, none of them downloaded."""
    build_mimic_tree(tmp_path / "mimic", [None] * COUNT, [True, False] * (COUNT // 2))
    return config_of(tmp_path, "stores")


def config_of(root: Path, store: str, **changed) -> ClassifyConfig:
    places = {"data__root": str(root / "mimic"), "data__store": str(root / store)}
    return tiny_config(root, data__source="mimic-cxr-jpg", **places, **changed)


def download(config: ClassifyConfig, numbers: range) -> None:
    """Put these images of the whole data set in place."""
    metadata = pd.read_csv(Path(config.data.root) / "mimic-cxr-2.0.0-metadata.csv", dtype=str)
    rows = metadata[["subject_id", "study_id", "dicom_id"]].itertuples(index=False)
    paths = [Path(config.data.root, f"files/p{who[:2]}/p{who}/s{study}/{image}.jpg") for who, study, image in rows]
    for number in numbers:
        Image.fromarray(radiograph(number)).save(paths[number])


# ---------------------------------------------------------------- growing


def test_a_grown_download_decodes_only_what_is_new(tmp_path, config, monkeypatch, capsys):
    download(config, range(13))
    first = prepare(config)
    assert len(first) == 13
    download(config, range(13, COUNT))
    paths = stop_at(monkeypatch, 0)
    second = prepare(config)
    assert len(second) == COUNT and len(paths) == COUNT - 13
    assert f"13 images taken over from {first.folder}" in capsys.readouterr().out
    assert bytes_of(second) == bytes_of(prepare(config_of(tmp_path, "elsewhere")))
    assert len(first.images) == 13  # a run that uses it goes on


def test_rows_of_an_interrupted_store_are_taken_over(tmp_path, config, monkeypatch):
    download(config, range(17))
    monkeypatch.setattr(data.preparation, "CHUNK", 5)
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    download(config, range(17, COUNT))
    with monkeypatch.context() as patch:
        paths = stop_at(patch, 0)
        store = prepare(config)
    assert len(paths) == COUNT - 10  # two chunks of five were done
    assert bytes_of(store) == bytes_of(prepare(config_of(tmp_path, "elsewhere")))
    assert not (store.folder / "plan.json").exists()


def test_mended_and_rejected_files_are_read_again(config, monkeypatch):
    download(config, range(13))
    table = open_manifest(config).table
    bad, changed = Path(table["path"][2]), Path(table["path"][5])
    bad.write_bytes(b"no image")
    assert len(prepare(config)) == 12
    download(config, range(13, COUNT))
    Image.fromarray(radiograph(99, 50, 60)).save(changed)
    Image.fromarray(radiograph(98)).save(bad)
    paths = stop_at(monkeypatch, 0)
    store = prepare(config)
    assert {str(bad), str(changed)} < set(paths) and len(paths) == COUNT - 13 + 2
    row = store.index[table["image_id"][5]]
    assert (store.images[row] == read_fitted(changed, 12)).all()


@pytest.mark.parametrize("changed", [{"data__image_size": 13}, {"data__resize": "squash"}, {"data__tone": "mimic_jpg"}])
def test_what_was_read_otherwise_is_not_taken_over(changed, tmp_path, config, monkeypatch):
    download(config, range(13))
    prepare(config)
    paths = stop_at(monkeypatch, 0)
    prepare(config_of(tmp_path, "stores", **changed))
    assert len(paths) == 13


def test_a_run_goes_by_what_the_last_prepare_saw(config):
    download(config, range(13))
    first = open_data(config.data)
    download(config, range(13, COUNT))
    assert open_data(config.data).store.folder == first.store.folder
    assert len(prepare(config)) == COUNT
    assert len(open_data(config.data).manifest.table) == COUNT


def test_originals_may_go_once_a_store_is_made(config):
    download(config, range(13))
    store = prepare(config)
    for path in Path(config.data.root).glob("files/*/*/*/*.jpg"):
        path.unlink()
    assert open_data(config.data).store.folder == store.folder


def test_a_store_older_than_digests_is_not_taken_over(config, monkeypatch):
    download(config, range(13))
    index = prepare(config).folder / "index.csv"
    index.write_text("".join(line.rsplit(",", 1)[0] + "\n" for line in index.read_text().splitlines()))
    download(config, range(13, COUNT))
    paths = stop_at(monkeypatch, 0)
    assert len(prepare(config)) == len(paths) == COUNT


def test_a_damaged_store_beside_is_passed_over(tmp_path, config):
    download(config, range(13))
    first = prepare(config)
    (first.folder / "index.csv").write_text("image_id,row,bytes\nx,seven,1\n")
    (tmp_path / "stores/odd").mkdir()
    (tmp_path / "stores/odd/store.json").write_text("{")
    download(config, range(13, COUNT))
    assert len(prepare(config)) == COUNT


def test_nothing_downloaded_is_one_line(tmp_path, config):
    with pytest.raises(UserError) as caught:
        prepare(config)
    root = tmp_path / "mimic"
    assert str(caught.value) == f"{root}: found none of the 40 images that its CSVs list, expected some"
    assert not list((tmp_path / "stores").glob("*/*"))


# ---------------------------------------------------------------- every layout, all the way to a store


def chexpert(root: Path) -> tuple[dict, int]:
    return {"source": "chexpert", "root": str(build_chexpert_tree(root))}, 40


def nih(root: Path) -> tuple[dict, int]:
    build_nih_tree(root / "nih", ["No Finding", "Mass"] * 12)
    return {"source": "nih-cxr14", "root": str(root / "nih")}, 24


def mimic_dicom(root: Path) -> tuple[dict, int]:
    build_mimic_dicom_tree(root / "dicom", root / "jpg", [True, False] * 20)
    return {"source": "mimic-cxr-dicom", "root": str(root / "dicom"), "labels_root": str(root / "jpg")}, 40


def bare(root: Path) -> tuple[dict, int]:
    (root / "bare/deep").mkdir(parents=True)
    for number in range(10):
        Image.fromarray(radiograph(number)).save(root / f"bare/deep/{number}.png")
        write_dicom(root / f"bare/{number}", radiograph(50 + number))
    return {"source": "images", "root": str(root / "bare")}, 20


def several(root: Path) -> tuple[dict, int]:
    parts = [(make(root)) for make in (chexpert, nih, mimic_dicom, bare)]
    return {"sources": [settings for settings, _ in parts]}, sum(count for _, count in parts)


@pytest.mark.parametrize("layout", [chexpert, nih, mimic_dicom, bare, several])
def test_prepare_stores_every_image_of_a_layout(layout, tmp_path):
    settings, count = layout(tmp_path)
    settings |= {"image_size": 16, "workers": 1, "store": str(tmp_path / "stores")}
    (tmp_path / "my.yaml").write_text(json.dumps({"data": settings}))
    out = succeed(main, "--config", tmp_path / "my.yaml")
    assert f"({count} images of 16x16)" in out
    table = next(line for line in out.splitlines() if line.startswith("all "))
    assert table.split()[1] == str(count)
    opened = open_data(load_config(tmp_path / "my.yaml").data)
    assert opened.store.folder.parent == tmp_path / "stores"
    for name in ("train", "validate"):
        part = opened.split(name)
        picked = part.iloc[[0, -1]]
        for path, row in zip(picked["path"], picked["row"], strict=True):
            np.testing.assert_array_equal(opened.store.images[row], read_fitted(path, 16))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"source": "table", "sources": [{"source": "images", "root": "x"}]},
            "data.sources: found a list beside source",
        ),
        ({"source": "mix"}, "data.source is missing (layout of the files: "),
        ({"sources": [{"source": "images"}]}, "data.sources.0.root is missing"),
        ({"sources": [{"source": "images", "root": "x", "view": []}]}, "data.sources.0.view is unknown; did you mean "),
        ({"sources": [{"source": "images", "root": "x"}] * 2}, "data.sources: found names images, images, expected "),
        ({"sources": [{"source": "mix", "root": "x"}]}, 'data.sources.0.source: found "mix", expected '),
    ],
)
def test_wrong_mix_is_one_line(given, message):
    with pytest.raises(UserError) as caught:
        make_config({"data": given}, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {message}")


def test_printed_mix_loads_to_the_same_config(tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("data: {sources: [{source: images, root: a}, {source: chexpert, root: b, views: []}]}\n")
    printed = tmp_path / "printed.yaml"
    printed.write_text(call(main, "--config", config, "--print-config").out)
    assert load_config(printed) == load_config(config)
    assert [one.source for one in load_config(config).data.each_source().values()] == ["images", "chexpert"]
