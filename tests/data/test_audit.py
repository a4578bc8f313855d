"""Laws of the leak audit: it finds images that are in two splits, and no mere look-alikes."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from checkout import SHARED
from PIL import Image
from tiny_world import SIDE, TINY, other_split, succeed, tiny_config, write_table

from classify.cli import evaluate
from data.audit import KINDS, LEAST, Prints, audit, audit_lines, audited, leaks, served_pretraining
from data.cli import prepare as main
from data.errors import UserError
from data.loader import open_data
from data.manifest import open_manifest

SAME_FILE, SAME_PIXELS, NEAR = KINDS


def counts(report: dict) -> dict[tuple[str, str], dict[str, int]]:
    """What was found for each pair of splits, without zeros."""
    pairs = {(pair["earlier"], pair["later"]): pair["images"] for pair in report["across"]}
    return {names: {kind: n for kind, n in found.items() if n} for names, found in pairs.items() if any(found.values())}


def smooth(rng: np.random.Generator, n: int, height: int, width: int) -> np.ndarray:
    """Images (n h w) that look alike: one shape for all, a coarse field of their own, a little noise."""
    field = np.kron(rng.normal(0, 1, (n, 5, 6)), np.ones((8, 8)))[:, :height, :width]
    shape = np.add.outer(np.sin(np.linspace(0, 3, height)), np.cos(np.linspace(0, 3, width)))
    return (120 + 40 * shape + 6 * field + rng.normal(0, 1, field.shape)).clip(0, 255).astype(np.uint8)


def store_of(images: np.ndarray, digests: dict[int, str]) -> SimpleNamespace:
    return SimpleNamespace(images=images, digests=lambda: digests)


def leaky_table(root: Path) -> dict[str, str]:
    """60 images; one file, one image and one near copy of the training split are in validation or test as well."""
    table = write_table(root).set_index("path")["split"]
    first = {split: [name for name in table.index if table[name] == split] for split in ("train", "validate", "test")}
    source, bit = first["train"][:3], np.zeros((SIDE, SIDE), np.uint8)
    bit[3, 5] = 9
    (root / first["validate"][0]).write_bytes((root / source[0]).read_bytes())
    Image.open(root / source[1]).save(root / first["test"][0], compress_level=1)
    Image.fromarray(np.asarray(Image.open(root / source[2])) // 2 * 2 + bit).save(root / first["test"][1])
    return {"validate": first["validate"][0], "pixels": first["test"][0], "near": first["test"][1]} | {"of": source[0]}


# ---------------------------------------------------------------- what is found


def test_each_kind_of_copy_is_found_once_and_nothing_else(tmp_path):
    names = leaky_table(tmp_path / "images")
    opened = open_data(tiny_config(tmp_path, data__image_size=32).data)
    report = audit(opened.manifest, opened.store)
    assert counts(report) == {("train", "validate"): {SAME_FILE: 1}, ("train", "test"): {SAME_PIXELS: 1, NEAR: 1}}
    row = opened.store.index
    assert report["across"][0]["twins"] == [[row[names["validate"]], row[names["of"]], SAME_FILE]]
    assert report["images"] == {"train": 40, "validate": 10, "test": 10}
    assert report["patients_in_two_splits"] == 0


@pytest.mark.parametrize(("height", "width"), [(40, 48), (28, 28), (9, 33)])
def test_no_pair_above_the_limit_is_missed_and_none_below_it_reported(height, width):
    rng = np.random.default_rng(3)
    images = smooth(rng, 400, height, width)
    for row in range(0, 60, 2):  # copies with ever more noise: some above the limit, some below
        images[300 + row] = (images[row] + rng.normal(0, 1 + row / 4, (height, width))).clip(0, 255)
    flat = images.reshape(400, -1).astype(float)
    truth = np.corrcoef(flat)[300:, :300] > LEAST
    prints = Prints(store_of(images, {}), np.arange(400))
    found = prints.twins(np.arange(300), np.arange(300, 400))
    assert 0 < truth.any(1).sum() < 100
    assert sorted(found) == (300 + np.flatnonzero(truth.any(1))).tolist()
    assert all(truth[row - 300, twin] for row, (twin, _) in found.items())


def test_images_of_one_grey_are_twins_of_their_like_alone():
    images = np.repeat(np.array([0, 0, 7, 90], np.uint8), 64).reshape(4, 8, 8)
    prints = Prints(store_of(images, {0: "a", 1: "b", 2: "c", 3: "d"}), np.arange(4))
    assert prints.twins(np.array([0, 2]), np.array([1, 3])) == {1: (0, SAME_PIXELS)}


def test_a_brighter_copy_is_nearly_the_same():
    image = smooth(np.random.default_rng(0), 1, 32, 32)[0]
    images = np.stack([image, (image * 0.8 + 20).astype(np.uint8)])
    assert Prints(store_of(images, {}), np.arange(2)).twins(np.array([0]), np.array([1])) == {1: (0, NEAR)}


def test_images_that_served_pretraining_and_copies_of_such_are_counted_apart():
    report = {"across": [{"twins": [[10, 1, NEAR], [11, 2, SAME_FILE], [12, 1, NEAR]]}]}
    served = served_pretraining(report, np.array([10, 11, 12, 13]), np.array([1, 12]))
    assert served == {"tested": 4, "images": 1, "twins": {SAME_FILE: 0, SAME_PIXELS: 0, NEAR: 1}}


def test_sources_whose_names_give_two_patients_one_id_are_refused(tmp_path):
    sources = []
    for name, patients in (("a", ["b/1", "2", "3", "4"]), ("a/b", ["1", "5", "6", "7"])):
        root = tmp_path / name.replace("/", "-")
        write_table(root, 4)
        splits = ["train", "train", "validate", "test"] if name == "a" else ["test", "train", "validate", "test"]
        table = pd.read_csv(root / "manifest.csv").assign(patient_id=patients, split=splits)
        table.to_csv(root / "manifest.csv", index=False)
        sources.append({"source": "table", "root": str(root), "name": name})
    with pytest.raises(UserError, match=r"^data.sources: found patients in two splits \(1, such as a/b/1\), expected"):
        open_manifest(tiny_config(tmp_path, data__source="mix", data__sources=sources))


# ---------------------------------------------------------------- what is kept and printed


def printed_by_prepare(root: Path, **settings) -> str:
    place = root / "my.yaml"
    values = {"source": "table", "root": str(root / "images"), "image_size": 32, "workers": 1}
    values |= {"store": str(root / "stores")} | settings
    place.write_text(json.dumps({"data": values}))
    return succeed(main, "--config", place)


def test_prepare_warns_names_examples_and_keeps_the_audit(tmp_path):
    names = leaky_table(tmp_path / "images")
    out = printed_by_prepare(tmp_path)
    assert "leak audit of 60 images: no patient in two splits\n" in out
    example = f"{names['validate']} = {names['of']}"
    assert f"warning: 1 of 10 validate images stand in train too (same file 1); such as {example}\n" in out
    assert "warning: 2 of 10 test images stand in train too (same pixels 1, nearly the same 1)" in out
    [kept] = tmp_path.glob("stores/*/audit.json")
    assert len(counts(json.loads(kept.read_text()))) == 2


def test_prepare_warns_of_test_images_among_those_without_labels(tmp_path):
    """Archives go round as re-encoded copies under other names."""
    write_table(tmp_path / "images", 40)
    table = pd.read_csv(tmp_path / "images/manifest.csv")
    tests = table["path"][table["split"] == "test"].tolist()
    (tmp_path / "archive").mkdir()
    shutil.copy(tmp_path / "images" / tests[0], tmp_path / "archive/0.png")
    with Image.open(tmp_path / "images" / tests[1]) as image:
        image.save(tmp_path / "archive/1.png", compress_level=1)
    for number, path in enumerate(tests[2:4], start=2):
        with Image.open(tmp_path / "images" / path) as image:
            image.save(tmp_path / f"archive/{number}.jpg", quality=95)

    archive = {"source": "images", "root": str(tmp_path / "archive")}
    out = printed_by_prepare(tmp_path, unlabelled=[archive])
    kinds = "same file 1, same pixels 1, nearly the same 2"
    assert f"warning: data.unlabelled: 4 of {len(tests)} test images stand there too ({kinds})\n" in out
    assert "validate images stand there" not in out


def test_leaks_are_data_with_the_worst_first_and_name_nobody(tmp_path):
    leaky_table(tmp_path / "images")
    opened = open_data(tiny_config(tmp_path, data__image_size=32).data)
    report = audit(opened.manifest, opened.store)
    report |= {
        "patients_in_two_splits": None,
        "copies_within": {"train": 3},
        "pretraining": {"tested": 10, "images": 2, "twins": {NEAR: 1}},
        "trained_on": {"tested": 10, "train": 1, "validate": 0, "pretraining": 2, "images": 3},
    }
    found = leaks(report)
    assert [leak.severity for leak in found] == ["leak", "leak", "leak", "contamination", "unknown", "note"]
    assert [leak.images for leak in found] == [1, 1, 2, 3, 0, 3]
    assert not [leak for leak in found if ".png" in leak.text]

    lines = audit_lines(report, opened.store.index, named=True)
    assert [line.startswith("warning: ") for line in lines] == [True] * 4 + [False] * 2
    assert lines[4] == "leak audit of 60 images: patients are not all known"


def test_confidential_ids_are_neither_printed_nor_kept(tmp_path):
    leaky_table(tmp_path / "images")
    out = printed_by_prepare(tmp_path, credentialed=True)
    assert "warning: 1 of 10 validate images stand in train too (same file 1)\n" in out
    assert ".png" not in out
    [kept] = tmp_path.glob("stores/*/audit.json")
    assert ".png" not in kept.read_text()


def test_a_clean_data_set_is_said_to_be_clean(tmp_path):
    write_table(tmp_path / "images")
    line = "leak audit of 60 images: no patient in two splits, no image or near copy of one in two\n"
    assert line in printed_by_prepare(tmp_path)


def test_the_audit_is_made_anew_only_for_other_splits(tmp_path, monkeypatch):
    opened = open_data(tiny_config(tmp_path).data)
    first = audited(opened.manifest, opened.store)
    with monkeypatch.context() as patch:
        patch.setattr("data.audit.audit", None)  # not called
        assert audited(opened.manifest, opened.store) == first
    table = pd.read_csv(tmp_path / "images/manifest.csv")
    other_split(table).to_csv(tmp_path / "images/manifest.csv", index=False)
    opened = open_data(tiny_config(tmp_path).data)
    assert audited(opened.manifest, opened.store)["origin"] != first["origin"]


def test_evaluate_prints_the_audit_and_keeps_it_in_the_run(world, tmp_path):
    out = succeed(evaluate, world.classifier, *[word for word in TINY if word.startswith("evaluate")])
    assert "leak audit of 60 images: no patient in two splits" in out
    [kept] = world.classifier.glob("audit.json")
    assert json.loads(kept.read_text())["pretraining"] == {"tested": 10, "images": 0, "twins": dict.fromkeys(KINDS, 0)}


# ---------------------------------------------------------------- real radiographs


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_known_copies_in_pneumoniamnist_are_found(tmp_path):
    archive = SHARED / "pneumoniamnist_dev.npz"
    opened = open_data(
        tiny_config(tmp_path, data__source="medmnist", data__root=str(archive), data__image_size=28).data
    )
    report = audit(opened.manifest, opened.store)
    assert counts(report) == {("train", "validate"): {SAME_FILE: 8}}
    assert report["copies_within"] == {"train": 18, "validate": 0, "test": 0}
