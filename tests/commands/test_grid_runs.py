"""A grid runs, whatever happens to parts of it: tuning, several processes, kills, failures, and what is left to do."""

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from evaluated_runs import weights_equal
from real_processes import ended, members, start_forked, start_forked_jobs, when
from tiny_world import call, files, mistake, succeed

from classify.cli import compare
from data.signals import TRY_AGAIN
from mae import load_checkpoint

ROWS = "compare.rows=[{name: M, pretraining: [mae]}, {name: V}]"
PRETRAINED = "compare.pretrainings={mae: {}}"
RATES = "compare.tune={finetune.optimizer.base_lr: [1.0e-3, 0.5]}"
PAIR = "compare.rows=[{name: V}, {name: W, set: {finetune.drop_path: 0.0}}]"
LONG = ["finetune.epochs=8", "engine.pictures_every=4"]  # long enough for a signal to meet the training


def words(world, folder: Path, *more: str) -> list[str]:
    return ["--config", str(world.config), f"run={folder}", *more]


def written(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def same_runs(folder: Path, whole: Path) -> list[str]:
    """The names of a grid's trainings whose weights equal those of another grid to the last bit."""
    names = sorted(path.parent.name for path in folder.glob("*/best.pt"))
    return [name for name in names if weights_equal(folder / name / "best.pt", whole / name / "best.pt")]


# ---------------------------------------------------------------- tuning and costs


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory) -> Path:
    """A grid of two rows, two seeds and two learning rates, on test images."""
    folder = tmp_path_factory.mktemp("tuned") / "grid"
    succeed(compare, *words(world, folder, PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "compare.split=test"))
    return folder


def test_what_a_pretraining_came_to_is_kept_beside_the_rows(tuned):
    for name, pretraining in written(tuned)["pretrainings"].items():
        best = load_checkpoint(tuned / name / "best.pt")
        assert pretraining["learned"] == {"epoch": best.epoch, "loss": -best.progress["best"], "probe": None}
    assert "Stage one, before any fine-tuning" in (tuned / "comparison.md").read_text()


def test_each_row_keeps_the_setting_that_validation_prefers_for_all_its_seeds(tuned):
    tuning = written(tuned)["tuning"]
    assert [(choice["row"], choice["labelled"], choice["seed"]) for choice in tuning] == [
        ("M", None, 0),
        ("V", None, 0),
    ]
    for choice in tuning:
        assert choice["metric"] == "auc"
        assert len(choice["scores"]) == len(choice["settings"]) == 2
        assert choice["chosen"] == choice["scores"].index(max(choice["scores"]))
        rate = choice["settings"][choice["chosen"]]["finetune.optimizer.base_lr"]
        for config in tuned.glob(f"{choice['row'].lower()}-*seed[01]/config.yaml"):
            assert f"base_lr: {rate}" in config.read_text()


def test_the_trial_that_won_is_the_training_of_the_first_seed(tuned):
    for choice in written(tuned)["tuning"]:
        row = choice["row"].lower()
        [run] = tuned.glob(f"{row}-*seed0")
        assert choice["runs"][choice["chosen"]].startswith(run.name)
        [lost] = tuned.glob(f"tune/{row}-*/best.pt")
        assert lost.parent.name == choice["runs"][1 - choice["chosen"]]
        assert f"tune/{choice['runs'][choice['chosen']]}" in (run / "config.yaml").read_text()


def test_the_first_seed_is_what_it_would_be_if_trained_by_itself(world, tuned, tmp_path):
    [choice] = [choice for choice in written(tuned)["tuning"] if choice["row"] == "V"]
    rate = choice["settings"][choice["chosen"]]["finetune.optimizer.base_lr"]
    alone = f"compare.rows=[{{name: V, set: {{finetune.optimizer.base_lr: {rate}}}}}]"
    succeed(compare, *words(world, tmp_path / "grid", alone, "compare.seeds=[0]"))
    assert same_runs(tmp_path / "grid", tuned) == ["v-seed0"]


def test_what_is_tried_is_never_evaluated(tuned):
    assert len(list(tuned.glob("*/predictions/test.csv"))) == 4
    assert not list(tuned.glob("tune/**/*.csv"))


def test_a_tuned_grid_is_left_alone_and_its_choice_outlives_its_trials(world, tuned, tmp_path):
    copied = shutil.copytree(tuned, tmp_path / "grid")
    for run in copied.glob("tune/*/"):
        shutil.rmtree(run)
    before = {path.relative_to(copied): path.read_bytes() for path in copied.rglob("*.pt")}
    more = [PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "compare.split=test"]
    succeed(compare, *words(world, copied, *more))
    assert {path.relative_to(copied): path.read_bytes() for path in copied.rglob("*.pt")} == before
    assert written(copied)["tuning"] == written(tuned)["tuning"]


