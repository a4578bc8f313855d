"""Laws of ranks, held by real processes over gloo: two ranks equal one."""

import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from checkout import WORLDS
from tiny_world import tiny_config
from two_ranks import CPU, stage_of

from classify.evaluate import evaluate
from classify.metrics import choose_threshold
from classify.metrics.recalibration import fit_calibration
from data.errors import UserError
from data.loader import open_data
from mae import load_checkpoint
from mae.engine import distributed
from mae.engine.loop import fit
from mae.engine.tracker import read_metrics
from mae.pretrain import pretrain

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    open_data(tiny_config(folder).data)  # the ranks find the finished store
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launched(*command: object) -> tuple[int, str]:
    """Launch the command as two ranks, as a scheduler does: exit code and what they say on stderr."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [forked.Forked(*command, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    return max(abs(rank.wait()) for rank in ranks), "".join(errors)


@pytest.fixture(scope="module")
def done(place) -> str:
    """What two ranks say that do everything but die. Before them, one rank has begun a run and stopped."""
    whole = stage_of("mae", place, torch.float64)
    begun = replace(whole, schedule=replace(whole.schedule, epochs=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(begun), "learning_rate", lambda _, step: whole.schedule.at(step, len(whole.batches)))
        fit(begun, place / "begun-alone")
    assert load_checkpoint(place / "begun-alone/last.pt").progress["epoch"] == 2

    code, errors = launched(WORLDS / "two_ranks.py", "together", place)
    assert code == 0, errors
    return errors


@pytest.fixture(scope="module")
def runs(place, done) -> Path:
    return place


@pytest.mark.parametrize(("sort", "tolerance"), [("64", 1e-9), ("64-parts", 1e-9), ("32", 1e-4)])
@pytest.mark.parametrize("kind", ["mae", "vit"])
def test_two_ranks_equal_one_after_twenty_steps(runs, kind, sort, tolerance):
    name = f"{kind}-{sort}"
    alone = load_checkpoint(runs / f"alone-{name}" / "last.pt")
    shared = load_checkpoint(runs / f"shared-{name}" / "last.pt")
    assert shared.progress["step"] == alone.progress["step"] == 20
    best = max(tolerance, 2e-7)  # validation adds its losses up in float32
    assert shared.progress["best"] == pytest.approx(alone.progress["best"], abs=best)
    for key, value in alone.weights.items():
        one, two = value, shared.weights[key]
        if key.endswith("qkv.bias"):  # softmax does not see the keys' bias: its gradient is rounding, blown up by Adam
            one, two = (torch.stack(bias.chunk(3)[::2]) for bias in (one, two))
        torch.testing.assert_close(two, one, rtol=0, atol=tolerance, msg=key)


def test_shared_runs_log_once_and_the_same(runs):
    alone, shared = (read_metrics(runs / f"{which}-mae-64") for which in ("alone", "shared"))
    assert [row["step"] for row in shared] == [row["step"] for row in alone]
    for one, two in zip(alone, shared, strict=True):
        for name in ("train/loss", "validate/loss", "epoch/train_loss"):
            assert two.get(name) == pytest.approx(one.get(name), abs=1e-6), name


def test_one_process_scores_validation_as_two_ranks_did(runs):
    run = runs / "shared-vit-32"
    evaluation = evaluate(
        run, {"evaluate.split": "validate", "evaluate.batch_size": 3}, open_data(tiny_config(runs).data)
    )
    labels, logits = evaluation.predictions["label"], evaluation.predictions["logit"]
    meta = load_checkpoint(run / "best.pt").meta
    assert evaluation.summary["metrics"]["auc"] == pytest.approx(meta["validate_auc"], abs=1e-12)
    assert evaluation.threshold == pytest.approx(choose_threshold(labels, evaluation.predictions["score"]), abs=1e-6)
    assert fit_calibration(labels, logits).as_dict() == pytest.approx(meta["calibration"]["image"], rel=1e-3)


def test_evaluation_sees_each_image_once_for_any_number(runs):
    assert {path.name for path in runs.glob("covered-*")} == {"covered-0", "covered-1"}


def test_a_checkpoint_of_one_rank_goes_on_with_two(runs):
    whole, parts = (load_checkpoint(runs / name / "last.pt") for name in ("alone-mae-64", "begun-alone"))
    for key, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[key], value, rtol=0, atol=1e-9, msg=key)


def test_a_rank_that_dies_ends_the_others_within_a_minute(place):
    """Under torch's own launcher, which ends the others by a signal, perhaps before they notice anything."""
    words = ["--nproc_per_node=2", f"--master_port={free_port()}", WORLDS / "two_ranks.py", "lose_one", place]
    done = forked.run("from torch.distributed.run import main; main()", *words)
    assert done.returncode != 0
    assert time.time() - (place / "died").stat().st_mtime < 60
    assert load_checkpoint(place / "lost/last.pt").progress["epoch"] == 2
    assert re.search(r"rank +: 1 .*\n *exitcode +: 3 ", done.stderr)


def test_a_rank_notices_within_a_minute_that_another_has_died_and_says_so(tmp_path):
    """Ranks that a scheduler started: nobody else ends the one that is left."""
    open_data(tiny_config(tmp_path).data)
    code, errors = launched(WORLDS / "two_ranks.py", "lose_one", tmp_path)
    assert code != 0
    assert time.time() - (tmp_path / "died").stat().st_mtime < 60
    assert load_checkpoint(tmp_path / "lost/last.pt").progress["epoch"] == 2
    assert "rank 0: lost another rank" in errors


def test_what_a_failed_training_leaves_is_freed_without_waiting(tmp_path):
    """torch 2.13 waits for ever where DDP's reducer is the last to hold a group of gloo's."""
    place = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    rank = forked.Forked(WORLDS / "two_ranks.py", "fail", tmp_path, **place)
    _, errors = rank.communicate(timeout=60)
    assert (rank.wait(), (tmp_path / "failed").exists()) == (0, True), errors


def test_one_ranks_bad_batch_is_skipped_by_all(place, done):
    assert done.count("update skipped") == 4
    named = [row["skipped_images"] for row in read_metrics(place / "skipped") if "skipped_images" in row]
    assert [len(names) for names in named] == [10] * 4


def test_a_batch_that_does_not_divide_is_one_line(place):
    config = tiny_config(place, run=str(place / "odd"), pretrain__optimizer__accumulate=3)
    with pytest.raises(UserError, match=r"batch_size: found 5 .*, expected a multiple of 3"):
        pretrain(config, open_data(config.data))


@pytest.mark.parametrize(("device", "left"), [("cpu", True), ("cuda", False)])
def test_a_rank_that_fails_does_not_wait_for_the_others_to_end_their_group(device, left, monkeypatch):
    """NCCL ends a group only with all of its ranks: the reason would be said when the others are given up."""
    done: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: done.append(backend))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: done.append("left"))
    with pytest.raises(ValueError, match="mine"), distributed.process_group(torch.device(device)):
        raise ValueError("mine")
    assert ("left" in done) == left
    with distributed.process_group(torch.device(device)):
        pass
    assert done[-1] == "left"


def test_alone_there_is_nothing_to_share():
    assert (distributed.rank(), distributed.world_size(), distributed.shard()) == (0, 1, (0, 1))
    model = torch.nn.Linear(2, 3)
    assert distributed.data_parallel(model, CPU) is model
    assert distributed.all_gather_objects("one") == ["one"]
    with distributed.process_group(CPU):
        assert not torch.distributed.is_initialized()
