"""Laws of the engine: resuming, checkpoints, run folders, the schedule and the optimizer's groups."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import tiny_config
from torch import nn

import classify.finetune
import mae.engine.checkpoint
import mae.engine.loop
import mae.pretrain
from classify.finetune import build_model, finetune, finetune_stage, labelled_splits
from data.config import Root, UserError
from data.loader import Data, open_data
from mae import build_mae, load_checkpoint
from mae.engine.checkpoint import FORMAT, Checkpoint, load_weights, save_checkpoint
from mae.engine.loop import Stage, Validation, evaluating, fit
from mae.engine.optim import adamw, parameter_groups, set_learning_rate, warmup_cosine
from mae.engine.run import check_run, device_of, is_finished, start_run
from mae.engine.tracker import Tracker, read_metrics
from mae.pretrain import pretrain, pretrain_stage

CPU = torch.device("cpu")
PRETRAIN_STEPS, FINETUNE_STEPS = 40 // 5, 40 // 7  # an epoch


class Stop(Exception):
    """What interrupts a run."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def opened(place) -> Data:
    return open_data(tiny_config(place))


@pytest.fixture(scope="module")
def pretrained(place, opened) -> Path:
    return pretrain(tiny_config(place, pretrain__epochs=1), opened) / "last.pt"


OF_THE_MACHINE = {"train/images_per_second", "train/data_wait_share", "train/peak_memory_gb"}
STAGES = {
    "mae": {},
    "full": {"finetune__mode": "full", "finetune__drop_path": 0.5},
    "linear": {"finetune__mode": "linear"},
    "resnet18": {"finetune__model": "resnet18", "finetune__stem": "imagenet"},
    "random": {"finetune__mode": "full", "finetune__augment__enabled": False},
}


@pytest.fixture(params=["mae", "full", "linear"])
def runner(request, place, opened, pretrained) -> "Runner":
    return Runner(request.param, place, opened, pretrained)


class Runner:
    """runner(folder, **changed) → folder, by the real function of a stage."""

    def __init__(self, kind: str, place: Path, opened: Data, pretrained: Path):
        self.kind, self.place, self.opened = kind, place, opened
        self.checkpoint = pretrained if kind in ("full", "linear") else None
        self.room, self.step = (
            (mae.pretrain, "pretrain_step") if kind == "mae" else (classify.finetune, "finetune_step")
        )
        self.steps = PRETRAIN_STEPS if kind == "mae" else FINETUNE_STEPS

    def __call__(self, folder: Path, **changed) -> Path:
        changed = STAGES[self.kind] | changed
        if self.kind == "mae":
            return pretrain(tiny_config(self.place, run=str(folder), **changed), self.opened)
        return finetune(tiny_config(self.place, finetune__run=str(folder), **changed), self.checkpoint, self.opened)

    def stopping(self, monkeypatch, call: int) -> list[int]:
        """Let the n-th training step raise; returns the epochs of the steps so far."""
        step, epochs = getattr(self.room, self.step), []

        def interrupted(config, model, batch, epoch):
            epochs.append(epoch)
            if len(epochs) == call:
                raise Stop
            return step(config, model, batch, epoch)

        monkeypatch.setattr(self.room, self.step, interrupted)
        return epochs


