"""Untrained classifiers as a training would leave them, with thresholds, calibrations and no weight at zero."""

from pathlib import Path

import torch
from tiny_world import tiny_config

from classify.models.build import Model, build_model
from classify.settings import ClassifyConfig
from mae.engine.checkpoint import Checkpoint, save_checkpoint

META = {
    "threshold": {"image": 0.47, "study": 0.41},
    "calibration": {
        "image": {"temperature": 0.6, "intercept": -0.7},
        "study": {"temperature": 0.8, "intercept": 0.1},
    },
    "operating": {
        "image": {
            "sensitivity": [1 - percent / 100 for percent in range(1, 100)],
            "specificity": [percent / 100 for percent in range(1, 100)],
        }
    },
    "validate_auc": 0.8123,
    "validate_cases": {"normal": 7, "abnormal": 5},
    "train_images": 23,
}


SHALLOW = (1, 1, 1, 1)  # blocks of a ResNet's layers, for tests in which only the kinds of blocks count


def save_classifier(root: Path, name: str, **settings) -> tuple[Path, ClassifyConfig, Model]:
    """`root/name.pt`, its config and its model in evaluation mode; in settings, two underscores stand for a dot."""
    config = tiny_config(root, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = build_model(config)
        for name_of, tensor in model.state_dict().items():
            if name_of.endswith("running_var"):
                tensor += torch.rand_like(tensor)
            elif name_of.split(".")[-1] in ("weight", "bias", "running_mean", "offset", "class_token"):
                spread = tensor.std() if tensor.ndim > 1 and tensor.any() else 1
                tensor += 0.1 * spread * torch.randn_like(tensor)
    path = root / f"{name}.pt"
    content = Checkpoint("classifier", config.model_dump(mode="json"), model.state_dict(), META, progress={"epoch": 3})
    save_checkpoint(content, path)
    return path, config, model.eval()