def test_another_choice_for_runs_that_are_there_is_one_line(world, tuned, tmp_path):
    copied = shutil.copytree(tuned, tmp_path / "grid")
    [place] = copied.glob("tune/v-seed0.json")
    choice = json.loads(place.read_text())
    place.write_text(json.dumps(choice | {"chosen": 1 - choice["chosen"]}))
    more = [PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "compare.split=test"]
    line = mistake(compare, *words(world, copied, *more), keep=copied)
    assert "found a run made with finetune.optimizer.base_lr" in line


def test_costs_are_counted_with_pretraining_and_tuning_apart(world, tmp_path):
    from classify.compare import compare as run
    from classify.report.costs import cost_rows
    from data.config import load_config

    settings = [f"run={tmp_path}/grid", PRETRAINED, ROWS, RATES]
    comparison = run(load_config(world.config, settings), say=lambda _: None)
    costs = {line.name: line.evaluations[0].summary["cost"] for line in comparison.lines}
    assert all(cost["train_seconds"] > 0 and cost["train_flops"] > 0 for cost in costs.values())
    assert costs["M"]["train_flops"] == costs["V"]["train_flops"]
    assert costs["M"]["tune_flops"] == 2 * costs["M"]["train_flops"]
    assert costs["M"]["pretrain_flops"] > 0
    assert "pretrain_flops" not in costs["V"]
    m, v = cost_rows(comparison, None)
    assert m["Training"] != m["With its pretraining"]
    assert v["Training"] == v["With its pretraining"]
    assert "FLOP" in v["Tuning, in all"]


# ---------------------------------------------------------------- failures

BROKEN = "compare.rows=[{name: V}, {name: Bad, set: {finetune.optimizer.base_lr: 1.0e+30}}]"
IMPATIENT = ["engine.skip_limit=2", "finetune.epochs=3"]


def test_a_cell_that_diverges_costs_no_other(world, tmp_path):
    folder = tmp_path / "grid"
    outcome = call(compare, *words(world, folder, BROKEN, *IMPATIENT))
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith(
        f"error: {folder}: found 1 trainings failed, expected none; the same command tries them again"
    )
    assert "bad-seed0: " in last
    assert "Traceback" not in outcome.err
    assert "| V " in outcome.out
    assert (folder / "report.html").exists()

    # the failed one is tried again, and the others are not
    before = {path: path.stat().st_mtime_ns for path in folder.glob("v-seed0/*.pt")}
    assert call(compare, *words(world, folder, BROKEN, *IMPATIENT)).code == 2
    assert {path: path.stat().st_mtime_ns for path in folder.glob("v-seed0/*.pt")} == before


def test_a_finished_comparison_outlives_what_fails_later(world, tmp_path, monkeypatch):
    from classify import compare as module
    from classify.jobs import Failure
    from data.config import load_config
    from data.errors import UserError

    folder = tmp_path / "grid"
    config = load_config(world.config, [f"run={folder}", "compare.rows=[{name: V}, {name: W}]"])
    module.compare(config, say=lambda _: None)
    before = files(folder)
    monkeypatch.setattr(module, "attempt", lambda work, data_of: Failure("found too little memory"))
    with pytest.raises(UserError, match=f"^{folder}: found 2 trainings of its comparison failing by now, .*stays"):
        module.compare(config, say=lambda _: None)
    assert files(folder) == before


def test_other_images_and_weights_that_are_gone_are_told_before_anything_is_trained(world, tmp_path):
    folder, archive = tmp_path / "grid", tmp_path / "archive"
    images = sorted(world.config.parent.glob("images/*.png"))
    archive.mkdir()
    shutil.copy(images[0], archive)
    own = [f"data.unlabelled=[{{source: images, root: {archive}}}]", "pretrain.keep_epochs=[1]"]
    grid = [PRETRAINED, "compare.rows=[{name: M, pretraining: [mae]}, {name: V}]"]
    succeed(compare, *words(world, folder, *grid, *own))

    kept = folder / "pretrain-mae-seed0/epoch001.pt"
    kept.rename(tmp_path / "away.pt")
    line = mistake(compare, *words(world, folder, *grid, *own), keep=folder)
    assert f"{kept}: found no weights of epoch 1" in line
    (tmp_path / "away.pt").rename(kept)

    shutil.copy(images[1], archive)
    line = mistake(compare, *words(world, folder, *grid, *own), keep=folder)
    assert "pretrain-mae-seed0: found a run made with images = " in line


