"""Runs that begin from weights of another program."""

from pathlib import Path

import pytest
from foreign_weights import HEADS, from_weights, reference_file, timm_weights, with_decoder

from classify.finetune import finetune
from data.config import change_config
from mae import load_checkpoint
from mae.pretrain import pretrain


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A pretraining from a reference file (CC BY-NC) that has since been deleted, and two fine-tunings of it."""
    root = tmp_path_factory.mktemp("runs")
    file = reference_file(root / "mae.pth", with_decoder(timm_weights(grid=2)))
    config = from_weights(root, file, {"model.heads": HEADS, "model.decoder_heads": 2})
    folder = pretrain(config)
    file.unlink()
    for mode in ("full", "linear"):
        made = load_checkpoint(folder / "last.pt").config
        finetune(change_config(made, {"finetune.mode": mode, "finetune.pool": "cls"}), folder / "last.pt")
    return root
