"""Laws of the schedule and of the optimizer's groups."""

import math
from copy import deepcopy

import pytest
import torch
from stage_runs import CPU, FINETUNE_STEPS, STAGES
from tiny_world import tiny_config
from torch import Tensor, nn
from toy_stage import toy_stage

from classify.cases import labelled_splits
from classify.finetune import finetune_stage
from classify.models.build import build_model
from mae import build_mae, load_checkpoint
from mae.engine.loop import fit
from mae.engine.optim import adamw, load_optimizer, parameter_groups
from mae.engine.schedule import set_learning_rate, warmup_constant, warmup_cosine
from mae.engine.tracker import read_metrics
from mae.engine.update import skips_on_device
from mae.pretrain import pretrain_stage


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
    assert warmup_cosine(0, 0.1, 1, 0.5) == 0.5  # the only step of a run
    assert warmup_constant(0, 0.1, 1, 0, 0.5) == 0.5
    assert warmup_cosine(3, 7, 7, 0.7) == pytest.approx(0.3)
    assert warmup_cosine(7, 7, 7, 0.7) == 0.7


def test_the_loop_follows_the_schedule(place, tmp_path):
    config = tiny_config(place, engine__log_every=1)
    fit(toy_stage(config), tmp_path)
    rates = [row["train/learning_rate"] for row in read_metrics(tmp_path) if "train/learning_rate" in row]
    assert rates == pytest.approx([warmup_cosine(step, 5, 20, 0.1, 0.01) for step in range(20)])


def test_base_learning_rates_scale_with_the_batch(place, opened):
    stage = pretrain_stage(tiny_config(place), opened, CPU)
    assert stage.schedule.peak == pytest.approx(0.05 * 5 / 256)
    config = tiny_config(place, finetune__optimizer__base_lr=0.5, finetune__optimizer__warmup_epochs=1)
    stage = finetune_stage(
        config, opened, labelled_splits(opened, config.finetune.sample, config.data.split_seed), CPU, None
    )
    assert stage.schedule.peak == pytest.approx(0.5 * 7 / 256)
    assert stage.learning_rate(FINETUNE_STEPS) == stage.schedule.peak


@pytest.mark.parametrize("kind", STAGES)
def test_each_trainable_parameter_stands_in_one_group(kind, place, opened, pretrained):
    config = tiny_config(place, **STAGES[kind])
    if kind == "mae":
        stage = pretrain_stage(config, opened, CPU)
    else:
        checkpoint = load_checkpoint(pretrained) if kind in ("full", "linear") else None
        stage = finetune_stage(
            config, opened, labelled_splits(opened, config.finetune.sample, config.data.split_seed), CPU, checkpoint
        )
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


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_run_goes_on_whichever_way_its_updates_were_computed(before, after):
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))

    def begun(fused: bool) -> tuple[Tensor, torch.optim.AdamW]:
        parameter = nn.Parameter(weights.clone())
        parameter.grad = torch.full_like(parameter, 0.5)
        optimizer = adamw([{"params": [parameter], "lr_scale": 1.0}], (0.9, 0.95))
        if not fused:  # as on a device for which torch has no fused pass
            optimizer = torch.optim.AdamW([parameter], lr=0.0, betas=(0.9, 0.95), fused=False)
        optimizer.param_groups[0]["lr"] = 0.1
        return parameter, optimizer

    # two updates in one run, and the same with a checkpoint between them
    expected, optimizer = begun(fused=before)
    optimizer.step()
    saved = deepcopy(optimizer.state_dict())
    stands = expected.detach().clone()
    optimizer.step()

    parameter, resumed = begun(fused=after)
    load_optimizer(resumed, saved, "here")
    parameter.data.copy_(stands)
    assert resumed.param_groups[0]["fused"] == after
    if skips_on_device(resumed):  # as `Update` tells it that no gradient is bad
        resumed.grad_scale, resumed.found_inf = None, torch.zeros(())
    resumed.step()
    torch.testing.assert_close(parameter, expected)