BRANCH = ["pretrain.epochs=2", "pretrain.optimizer={schedule: constant, warmup_epochs: 0, cooldown_epochs: 0}"]


def test_a_pretraining_may_go_on_from_another_of_its_grid(world, tmp_path):
    folder = tmp_path / "grid"
    kept = "{run}/pretrain-long-seed{seed}/epoch001.pt"
    short = f"{{pretrain.continue_from: '{kept}', pretrain.optimizer.cooldown_epochs: 1}}"
    both = f"compare.pretrainings={{short: {short}, long: {{pretrain.keep_epochs: [1]}}}}"
    rows = "compare.rows=[{name: S, pretraining: [short]}, {name: L, pretraining: [long]}]"
    out = succeed(compare, *words(world, folder, *BRANCH, both, rows, "compare.seeds=[2, 3]"))
    for seed in (2, 3):
        assert out.index(f"] pretrain-long-seed{seed}") < out.index(f"] pretrain-short-seed{seed}")
        config = (folder / f"pretrain-short-seed{seed}/config.yaml").read_text()
        assert f"continue_from: {folder}/pretrain-long-seed{seed}/epoch001.pt" in config

    # a missing one is reported before anything is trained
    rows = "compare.rows=[{name: V}, {name: S, pretraining: [short]}]"
    line = mistake(
        compare, *words(world, tmp_path / "other", *BRANCH, both.replace("long-seed{seed}", "no"), rows), keep=folder
    )
    assert "pretrain-no/epoch001.pt: found no such file" in line
    assert not list((tmp_path / "other").glob("*/*.pt"))


def test_a_row_without_all_its_seeds_says_how_many_failed(world, tmp_path, monkeypatch):
    from classify import compare as module
    from classify.jobs import Failure
    from data.config import load_config

    really = module.attempt

    def attempt(work, data_of):
        failing = work.config.seed == 1 and "v-seed1" in str(work.config.finetune.run)
        return Failure("found too little memory") if failing else really(work, data_of)

    monkeypatch.setattr(module, "attempt", attempt)
    settings = [f"run={tmp_path}/grid", "compare.rows=[{name: V}, {name: W}]", "compare.seeds=[0, 1]"]
    comparison = module.compare(load_config(world.config, settings), say=lambda _: None)
    v, w = comparison.lines
    assert (len(v.evaluations), v.failed) == (1, ("v-seed1: found too little memory",))
    assert (len(w.evaluations), w.failed) == (2, ())
    assert module.failures_of(comparison) == ["v-seed1: found too little memory"]


def test_a_setting_that_diverges_is_not_chosen(world, tmp_path):
    tune = "compare.tune={finetune.optimizer.base_lr: [1.0e+30, 0.001]}"
    folder = tmp_path / "grid"
    succeed(compare, *words(world, folder, "compare.rows=[{name: V}]", tune, *IMPATIENT))
    [choice] = written(folder)["tuning"]
    assert choice["scores"][0] is None
    assert choice["chosen"] == 1


def test_where_nothing_ends_there_is_no_comparison(world, tmp_path):
    folder = tmp_path / "grid"
    bad = "compare.rows=[{name: Bad, set: {finetune.optimizer.base_lr: 1.0e+30}}]"
    outcome = call(compare, *words(world, folder, bad, *IMPATIENT))
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith(f"error: {folder}: found no training that ended, expected some; the first: ")
    assert not (folder / "comparison.json").exists()


# ---------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """The rows of both grids, run by one process."""
    folder = tmp_path_factory.mktemp("alone") / "grid"
    rows = f"{ROWS[:-1]}, {PAIR.partition('}, ')[2]}"
    succeed(compare, *words(world, folder, PRETRAINED, rows, *LONG))
    return folder


def working(process, name: str) -> int | None:
    """The id of the process that trains in the folder of this name, once it has saved something."""
    for number in members(process):
        if number == process.pid:
            continue
        if any(f"/{name}/" in place for place in _open_files(number)):
            return number
    return None


def _open_files(number: int) -> list[str]:
    """Where the open files of a process lie, those left out that it closes meanwhile."""
    places = []
    with suppress(OSError):
        for link in Path(f"/proc/{number}/fd").iterdir():
            with suppress(OSError):
                places.append(str(link.readlink()))
    return places


