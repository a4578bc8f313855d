"""A rehearsal does what a training does: its parts are the training's, and nothing of it stays."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_config

from classify.dry_run import few_of
from classify.dry_run import forecast as forecast_finetuning
from mae.dry_run import forecast, part_of
from mae.pretrain import pretrain_stage
from mae.rehearsal import Rehearsal, rehearse, seconds_since_start

PARTS = Rehearsal(start=3.0, step=0.5, validate=2.0, probe=7.0, show=0.25, save=0.75, finish=11.0, memory=1)


def test_a_whole_run_is_the_sum_of_its_parts():
    assert PARTS.whole_run(steps=0, validations=0) == 3 + 11
    assert PARTS.whole_run(steps=10, validations=5) == 3 + 5 + 5 * 3 + 11
    assert PARTS.whole_run(steps=10, validations=5, probes=2) == 3 + 5 + 5 * 3 + 14 + 11


def test_it_takes_all_parts_and_leaves_nothing(place, opened, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stage = pretrain_stage(tiny_config(place, pretrain__panel_images=2), opened, torch.device("cpu"))
    done = []
    stage = replace(
        stage,
        validate=lambda model, epoch: done.append(f"validate {epoch}") or stage_validate(model, epoch),
        show=lambda *how: done.append("show"),
    )
    before = [weight.clone() for weight in stage.model.parameters()]
    found = rehearse(stage, held_out=0.5)
    assert done[0] == "validate 1" and "show" in done
    assert min(found.step, found.validate, found.save, found.finish) > 0
    assert found.memory > 50e6
    assert all(torch.equal(one, other) for one, other in zip(before, stage.model.parameters(), strict=True))
    assert not list(tmp_path.glob("mae-*"))  # torch keeps a folder of its own there


def stage_validate(model, epoch):
    from mae.engine.stage import Validation

    return Validation({}, 0.0, {})


@pytest.mark.parametrize(("every", "epochs"), [(1, [1]), (3, [1, 3]), (None, [1])])
def test_a_probe_is_timed_apart_from_the_validation_it_comes_with(every, epochs, place, opened):
    stage = pretrain_stage(tiny_config(place), opened, torch.device("cpu"))
    asked = []
    stage = replace(stage, validate=lambda model, epoch: asked.append(epoch) or stage_validate(model, epoch))
    found = rehearse(stage, probe_every=every)
    assert asked == epochs
    assert (found.probe > 0) == (every == 3) or found.probe == 0


def test_a_part_of_the_data_has_few_images_of_each_kind(opened):
    part, of_validation, of_both = part_of(opened, batch=2)
    counts = part.manifest.table["split"].value_counts()
    assert dict(counts) == {"train": 14, "validate": 10}
    assert (of_validation, of_both) == (1.0, 24 / 50)
    few = few_of(opened.split("validate"), 4)
    assert set(few["label"]) == {0.0, 1.0} and len(few) == 4


def test_forecasts_tell_memory_and_time_in_numbers(place, opened):
    for found in (forecast(tiny_config(place)), forecast_finetuning(tiny_config(place, run=f"{place}/other"))):
        assert found.seconds > 0
        assert found.memory > 100e6
        assert found.counted > 100e6
        assert f"{found.memory / 1e9:.2f} GB at most" in found.text


def test_the_clock_runs_from_the_start_of_the_process():
    assert not Path("/proc/uptime").exists() or seconds_since_start() > 0.1
