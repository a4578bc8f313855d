import subprocess
import sys
from pathlib import Path

import torch

from classify.models.resnet import build_resnet
from mae.engine.shapes import shapes_only
from mae.model import build_mae

SIZES = {"image_size": (6, 9), "patch_size": 3, "width": 20, "depth": 2, "heads": 1}
DECODER = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
NETWORKS = {
    "self": lambda: build_mae(**SIZES, **DECODER),
    "cross": lambda: build_mae(**SIZES, **DECODER, decoder="cross", embed="conv"),
    "resnet": lambda: build_resnet("resnet18", classes=3),
}


def test_shapes_and_kinds_are_those_of_the_real_networks():
    for build in NETWORKS.values():
        with shapes_only():
            empty = build().state_dict()
        real = build().state_dict()
        assert {name: (each.shape, each.dtype) for name, each in empty.items()} == {
            name: (each.shape, each.dtype) for name, each in real.items()
        }
        assert all(each.is_meta for each in empty.values())


def test_no_number_is_drawn_inside_and_all_are_outside():
    before = torch.get_rng_state()
    with shapes_only():
        NETWORKS["self"]()
        NETWORKS["resnet"]()
    assert torch.equal(torch.get_rng_state(), before)
    assert NETWORKS["self"]().encoder.class_token.std() > 0


def test_torch_does_not_load_its_compiler_for_shapes():
    code = """
import sys
from test_shapes import NETWORKS, shapes_only
with shapes_only():
    for build in NETWORKS.values():
        build()
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert answer.stdout.strip() == "[]", answer.stderr
