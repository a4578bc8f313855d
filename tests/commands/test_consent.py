"""Permission to show one data set is none for another, whatever brings the two together."""

import base64
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from mimic_tree import build_mimic_tree
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import ONE_EPOCH, SETTINGS, call, places, radiograph, succeed, write_config, write_table

from classify.cli import compare, evaluate, export, finetune, report
from mae import load_checkpoint
from mae.cli import pretrain
from mae.engine.tracker import read_metrics

SPOILT = import_module("mae.pretrain")


class Worlds(NamedTuple):
    """Open images, a MIMIC tree, and configs of both."""

    root: Path

    @property
    def open(self) -> Path:
        return self.root / "open.yaml"

    @property
    def mimic(self) -> Path:
        return self.root / "mimic.yaml"

    @property
    def of_mimic(self) -> dict[str, str]:
        return {"data.source": "mimic-cxr-jpg", "data.root": f"{self.root}/mimic"}

    @property
    def words_of_mimic(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.of_mimic.items()]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Worlds:
    root = tmp_path_factory.mktemp("worlds")
    rng, sick = np.random.default_rng(0), [number % 3 == 0 for number in range(60)]
    # the drawings have nothing to do with the labels, so that there are mistakes to show
    build_mimic_tree(root / "mimic", [radiograph(number % 2 == 0, rng) for number in range(60)], sick)
    write_table(root / "images")
    settings = SETTINGS | ONE_EPOCH | {"pretrain.panel_images": 2} | places(root, "runs/open")
    write_config(root / "open.yaml", settings)
    write_config(root / "mimic.yaml", settings | Worlds(root).of_mimic | {"run": f"{root}/runs/mimic"})
    return Worlds(root)


@pytest.fixture(scope="module")
def shown_openly(worlds) -> Path:
    """A pretraining on open data whose config shows radiographs."""
    succeed(pretrain, "--config", worlds.open, "report.images=true", f"run={worlds.root}/runs/shown")
    return worlds.root / "runs/shown/last.pt"


@pytest.fixture(scope="module")
def of_mimic(worlds) -> Path:
    succeed(pretrain, "--config", worlds.mimic)
    return worlds.root / "runs/mimic/last.pt"


def pictures(folder: Path) -> set[str]:
    """The radiographs that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag for tag in events.Tags()["images"] if tag.startswith(("reconstruction", "worst_mistakes"))}


def grid(worlds: Worlds, folder: Path, **pretraining: object) -> list[str]:
    """A comparison on open images with a pretraining on MIMIC's, besides one on its own."""
    of_mimic = worlds.of_mimic | {key.replace("__", "."): value for key, value in pretraining.items()}
    pretrainings = {"own": {}, "other": of_mimic}
    back = {"data.source": "table", "data.root": f"{worlds.root}/images"}
    rows = [{"name": "MAE", "pretraining": ["own", "other"], "set": back}]
    compared = {"split": "test", "pretrainings": pretrainings, "rows": rows}
    return [f"compare={yaml.safe_dump(compared, default_flow_style=True, width=10**6).strip()}", f"run={folder}"]


def embedded(page: str, of_mistakes: bool = False) -> int:
    """How many pictures of radiographs the page holds: of reconstructions, or of mistakes."""
    before, _, after = page.partition('<section id="mistakes"')
    page = after if of_mistakes else before
    found = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page)
    assert all(base64.b64decode(picture) for picture in found)
    return len(found)


# ---------------------------------------------------------------- a comparison


