"""A project that was moved or copied, images, stores and runs together, goes on as if nothing had happened."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tiny_world import ONE_EPOCH, SETTINGS, call, mistake, radiograph, succeed, write_config, write_table

from classify.cli import compare, evaluate, finetune, report
from classify.ledger import openings
from data.cli import prepare as main
from data.config import make_config
from data.loader import open_data
from data.preparation import prepare
from data.privacy import data_sets
from mae import load_checkpoint
from mae.cli import pretrain
from mae.dry_run import prepared_data
from mae.engine.tracker import read_metrics

RELATIVE = {"run": "runs/mae", "data.source": "table", "data.root": "images", "data.store": "stores"}
LINEAR = {"finetune.mode": "linear"}
GRID = {
    "seeds": [0],
    "split": "validate",
    "pretrainings": {"own": {}},
    "rows": [{"name": "probe", "pretraining": ["own"], "set": LINEAR}, {"name": "random", "set": LINEAR}],
}
OF_GRID = f"compare={yaml.safe_dump(GRID, default_flow_style=True, width=10**6).strip()}"
MAKE_GRID = ("--config", "tiny.yaml", "run=runs/grid", OF_GRID)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Pretrained, fine-tuned, evaluated and compared, all by paths below the project; its name is not to be reused."""
    root = tmp_path_factory.mktemp("first") / "project"
    write_table(root / "images")
    settings = SETTINGS | ONE_EPOCH | RELATIVE
    write_config(root / "tiny.yaml", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        succeed(pretrain, "--config", "tiny.yaml")
        succeed(finetune, "--checkpoint", "runs/mae/last.pt")
        succeed(evaluate, "runs/mae-full", "evaluate.split=test")
        succeed(compare, *MAKE_GRID)
    return root


@pytest.fixture
def moved(project, tmp_path, monkeypatch) -> Path:
    """A copy elsewhere, while the first is away; times of files are not kept."""
    shutil.copytree(project, tmp_path / "moved", copy_function=shutil.copyfile)
    away = project.with_name("away")
    project.rename(away)
    monkeypatch.chdir(tmp_path / "moved")
    yield tmp_path / "moved"
    away.rename(project)


def stores() -> list[str]:
    return sorted(path.parent.name for path in Path("stores").glob("*/store.json"))


def test_commands_go_on_without_a_word(moved, capsys):
    before = stores()
    outcome = call(main, "--config", "tiny.yaml")
    assert outcome.code == 0 and "the images are the same, so it is used" in outcome.err
    succeed(pretrain, "--config", "tiny.yaml", "pretrain.epochs=2")
    assert [row["epoch"] for row in read_metrics(Path("runs/mae")) if "validate/loss" in row] == [1, 2]
    succeed(finetune, "--checkpoint", "runs/mae/last.pt", "finetune.run=runs/another")
    assert stores() == before


def test_predictions_are_read_back_and_the_ledger_knows_them(moved):
    table = Path("runs/mae-full/predictions/test.csv")
    before = table.stat().st_mtime_ns
    ledger = Path("runs/mae-full/test_openings.jsonl").read_bytes()
    succeed(evaluate, "runs/mae-full", "evaluate.split=test")
    assert table.stat().st_mtime_ns == before
    assert Path("runs/mae-full/test_openings.jsonl").read_bytes() == ledger


def test_a_comparison_is_not_made_again(moved):
    before = {path: path.stat().st_mtime_ns for path in Path("runs/grid").rglob("last.pt")}
    assert before
    succeed(compare, *MAKE_GRID)
    assert {path: path.stat().st_mtime_ns for path in Path("runs/grid").rglob("last.pt")} == before


def test_a_grid_whose_images_and_stores_were_moved_is_finished(tmp_path):
    """Its ensembles and heatmaps read them where they are now, and the ledger is that beside the stores."""
    write_table(tmp_path / "images")
    write_config(tmp_path / "tiny.yaml", SETTINGS | ONE_EPOCH | RELATIVE | {"run": str(tmp_path / "grid")})
    rows = "compare.rows=[{name: V, ensemble: true, set: {finetune.mode: linear}}]"
    words = ["--config", tmp_path / "tiny.yaml", rows, "compare.seeds=[0, 1]", "compare.split=test"]

    def places(name: str) -> list[str]:
        return [f"data.root={tmp_path}/{name}images", f"data.store={tmp_path}/{name}stores"]

    succeed(compare, *words, *places(""))
    for name in ("images", "stores"):
        (tmp_path / name).rename(tmp_path / f"new-{name}")
    (tmp_path / "grid/v-seed1/predictions/test.json").unlink()  # as if the grid had been stopped before
    succeed(compare, *words, *places("new-"))
    assert not (tmp_path / "images").exists() and not (tmp_path / "stores").exists()
    looks = [Path(line["run"]).name for line in openings(tmp_path / "new-stores")]
    assert looks == ["v-seed0", "v-seed1", "v-ensemble", "v-seed1"]
    before = (tmp_path / "grid/report.html").read_bytes()
    succeed(report, tmp_path / "grid")
    assert (tmp_path / "grid/report.html").read_bytes() == before


def test_whole_paths_in_the_config_may_be_changed(moved):
    there = [f"data.root={moved}/images", f"data.store={moved}/stores", f"run={moved}/runs/mae"]
    succeed(pretrain, "--config", "tiny.yaml", *there, "pretrain.epochs=2")
    assert len(stores()) == 1


def test_a_run_whose_settings_name_whole_paths_says_what_to_type(project, tmp_path):
    """A checkpoint chooses no path outside its own run folder; given the new paths, it goes on."""
    places = {key: f"{project}/{path}" for key, path in RELATIVE.items() if key != "data.source"}
    words = [f"{key}={path}" for key, path in places.items()]
    succeed(pretrain, "--config", project / "tiny.yaml", *words, f"run={project}/runs/whole")
    succeed(finetune, "--checkpoint", project / "runs/whole/last.pt")
    succeed(evaluate, project / "runs/whole-full", "evaluate.split=test")
    away = project.with_name("elsewhere")
    project.rename(away)
    try:
        run = away / "runs/whole-full"
        line = mistake(evaluate, run, "evaluate.split=test", keep=run)
        assert f"mae-evaluate {run} data.root=FOLDER" in line
        before = (run / "predictions/test.csv").stat().st_mtime_ns
        succeed(evaluate, run, "evaluate.split=test", f"data.root={away}/images", f"data.store={away}/stores")
        assert (run / "predictions/test.csv").stat().st_mtime_ns == before
    finally:
        away.rename(project)


def test_other_images_under_the_same_names_are_refused(moved):
    rng = np.random.default_rng(7)
    for path in sorted(Path("images").glob("*.png")):
        Image.fromarray(radiograph(False, rng)).save(path)
    line = mistake(pretrain, "--config", "tiny.yaml", "pretrain.epochs=2", keep=moved / "runs")
    assert "runs/mae: found a run made with store = " in line
    assert len(stores()) == 2


def test_a_copy_of_the_stores_alone_is_no_leave_to_show(moved):
    """What counts is where the images really lie; see the tests of consent."""
    checkpoint = load_checkpoint("runs/mae/last.pt")
    assert not set(checkpoint.made_on) & data_sets(checkpoint.config.data)


# ---------------------------------------------------------------- sources


def config_of(place: Path, **data):
    return make_config({"data": {"store": f"{place}/stores", "image_size": 24, "workers": 1, **data}}, "tests").data


def build(root: Path, source: str) -> dict:
    rng = np.random.default_rng(3)
    if source == "medmnist":
        arrays = {}
        for part, count in (("train", 12), ("val", 5), ("test", 3)):
            arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28), np.uint8)
            arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
        root.mkdir()
        np.savez(root / "small.npz", **arrays)
        return {"source": "medmnist", "root": f"{root}/small.npz"}
    for name in ("Normal", "TB"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(radiograph(name == "TB", rng)).save(root / name / f"{number}.png")
    if source == "mix":
        parts = [{"source": "folder", "root": str(root), "name": "a"}]
        parts += [{"source": "images", "root": f"{root}/TB", "name": "b"}]
        return {"source": "mix", "sources": parts}
    return {"source": source, "root": str(root)}


@pytest.mark.parametrize("source", ["folder", "images", "medmnist", "mix"])
def test_the_store_of_any_source_moves_along(source, tmp_path, capsys):
    first = tmp_path / "first"
    first.mkdir()
    settings = build(first / "images", source)
    store = prepare(config_of(first, **settings))
    shutil.copytree(first, tmp_path / "moved", copy_function=shutil.copyfile)
    there = yaml.safe_load(yaml.safe_dump(settings).replace(f"{first}/", f"{tmp_path}/moved/"))
    moved = open_data(config_of(tmp_path / "moved", **there)).store
    assert moved.fingerprint == store.fingerprint and moved.folder.parent == tmp_path / "moved/stores"
    assert len(list((tmp_path / "moved/stores").glob("*/store.json"))) == 1
    assert f"made when the images were at {first}" in capsys.readouterr().err


def test_an_archive_that_was_downloaded_again_has_the_same_store(tmp_path, capsys):
    settings = build(tmp_path / "images", "medmnist")
    store = prepare(config_of(tmp_path, **settings))
    os.utime(settings["root"], ns=(1, 1))
    found, images = prepared_data(config_of(tmp_path, **settings))  # as a dry run does, which makes no store
    assert found is not None and found.store.fingerprint == store.fingerprint and images == 12
    assert open_data(config_of(tmp_path, **settings)).store.fingerprint == store.fingerprint
    assert f"made before the files of {settings['root']} were written anew" in capsys.readouterr().err


def test_a_file_of_another_content_is_another_data_set(tmp_path):
    settings = build(tmp_path / "images", "folder")
    store = prepare(config_of(tmp_path, **settings))
    shutil.copytree(tmp_path / "images", tmp_path / "others")
    rng = np.random.default_rng(5)
    for path in (tmp_path / "others").rglob("*.png"):  # of the same sizes
        size = path.stat().st_size
        Image.fromarray(rng.integers(0, 9, (24, 24), np.uint8)).save(path)
        assert path.stat().st_size <= size
        os.truncate(path, size)
    other = prepare(config_of(tmp_path, **settings | {"root": f"{tmp_path}/others"}))
    assert other.fingerprint != store.fingerprint
    assert not np.array_equal(other.images, store.images)
    assert pd.read_csv(other.folder / "index.csv")["image_id"].tolist() == list(store.index)
