"""A checkpoint as it is used computes what evaluation computes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkout import ROOT
from saved_classifiers import save_classifier
from tiny_world import World

from classify.models.build import build_model
from classify.scores import full_precision
from classify.trained import load_trained
from data.errors import UserError
from mae.engine.checkpoint import load_checkpoint

IMAGES = np.random.default_rng(0).integers(0, 255, (67, 1, 12, 12), dtype=np.uint8)  # more than one batch


def test_a_run_folder_means_its_best_and_numbers_are_the_checkpoints(world: World):
    trained = load_trained(world.classifier, "cpu")
    checkpoint = load_checkpoint(world.classifier / "best.pt")
    assert trained.place == str(world.classifier / "best.pt")
    assert trained.digest == load_trained(world.classifier / "best.pt", "cpu").digest
    for unit in ("image", "study"):
        assert trained.threshold_for(unit) == checkpoint.meta["threshold"][unit]
        assert trained.calibration_for(unit).as_dict() == checkpoint.meta["calibration"][unit]
    assert (trained.threshold, trained.calibration) == (
        trained.threshold_for("image"),
        trained.calibration_for("image"),
    )
    assert not any(module.training for module in trained.model.modules())


def test_logits_of_arrays_and_tensors_are_the_models(world: World):
    trained = load_trained(world.classifier, "cpu")
    with torch.no_grad(), full_precision(trained.device):
        expected = trained.model(trained.model.standardize(torch.from_numpy(IMAGES))).numpy()
    assert trained.logits(IMAGES).dtype == np.float32
    assert np.allclose(trained.logits(IMAGES), expected, atol=1e-6)
    assert np.array_equal(trained.logits(torch.from_numpy(IMAGES)), trained.logits(IMAGES))


@pytest.mark.parametrize("changed", [{}, {"pool": "cls"}, {"mode": "linear"}, {"model": "resnet18"}])
def test_features_are_what_the_head_sees(world: World, changed):
    config = load_trained(world.classifier, "cpu").config
    model = build_model(config.model_copy(update={"finetune": config.finetune.model_copy(update=changed)})).eval()
    seen = []
    head = model.fc if changed.get("model") else model.head
    head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        pixels = model.standardize(torch.from_numpy(IMAGES[:3]))
        model(pixels)
        assert torch.equal(seen[0], model.norm(model.features(pixels)))


def test_a_pretraining_is_refused_and_the_next_command_named(world: World):
    with pytest.raises(UserError, match=f"mae-finetune --checkpoint {world.pretrained}"):
        load_trained(world.pretrained)


@pytest.mark.parametrize("model", ["vit", "resnet18"])
def test_a_classifier_says_its_shapes_without_values(world: World, model):
    """Costs, memory and products are counted in this way."""
    config = load_trained(world.classifier, "cpu").config
    config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"model": model})})
    with torch.device("meta"):
        made = build_model(config)
        assert made(torch.empty(3, 1, 12, 12)).shape == (3,)


@pytest.mark.parametrize("model", ["vit", "resnet18"])
def test_reading_a_classifier_draws_nothing_from_the_users_generator(model, tmp_path):
    path, _, _ = save_classifier(tmp_path, "one", finetune__model=model)
    before = torch.get_rng_state()
    load_trained(path, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_what_answers_changes_neither_the_environment_nor_the_users_generator():
    code = """
import os, random
before = dict(os.environ), random.getstate()
from classify import Predictor
assert (dict(os.environ), random.getstate()) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