@pytest.mark.parametrize(
    ("wished", "shown", "mistakes"),
    [([], 1, False), (["report.images=true"], 1, True), (["report.images=false"], 0, False)],
    ids=["nothing said", "for the comparison's own data", "forbidden"],
)
def test_a_report_asks_the_data_of_each_pretraining(worlds, tmp_path, wished, shown, mistakes):
    printed = succeed(compare, "--config", worlds.open, *wished, *grid(worlds, tmp_path / "grid"))
    page = (tmp_path / "grid/report.html").read_text()
    assert embedded(page) == shown
    assert bool(embedded(page, of_mistakes=True)) is mistakes  # of the comparison's own images
    assert "pretrain-other-seed0" in page.partition("Images are withheld")[2].partition("</p>")[0]
    for text in (printed, page, (tmp_path / "grid/comparison.md").read_text()):
        assert "Made from credentialed data (mimic-cxr-jpg): check the data use agreement" in text
    assert not pictures(tmp_path / "grid/pretrain-other-seed0")

    # made again, it shows the same, to the same readers
    (tmp_path / "grid/report.html").unlink()
    assert "Made from credentialed data (mimic-cxr-jpg)" in succeed(report, tmp_path / "grid")
    assert (tmp_path / "grid/report.html").read_text() == page
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "grid").rglob("*")} == {0}


def test_a_pretraining_may_say_itself_that_its_images_are_shown(worlds, tmp_path):
    succeed(compare, "--config", worlds.open, *grid(worlds, tmp_path / "grid", report__images=True))
    page = (tmp_path / "grid/report.html").read_text()
    assert embedded(page) == 2
    assert "The report shows radiographs of mimic-cxr-jpg." in page


def test_a_picture_does_not_outlive_the_consent_to_it(worlds, tmp_path):
    folder = tmp_path / "grid"
    succeed(compare, "--config", worlds.open, *grid(worlds, folder, report__images=True))
    assert len(list(folder.glob("reconstructions/*"))) == 2
    succeed(compare, "--config", worlds.open, *grid(worlds, folder))
    assert [path.name for path in folder.glob("reconstructions/*")] == ["pretrain-own-seed0.png"]
    succeed(report, folder)
    assert embedded((folder / "report.html").read_text()) == 1


def test_what_a_config_allows_is_not_handed_to_a_pretraining_on_other_data(worlds, tmp_path):
    words = ["data.credentialed=false", "report.images=true"]
    succeed(compare, "--config", worlds.open, *words, *grid(worlds, tmp_path / "grid"))
    assert embedded((tmp_path / "grid/report.html").read_text()) == 1


# ---------------------------------------------------------------- a checkpoint


@pytest.mark.parametrize(("given", "shown"), [([], False), (["report.images=true"], True)])
def test_a_checkpoint_hands_no_consent_to_other_data(worlds, shown_openly, tmp_path, given, shown):
    run = tmp_path / "run"
    assert pictures(shown_openly.parent)
    words = [*worlds.words_of_mimic, *given, f"finetune.run={run}"]
    succeed(finetune, "--checkpoint", shown_openly, *words)
    assert bool(pictures(run)) is shown
    assert load_checkpoint(run / "best.pt").config.report.images is (True if shown else None)


def test_a_variable_or_link_that_leads_elsewhere_by_now_hands_on_no_consent(worlds, tmp_path, monkeypatch):
    write_table(tmp_path / "others")
    for name in ("others", "images"):
        (tmp_path / f"to-{name}").symlink_to(tmp_path / "others" if name == "others" else worlds.root / "images")
    monkeypatch.setenv("PLACE", f"{tmp_path}/to-images")
    there = ["data.root=${PLACE}", f"data.store={tmp_path}/stores"]
    succeed(pretrain, "--config", worlds.open, "report.images=true", f"run={tmp_path}/mae", *there)
    words = ["--checkpoint", tmp_path / "mae/last.pt", "data.credentialed=true"]

    succeed(finetune, *words, f"finetune.run={tmp_path}/same")
    assert pictures(tmp_path / "same")
    monkeypatch.setenv("PLACE", f"{tmp_path}/to-others")
    succeed(finetune, *words, f"finetune.run={tmp_path}/other")
    assert not pictures(tmp_path / "other")


