"""What a step costs: FLOPs equal a formula by hand, memory grows as it must."""

import pytest
import torch

from mae import build_mae
from mae.cost import step_flops, step_memory
from mae.transformer import configure_blocks

# no two sizes alike: 5 × 7 patches of 3 × 3 pixels and 2 channels
PATCHES, KEPT, WIDTH, DEPTH, D_WIDTH, D_DEPTH, PIXELS = 35, 8, 20, 3, 12, 2, 18
SIZES = {
    "patch_size": 3,
    "width": WIDTH,
    "depth": DEPTH,
    "heads": 5,
    "decoder_width": D_WIDTH,
    "decoder_depth": D_DEPTH,
    "decoder_heads": 3,
}


def step(batch: int = 1, decoder: str = "self", recompute: bool = False, predict_ratio: float | None = None):
    def build():
        model = build_mae("vit_tiny_patch16", (15, 21), 2, decoder, **SIZES)
        configure_blocks(model, compiled=False, recompute=recompute)
        images = torch.zeros(batch, 2, 15, 21)
        return lambda: model(images, 0.75, None, predict_ratio).loss

    return build


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and their weighted sum; the number of heads does not matter."""
    return 2 * 2 * queries * keys * width


def mlp(rows: int, width: int) -> int:
    return linear(rows, width, 4 * width) + linear(rows, 4 * width, width)


def block(tokens: int, width: int) -> int:
    return (
        linear(tokens, width, 3 * width)
        + attention(tokens, tokens, width)
        + linear(tokens, width, width)
        + mlp(tokens, width)
    )


def forward_by_hand() -> int:
    encoder = linear(KEPT, PIXELS, WIDTH) + DEPTH * block(1 + KEPT, WIDTH)
    masked = PATCHES - KEPT
    decoder = linear(1 + KEPT, WIDTH, D_WIDTH) + D_DEPTH * block(1 + PATCHES, D_WIDTH)
    return encoder + decoder + linear(masked, D_WIDTH, PIXELS)


def step_by_hand() -> int:
    """The backward pass makes two products of each, but the pixels need no gradient."""
    return 3 * forward_by_hand() - linear(KEPT, PIXELS, WIDTH)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_flops_equal_the_formula_by_hand(device):
    assert step_flops(step(), device) == step_by_hand()


def test_flops_grow_with_the_batch():
    assert step_flops(step(4)) == 4 * step_flops(step())


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_flops_of_the_cross_decoder_equal_the_formula_by_hand(device):
    predicted = 7  # a fifth of the patches
    sources = linear(DEPTH + 1, D_DEPTH, (1 + KEPT) * WIDTH)  # the depths' weighted sums
    cross = (
        linear(predicted, D_WIDTH, D_WIDTH)
        + linear(1 + KEPT, WIDTH, 2 * D_WIDTH)
        + attention(predicted, 1 + KEPT, D_WIDTH)
        + linear(predicted, D_WIDTH, D_WIDTH)
        + mlp(predicted, D_WIDTH)
    )
    encoder = linear(KEPT, PIXELS, WIDTH) + DEPTH * block(1 + KEPT, WIDTH)
    forward = encoder + sources + D_DEPTH * cross + linear(predicted, D_WIDTH, PIXELS)
    counted = step_flops(step(decoder="cross", predict_ratio=0.2), device)
    assert counted == 3 * forward - linear(KEPT, PIXELS, WIDTH)


def test_computing_activations_again_costs_their_products_and_saves_memory():
    assert step_flops(step()) < step_flops(step(recompute=True)) <= step_flops(step()) + forward_by_hand()
    assert step_memory(step(64, recompute=True)) < 0.6 * step_memory(step(64))


def test_memory_holds_weights_and_gradients_and_grows_by_a_fixed_amount_an_image():
    weights = sum(p.nbytes for p in build_mae("vit_tiny_patch16", (15, 21), 2, **SIZES).parameters())
    at = {batch: step_memory(step(batch)) for batch in (1, 40, 80, 120)}
    assert at[1] >= 2 * weights
    assert at[120] - at[80] == pytest.approx(at[80] - at[40], rel=0.01)


def test_counting_memory_computes_nothing_and_lets_go_of_everything():
    huge = step_memory(lambda: _huge())
    assert huge > 4 * 2 * 600e6  # weights and gradients, float32


def _huge():
    model, images = build_mae("vit_huge_patch14", 224), torch.zeros(1, 1, 224, 224)
    return lambda: model(images).loss