def assert_same(one, two, place: str = "") -> None:
    """Bit for bit, tensors and plain values alike."""
    assert type(one) is type(two), place
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, place
        assert one.equal(two), place
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), place
        for key in one:
            assert_same(one[key], two[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), place
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{place}[{number}]")
    else:
        assert one == two, place


def assert_same_runs(one: Path, two: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = load_checkpoint(one / name), load_checkpoint(two / name)
        for part in ("kind", "weights", "optimizer", "progress", "meta"):
            assert_same(getattr(a, part), getattr(b, part), f"{name} {part}")
    logs = [
        [{k: v for k, v in row.items() if k not in OF_THE_MACHINE} for row in read_metrics(folder)]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("runner", STAGES, indirect=True)
def test_resume_equals_no_interruption_bit_for_bit(runner, tmp_path, monkeypatch):
    half = 1 if runner.kind == "resnet18" else 2  # of its epochs; its checkpoints are large
    epochs = {"pretrain__epochs": 2 * half, "finetune__epochs": 2 * half}
    whole = runner(tmp_path / "whole", **epochs)
    with monkeypatch.context() as patch:
        runner.stopping(patch, half * runner.steps + 3)  # in the middle of an epoch
        with pytest.raises(Stop):
            runner(tmp_path / "parts", **epochs)
    assert load_checkpoint(tmp_path / "parts/last.pt").progress["epoch"] == half
    with monkeypatch.context() as patch:
        seen = runner.stopping(patch, 0)
        runner(tmp_path / "parts", **epochs)
    assert seen == sorted(list(range(half, 2 * half)) * runner.steps)
    assert_same_runs(whole, tmp_path / "parts")
    assert load_checkpoint(whole / "last.pt").progress["step"] == 2 * half * runner.steps


def test_a_checkpoint_inside_an_epoch_resumes_exactly(runner, tmp_path, monkeypatch):
    often = {"engine__log_every": 2}
    whole = runner(tmp_path / "whole", **often)
    with monkeypatch.context() as patch:
        runner.stopping(patch, 2 * runner.steps + 4)
        with pytest.raises(Stop):
            runner(tmp_path / "parts", engine__save_minutes=1e-9, **often)
    progress = load_checkpoint(tmp_path / "parts/last.pt").progress
    assert (progress["epoch"], progress["batch"], progress["step"]) == (2, 2, 2 * runner.steps + 2)
    with monkeypatch.context() as patch:
        epochs = runner.stopping(patch, 0)
        runner(tmp_path / "parts", **often)
    assert epochs == [2] * (runner.steps - 2) + [3] * runner.steps
    assert_same_runs(whole, tmp_path / "parts")


def test_many_interruptions_equal_none(opened, place, pretrained, tmp_path, monkeypatch):
    runner = Runner("mae", place, opened, pretrained)
    often = {"engine__log_every": 3}
    whole, starts = runner(tmp_path / "whole", **often), 0
    while True:
        starts += 1
        with monkeypatch.context() as patch:
            runner.stopping(patch, 5)
            try:
                runner(tmp_path / "parts", engine__save_minutes=1e-9, **often)
                break
            except Stop:
                continue
    assert starts > 4
    assert_same_runs(whole, tmp_path / "parts")


def test_a_stop_during_validation_costs_that_epoch_only(opened, place, pretrained, tmp_path, monkeypatch):
    runner = Runner("mae", place, opened, pretrained)
    whole = runner(tmp_path / "whole")
    validate, calls = mae.pretrain.validate, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise Stop
        return validate(*arguments)

    monkeypatch.setattr(mae.pretrain, "validate", interrupted)
    with pytest.raises(Stop):
        runner(tmp_path / "parts")
    runner(tmp_path / "parts")
    assert len(calls) == 5
    assert_same_runs(whole, tmp_path / "parts")


def test_one_seed_gives_one_run_and_another_seed_another(runner, tmp_path):
    epochs = {"pretrain__epochs": 2, "finetune__epochs": 2}
    runs = [runner(tmp_path / str(number), **epochs) for number in range(2)]
    assert_same_runs(*runs)
    other = load_checkpoint(runner(tmp_path / "other", seed=1, **epochs) / "last.pt").weights
    weights = load_checkpoint(runs[0] / "last.pt").weights
    assert any(not weights[name].equal(other[name]) for name in weights)


def test_training_leaves_the_global_generator_alone(runner, tmp_path):
    before = torch.get_rng_state()
    runner(tmp_path / "run", pretrain__epochs=1, finetune__epochs=1)
    assert torch.get_rng_state().equal(before)


def test_global_generator_does_not_matter(runner, tmp_path):
    epochs = {"pretrain__epochs": 1, "finetune__epochs": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = runner(tmp_path / "one", **epochs)
        torch.manual_seed(2)
        two = runner(tmp_path / "two", **epochs)
    assert_same_runs(one, two)


def test_a_finished_run_is_left_alone(runner, tmp_path, monkeypatch):
    epochs = {"pretrain__epochs": 1, "finetune__epochs": 1}
    runner(tmp_path / "run", **epochs)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    steps = runner.stopping(monkeypatch, 0)
    runner(tmp_path / "run", **epochs)
    assert not steps
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_epochs_may_be_raised(runner, tmp_path, monkeypatch):
    runner(tmp_path / "run", pretrain__epochs=1, finetune__epochs=1)
    steps = runner.stopping(monkeypatch, 0)
    runner(tmp_path / "run", pretrain__epochs=3, finetune__epochs=3)
    assert steps == [1] * runner.steps + [2] * runner.steps
    assert load_checkpoint(tmp_path / "run/last.pt").progress["epoch"] == 3


def test_probe_keeps_the_pretrained_encoder(opened, place, pretrained, tmp_path):
    folder = Runner("linear", place, opened, pretrained)(tmp_path / "run")
    before, after = load_checkpoint(pretrained).weights, load_checkpoint(folder / "last.pt").weights
    encoder = [name for name in before if name.startswith("encoder.")]
    assert encoder
    for name in encoder:
        assert after[name].equal(before[name]), name


# ---------------------------------------------------------------- the loop, with a stage of four numbers


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head, self.frozen = nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Dropout(0.5).eval()

    def forward(self, x):
        return self.head(self.norm(x))


class ToyBatch:
    def __init__(self, number: int):
        self.x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))

    def to(self, device):
        return self


class ToyBatches:
    batch_size = 4

    def __len__(self):
        return 5

    def epoch(self, epoch, start):
        return (ToyBatch(10 * epoch + number) for number in range(start, 5))


def toy_stage(config: Root, scores=(), step=None, **changed) -> Stage:
    """A stage whose validation scores are given, one an epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Toy()
    scores = iter(scores)

    def validate(model, epoch):
        assert not model.training
        return Validation({"validate/score": (score := next(scores, 0.0))}, score, {"of": score})

    return Stage(
        **{
            "kind": "toy",
            "config": config,
            "device": CPU,
            "model": model,
            "optimizer": adamw(parameter_groups(model.named_parameters(), 0.0), (0.9, 0.999)),
            "batches": ToyBatches(),
            "step": step or (lambda model, batch, epoch: model(batch.x).square().mean()),
            "validate": validate,
            "epochs": 4,
            "warmup_epochs": 1,
            "peak_lr": 0.1,
            "min_lr": 0.01,
        }
        | changed
    )


@pytest.fixture(scope="module")
def config(place) -> Root:
    return tiny_config(place)


def test_best_follows_validation(config, tmp_path):
    fit(toy_stage(config, [0.2, 0.7, 0.4, 0.7]), tmp_path)
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert (best.progress["epoch"], best.progress["best"], best.meta["of"]) == (2, 0.7, 0.7)  # the first of equals
    assert (last.progress["epoch"], last.progress["best"], last.meta["of"]) == (4, 0.7, 0.7)
    assert best.optimizer is None


def test_the_last_epoch_is_always_validated(config, tmp_path):
    fit(toy_stage(config, [0.1, 0.2], epochs=5, validate_every=3), tmp_path)
    assert [row["epoch"] for row in read_metrics(tmp_path) if "epoch" in row] == [3, 5]


def test_modules_are_in_training_mode_after_the_first_validation(config, tmp_path):
    modes = []

    def step(model, batch, epoch):
        modes.append((epoch, model.training, model.norm.training))
        return model(batch.x).square().mean()

    stage = toy_stage(config, step=step)
    stage.model.eval()
    fit(stage, tmp_path)
    assert {mode[1:] for mode in modes} == {(True, True)}
    assert {mode[0] for mode in modes} == {0, 1, 2, 3}
    assert stage.model.norm.num_batches_tracked == 20


def test_evaluation_restores_each_modules_mode():
    model = Toy()
    model.head.eval()
    before = [module.training for module in model.modules()]

    def look(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        return 7

    assert evaluating(model, look) == 7
    assert [module.training for module in model.modules()] == before
    with pytest.raises(Stop):
        evaluating(model, lambda model: (_ for _ in ()).throw(Stop))
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_metrics_show_the_mean_loss_of_an_epoch(place, tmp_path):
    config = tiny_config(place, engine__log_every=2)
    losses = []

    def step(model, batch, epoch):
        losses.append(loss := model(batch.x).square().mean())
        return loss

    fit(toy_stage(config, step=step), tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "train/loss" in row][:3] == [2, 4, 5]
    for epoch, row in enumerate(row for row in rows if "epoch" in row):
        mean = sum(loss.item() for loss in losses[5 * epoch : 5 * epoch + 5]) / 5
        assert row["epoch/train_loss"] == pytest.approx(mean, rel=1e-6)


def spoiling(kind: str, wanted):
    """A step whose loss or gradient is not finite in the wanted calls (counted from 1)."""
    calls = []

    def step(model, batch, epoch):
        calls.append(epoch)
        loss = model(batch.x).square().mean()
        if len(calls) not in wanted:
            return loss
        return loss * math.nan if kind == "loss" else loss + (loss * 0).sqrt()  # 0, of infinite slope

    return step


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_updates_that_are_never_finite_stop_and_keep_the_checkpoint(spoil, place, tmp_path):
    config = tiny_config(place, engine__skip_limit=3)
    with pytest.raises(UserError) as caught:
        fit(toy_stage(config, step=spoiling(spoil, range(11, 99))), tmp_path)
    assert "loss or gradient is not finite at step 13" in str(caught.value)
    assert "3 updates in a row" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = load_checkpoint(tmp_path / "last.pt")
    assert kept.progress["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in kept.weights.values())


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped_named_and_leaves_no_trace(spoil, config, tmp_path, capsys):
    stage = toy_stage(config, epochs=1, step=spoiling(spoil, {3}), name_images=lambda batch: ["bad-one"])
    fit(stage, tmp_path)
    assert "not finite at step 3 (images bad-one): update skipped" in capsys.readouterr().err
    rows = read_metrics(tmp_path)
    assert [row["skipped_images"] for row in rows if "skipped_images" in row] == [["bad-one"]]
    assert rows[-1]["epoch"] == 1
    assert math.isfinite(rows[-1]["epoch/train_loss"])
    assert all(tensor.isfinite().all() for tensor in stage.model.state_dict().values())
    assert load_checkpoint(tmp_path / "last.pt").progress["skipped"] == 1
    assert {state["step"].item() for state in stage.optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("limit", [None, 0.01])
def test_gradients_are_clipped_where_asked(limit, config, tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def watched(optimizer, *rest):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(toy_stage(config, clip_grad=limit, epochs=1), tmp_path)
    assert all(norm <= 0.01001 for norm in norms) if limit else max(norms) > 0.05
    assert read_metrics(tmp_path)[0]["train/gradient_norm"] > 0.05  # before clipping


# ---------------------------------------------------------------- checkpoints


def checkpoint_of(number: float, kind: str = "mae") -> Checkpoint:
    return Checkpoint(kind, {"seed": 0}, {"weight": torch.full((2, 3), number)}, {"n": number}, None, {"epoch": 1})


def refusal(path: Path, kind: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, kind)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_reads_back_as_written(tmp_path):
    save_checkpoint(checkpoint_of(5), tmp_path / "last.pt")
    found = load_checkpoint(tmp_path / "last.pt", "mae")
    assert_same(found.weights, checkpoint_of(5).weights)
    assert (found.kind, found.settings, found.meta, found.progress) == ("mae", {"seed": 0}, {"n": 5}, {"epoch": 1})
    assert found.place == str(tmp_path / "last.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_checkpoint(moment, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint_of(1), path)

    def torn(content, file):
        file.write(b"PK\x03\x04 half of a checkpoint")
        raise Stop

    def crash(*arguments):
        raise Stop

    where = {"write": (mae.engine.checkpoint.torch, "save", torn), "fsync": (os, "fsync", crash)}
    with monkeypatch.context() as patch:
        patch.setattr(*where.get(moment, (Path, "replace", crash)))
        with pytest.raises(Stop):
            save_checkpoint(checkpoint_of(2), path)
    assert load_checkpoint(path).meta == {"n": 1}
    save_checkpoint(checkpoint_of(3), path)
    assert load_checkpoint(path).meta == {"n": 3}


class Code:
    """A pickle of this would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_brings_code_is_refused_and_not_run(tmp_path):
    torch.save({"format": FORMAT, "kind": "mae", "meta": Code(tmp_path / "ran")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    torch.save(nn.Linear(2, 3), tmp_path / "c.pt")
    for name in "abc":
        assert "found an unreadable or foreign file, expected a checkpoint" in refusal(tmp_path / f"{name}.pt")
    assert not (tmp_path / "ran").exists()


def test_foreign_and_broken_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(checkpoint_of(5), path)
    whole = path.read_bytes()
    for content in (b"", b"text", bytes(range(256)), pickle.dumps({"a": 1}), whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "unreadable or foreign" in refusal(path)
    for foreign in ({"model": {"weight": torch.ones(2)}}, [1, 2], {"format": "mae-cxr 999"}):
        torch.save(foreign, path)
        assert f"found a torch file of another program, expected a checkpoint ({FORMAT})" in refusal(path)
    assert "found no such file" in refusal(tmp_path / "absent.pt")
    assert "found a folder" in refusal(tmp_path)


def test_another_kind_of_checkpoint_is_refused(tmp_path, place, opened):
    save_checkpoint(checkpoint_of(5, "classifier"), tmp_path / "last.pt")
    assert "found a checkpoint of kind classifier, expected mae" in refusal(tmp_path / "last.pt", "mae")
    with pytest.raises(UserError, match="expected mae"):
        finetune(tiny_config(place), tmp_path / "last.pt", opened)


def test_weights_of_another_size_are_refused_and_nothing_is_loaded(pretrained):
    model = build_mae("vit_tiny_patch16", 12, patch_size=4, width=16, depth=2, heads=2, decoder_depth=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, load_checkpoint(pretrained))
    assert "decoder.blocks.0.attention.out.bias: found (8,), expected (128,)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(dict(model.state_dict()), before)


def test_a_checkpoint_brings_its_config(pretrained):
    config = load_checkpoint(pretrained).config
    assert config.model.width == 12
    assert config.data.image_size == 12


# ---------------------------------------------------------------- run folders


def refused_run(folder: Path, config: Root, facts: dict) -> str:
    with pytest.raises(UserError) as caught:
        check_run(folder, config, ("seed", "precision", "data", "model", "pretrain"), facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_of_another_config_is_refused_by_the_settings_name(place, tmp_path):
    facts = {"store": "abc"}
    start_run(tmp_path, tiny_config(place), facts)
    for key, then, now in (
        ("seed", 0, 3),
        ("precision", "fp32", "bf16"),
        ("model.width", 12, 24),
        ("pretrain.mask_ratio", 0.75, 0.5),
        ("pretrain.optimizer.base_lr", 0.05, 0.1),
        ("pretrain.augment.flip", 0.0, 0.5),
        ("data.uncertain", "unknown", "positive"),
    ):
        message = refused_run(tmp_path, tiny_config(place, **{key: now}), facts)
        assert f"{tmp_path}: found a run made with {key} = {then}, expected {now}; choose another" in message
    assert "store = abc, expected def" in refused_run(tmp_path, tiny_config(place), {"store": "def"})


def test_what_does_not_change_the_result_may_change(place, tmp_path):
    facts, sections = {"store": "abc"}, ("seed", "precision", "data", "model", "pretrain")
    check_run(tmp_path, tiny_config(place), sections, facts)  # an empty folder
    start_run(tmp_path, tiny_config(place), facts)
    check_run(tmp_path, tiny_config(place), sections, facts)
    free = ("pretrain__epochs", 9), ("engine__save_minutes", 1.0), ("data__store", "x"), ("data__workers", 2)
    for key, value in (*free, ("finetune__epochs", 9), ("finetune__mode", "linear"), ("run", "elsewhere")):
        check_run(tmp_path, tiny_config(place, **{key: value}), sections, facts)


def test_commands_refuse_a_run_of_another_config(place, opened, tmp_path):
    changed = {"run": str(tmp_path / "run"), "pretrain__epochs": 1}
    pretrain(tiny_config(place, **changed), opened)
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(UserError, match=r"pretrain.mask_ratio = 0.75, expected 0.5"):
        pretrain(tiny_config(place, **changed, pretrain__mask_ratio=0.5), opened)
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_run_folder_records_each_start(place, tmp_path):
    for _ in range(2):
        start_run(tmp_path, tiny_config(place), {"store": "abc"})
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["facts"] == {"store": "abc"}
    assert len(record["starts"]) == 2
    assert record["starts"][0]["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["width"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


def test_is_finished_reads_the_checkpoint(tmp_path):
    assert not is_finished(tmp_path, 1)
    save_checkpoint(checkpoint_of(0), tmp_path / "last.pt")
    assert is_finished(tmp_path, 1)
    assert not is_finished(tmp_path, 2)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name, place):
    with pytest.raises(UserError, match=f"device: found '{name}', which is not available") as caught:
        device_of(tiny_config(place, device=name))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- tracker


def test_what_was_logged_after_the_resumed_step_is_dropped(tmp_path):
    tracker = Tracker(tmp_path, 0)
    for step in (2, 4, 6):
        tracker.scalars(step, {"train/loss": step / 2})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # torn by a kill
    tracker = Tracker(tmp_path, 4)
    tracker.scalars(6, {"train/loss": 7.0})
    tracker.close()
    assert read_metrics(tmp_path) == [
        {"step": 2, "train/loss": 1.0},
        {"step": 4, "train/loss": 2.0},
        {"step": 6, "train/loss": 7.0},
    ]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tracker = Tracker(tmp_path, start)
        for step in steps:
            tracker.scalars(step, {"train/loss": float(start)})
        tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0)]


def test_a_folder_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


# ---------------------------------------------------------------- schedule and groups


def test_warmup_is_linear_and_the_cosine_ends_at_its_floor():
    rates = [warmup_cosine(step, 5, 25, 0.8, 0.2) for step in range(26)]
    assert rates[:6] == pytest.approx([0, 0.16, 0.32, 0.48, 0.64, 0.8])
    assert rates[15] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.2)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert warmup_cosine(26, 5, 25, 0.8, 0.2) == pytest.approx(0.2)
    for step in range(5, 26):
        expected = 0.2 + 0.3 * (1 + math.cos(math.pi * (step - 5) / 20))
        assert rates[step] == pytest.approx(expected)


def test_schedules_without_warmup_or_without_an_end():
    assert warmup_cosine(0, 0, 7, 0.5) == 0.5
    assert warmup_cosine(3, 7, 7, 0.7) == pytest.approx(0.3)
    assert warmup_cosine(7, 7, 7, 0.7) == 0.7


def test_the_loop_follows_the_schedule(place, tmp_path):
    config = tiny_config(place, engine__log_every=1)
    fit(toy_stage(config), tmp_path)
    rates = [row["train/learning_rate"] for row in read_metrics(tmp_path) if "train/learning_rate" in row]
    assert rates == pytest.approx([warmup_cosine(step, 5, 20, 0.1, 0.01) for step in range(20)])


def test_base_learning_rates_scale_with_the_batch(place, opened):
    stage = pretrain_stage(tiny_config(place), opened, CPU)
    assert stage.peak_lr == pytest.approx(0.05 * 5 / 256)
    config = tiny_config(place, finetune__base_lr=0.5, finetune__warmup_epochs=1)
    stage = finetune_stage(config, opened, labelled_splits(config, opened), CPU, None)
    assert stage.peak_lr == pytest.approx(0.5 * 7 / 256)
    assert stage.learning_rate(FINETUNE_STEPS) == stage.peak_lr


@pytest.mark.parametrize("kind", STAGES)
def test_each_trainable_parameter_stands_in_one_group(kind, place, opened, pretrained):
    config = tiny_config(place, **STAGES[kind])
    if kind == "mae":
        stage = pretrain_stage(config, opened, CPU)
    else:
        checkpoint = load_checkpoint(pretrained) if kind in ("full", "linear") else None
        stage = finetune_stage(config, opened, labelled_splits(config, opened), CPU, checkpoint)
    grouped = [id(p) for group in stage.optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in stage.model.parameters() if p.requires_grad}


def test_biases_norms_and_tokens_are_not_decayed(place):
    for model in (build_model(tiny_config(place)), build_mae("vit_tiny_patch16", 32, depth=1)):
        names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model.named_parameters(), 0.05)
        decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
        for name, value in decay.items():
            spared = name.endswith(("bias", "token")) or "norm" in name
            assert value == (0.0 if spared else 0.05), name
    assert "encoder.class_token" in decay
    assert "decoder.mask_token" in decay


def test_groups_scale_the_learning_rate():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    groups = parameter_groups(model.named_parameters(), 0.05, lambda name: 0.5 if name.startswith("0") else 1.0)
    assert len(groups) == 4
    optimizer = adamw(groups, (0.9, 0.95))
    set_learning_rate(optimizer, 0.8)
    assert sorted((g["lr"], g["weight_decay"]) for g in optimizer.param_groups) == [
        (0.4, 0.0),
        (0.4, 0.05),
        (0.8, 0.0),
        (0.8, 0.05),
    ]