def test_a_checkpoint_of_a_stranger_hands_on_no_consent(worlds, shown_openly, tmp_path):
    """Whatever it says of the data that it was made on."""
    copy = tmp_path / "sent/last.pt"
    copy.parent.mkdir()
    copy.write_bytes(shown_openly.read_bytes())
    words = [f"data.root={worlds.root}/images", f"data.store={tmp_path}/stores", "data.credentialed=true"]
    succeed(finetune, "--checkpoint", copy, *words, f"finetune.run={tmp_path}/run")
    assert load_checkpoint(tmp_path / "run/best.pt").config.report.images is None
    assert not pictures(tmp_path / "run")


def test_a_config_given_beside_a_checkpoint_says_it_for_its_own_data(worlds, shown_openly, tmp_path):
    words = ["--config", worlds.mimic, "--checkpoint", shown_openly, f"finetune.run={tmp_path}/run"]
    succeed(finetune, *words)
    assert not pictures(tmp_path / "run")


def test_an_evaluation_on_other_data_names_nobody(worlds, shown_openly, tmp_path):
    run = tmp_path / "run"
    succeed(finetune, "--checkpoint", shown_openly, f"finetune.run={run}")
    # the same image in two splits, so that the audit has an example to name
    rng, sick = np.random.default_rng(0), [number % 3 == 0 for number in range(60)]
    images = [radiograph(one, rng) for one in sick]
    images[16] = images[0]
    metadata = build_mimic_tree(tmp_path / "twice", images, sick)
    there = ["data.source=mimic-cxr-jpg", f"data.root={tmp_path}/twice", f"data.store={tmp_path}/stores"]
    said = call(evaluate, run, *there)
    assert said.code == 0
    assert "stand in train too" in said.out
    assert not [name for name in metadata["dicom_id"] if name in said.out + said.err]
    asked = succeed(evaluate, run, *there, "report.images=true")
    assert metadata["dicom_id"][0] in asked


def test_weights_of_credentialed_data_say_so_wherever_they_go(worlds, of_mimic, tmp_path):
    run, further = tmp_path / "run", tmp_path / "further"
    open_data = ["--config", worlds.open]
    succeed(finetune, *open_data, "--checkpoint", of_mimic, f"finetune.run={run}")
    succeed(pretrain, *open_data, f"model.init={of_mimic}", f"run={further}")
    said = "Made from credentialed data (mimic-cxr-jpg): check"
    assert said in succeed(evaluate, run)
    assert said in succeed(export, "--checkpoint", further / "last.pt", "--out", tmp_path / "out")
    assert load_checkpoint(further / "best.pt").credentialed == ("mimic-cxr-jpg",)
    for folder in (run, further, tmp_path / "out"):
        assert {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))} == {0}


def test_open_data_is_nobodys_secret(worlds, shown_openly, tmp_path):
    succeed(finetune, "--checkpoint", shown_openly, f"finetune.run={tmp_path}/run")
    assert load_checkpoint(tmp_path / "run/best.pt").credentialed == ()
    assert "credentialed data" not in succeed(evaluate, tmp_path / "run")


# ---------------------------------------------------------------- skipped updates


def no_number(step: Callable) -> Callable:
    return lambda *arguments: step(*arguments) * float("nan")


@pytest.mark.parametrize(("given", "named"), [([], False), (["report.images=true"], True)])
def test_skipped_updates_name_credentialed_images_only_on_request(worlds, tmp_path, monkeypatch, given, named):
    monkeypatch.setattr(SPOILT, "pretrain_step", no_number(SPOILT.pretrain_step))
    words = ["--config", worlds.mimic, f"run={tmp_path}/run", "engine.skip_limit=2", *given]
    outcome = call(pretrain, *words)
    assert outcome.code == 2
    said = outcome.err + outcome.out
    [first, *_] = [row["skipped_images"] for row in read_metrics(tmp_path / "run") if "skipped_images" in row]
    shape = r"[0-9a-f-]{44}" if named else r"row \d+"
    assert all(re.fullmatch(shape, name) for name in first)
    assert bool(re.search(r"images [0-9a-f]{8}-", said)) is named