def test_a_killed_cell_is_shown_as_failed_and_tried_again(world, alone, tmp_path):
    folder = tmp_path / "grid"
    process = start_forked_jobs(*words(world, folder, PRETRAINED, ROWS, *LONG), "--jobs", "2")
    when(process, lambda: (folder / "v-seed0/last.pt").exists() and working(process, "v-seed0"), every=0.02)
    os.kill(working(process, "v-seed0"), signal.SIGKILL)
    code, errors = ended(process)
    assert code == 2, errors
    assert "v-seed0: its process was killed by SIGKILL (out of memory?)" in errors.splitlines()[-1]
    assert "[pretrain-mae-seed0] " in errors
    assert "Traceback" not in errors
    assert [row["Model"] for row in written(folder)["rows"]] == ["M"]

    said = succeed(compare, *words(world, folder, PRETRAINED, ROWS, *LONG))
    assert "| V " in said
    assert same_runs(folder, alone) == ["m-mae-seed0", "pretrain-mae-seed0", "v-seed0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_grid_that_is_ended_leaves_nothing_behind_and_goes_on(number, world, alone, tmp_path):
    folder = tmp_path / "grid"
    command = [*words(world, folder, PAIR, *LONG), "--jobs", "2"]
    if number == signal.SIGTERM:  # with interpreters of their own, as a user's are
        process = start_forked("compare", *command)
    else:
        process = start_forked_jobs(*command)
    when(process, lambda: (folder / "v-seed0/last.pt").exists() and working(process, "v-seed0"), every=0.02)
    process.send_signal(number)
    code, errors = ended(process)  # and all that it has started
    assert code == (TRY_AGAIN if number == signal.SIGTERM else -number), errors
    assert "Traceback" not in errors
    succeed(compare, *words(world, folder, PAIR, *LONG))
    assert same_runs(folder, alone) == ["v-seed0", "w-seed0"]


def test_a_number_of_jobs_is_at_least_one(world, tmp_path):
    line = mistake(
        compare, *words(world, tmp_path / "grid", "compare.rows=[{name: V}]"), "--jobs", "0", keep=world.root
    )
    assert line == "error: command line: --jobs: found 0, expected 1 or more"


# ---------------------------------------------------------------- --dry-run


def test_a_dry_run_tells_what_is_to_do_and_writes_nothing(world, tmp_path):
    before = files(world.root)
    more = [PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "compare.labelled=['50 %', all]"]
    said = succeed(compare, *words(world, tmp_path / "grid", *more), "--dry-run", "--jobs", "2")
    assert files(world.root) == before
    assert not list(tmp_path.iterdir())
    lines = said.splitlines()
    assert sum(line.startswith("to do ") for line in lines) == 2 + 8 + 4
    assert any(line.split()[-1] == "m-mae-n20-seed1" for line in lines)
    tuned = "8 settings tried on validation (each row's best serves as its first seed)"
    assert f"trainings    14: 2 pretrainings, {tuned}, 4 further cells; 0 done, 0 begun" in lines
    assert "at the speed of steps timed now (2 kinds of training)" in said
    assert "with --jobs 2 at least" in said


def test_a_dry_run_of_a_finished_grid_has_nothing_left(world, tuned):
    more = [PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "compare.split=test"]
    before = files(tuned)
    said = succeed(compare, *words(world, tuned, *more), "--dry-run")
    assert files(tuned) == before
    assert "trainings    6: 2 pretrainings, 4 cells; 6 done, 0 begun" in said
    assert "left         0 s of training, at the speed that runs of this grid have logged" in said


def test_a_dry_run_of_a_longer_grid_goes_by_what_was_logged(world, tuned):
    more = [PRETRAINED, ROWS, "compare.seeds=[0, 1, 2]", "compare.split=test", "compare.labelled=[all]"]
    choice = json.loads((tuned / "tune/v-seed0.json").read_text())
    assert choice["chosen"] in (0, 1)
    said = succeed(compare, *words(world, tuned, *more, RATES), "--dry-run")
    assert "3 pretrainings, 6 cells; 6 done, 0 begun" in said
    assert "at the speed that runs of this grid have logged" in said


def test_a_dry_run_needs_neither_images_nor_test_labels(world, tmp_path):
    said = succeed(
        compare, "--config", "phantom", "--dry-run", f"run={tmp_path}/grid", f"data.root={tmp_path}/none", "device=cpu"
    )
    assert "left         not known: the images are not there; see data.root" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_a_run_would_refuse(world, tuned, tmp_path):
    more = [PRETRAINED, "compare.rows=[{name: M, pretraining: [mae], set: {finetune.model: resnet18}}]"]
    line = mistake(compare, *words(world, tmp_path / "grid", *more), "--dry-run", keep=world.root)
    assert line.startswith("error: compare.rows: M: found resnet18, expected vit with a pretraining")
    more = [PRETRAINED, ROWS, RATES, "compare.seeds=[0, 1]", "model.width=24"]
    assert "found a run made with" in mistake(compare, *words(world, tuned, *more), "--dry-run", keep=tuned)
