"""What a run has cost, by what it logged, and the operations of a classifier's step against a formula by hand."""

import json

import pytest
import torch
from tiny_world import MODEL, tiny_config

from classify.cost import finetuning_cost, finetuning_flops, pretraining_cost, pretraining_flops_of, spent, step_of
from classify.models.resnet import SHAPES, Bottleneck
from classify.report.costs import operations
from mae.cost import _flops_by_hooks
from mae.pretrain_cost import pretraining_cost as counted


def conv(inputs: int, outputs: int, kernel: int, side: int) -> int:
    return 2 * inputs * outputs * kernel**2 * side**2


def resnet_by_hand(name: str, side: int, small_stem: bool) -> int:
    """Forward and backward of an image: three products of each convolution, two of the first, which reads pixels."""
    block, depths = SHAPES[name]
    if small_stem:
        first = conv(1, 64, 3, side)
    else:
        side = (side + 1) // 2
        first = conv(1, 64, 7, side)
        side = (side + 1) // 2  # max-pool

    later, inputs = 0, 64
    for number, depth in enumerate(depths):
        width = 64 * 2**number
        for place in range(depth):
            before = side
            stride = 2 if number and not place else 1
            side = (side + stride - 1) // stride
            outputs = width * block.expansion
            if block is Bottleneck:
                later += conv(inputs, width, 1, before) + conv(width, width, 3, side) + conv(width, outputs, 1, side)
            else:
                later += conv(inputs, width, 3, side) + conv(width, outputs, 3, side)
            if stride != 1 or inputs != outputs:
                later += conv(inputs, outputs, 1, side)
            inputs = outputs
    return 2 * first + 3 * (later + 2 * inputs)


def vit_by_hand(side: int, probe: bool) -> int:
    """Linear layers, attention and head; neither the pixels nor a frozen encoder need gradients."""
    width, patch = MODEL["width"], MODEL["patch_size"]
    tokens = 1 + (side // patch) ** 2
    embed = 2 * (tokens - 1) * patch**2 * width
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 4 * tokens**2 * width
    head = 2 * width
    if probe:
        return embed + MODEL["depth"] * block + 2 * head
    return 2 * embed + 3 * (MODEL["depth"] * block + head)


@pytest.mark.parametrize(("name", "side", "stem"), [("resnet18", 12, "small"), ("resnet18", 33, "imagenet")])
def test_operations_of_a_resnet_equal_the_formula_by_hand(place, name, side, stem):
    config = tiny_config(place, finetune__model=name, data__image_size=side, finetune__stem=stem)
    assert finetuning_flops(config) == resnet_by_hand(name, side, stem == "small")


def test_operations_of_a_resnet_50_equal_the_formula_by_hand(place):
    config = tiny_config(place, finetune__model="resnet50", data__image_size=40)
    assert finetuning_flops(config) == resnet_by_hand("resnet50", 40, small_stem=False)


@pytest.mark.parametrize("mode", ["full", "linear"])
def test_operations_of_a_classifier_equal_the_formula_by_hand(place, mode):
    assert finetuning_flops(tiny_config(place, finetune__mode=mode)) == vit_by_hand(12, mode == "linear")


@pytest.mark.parametrize(("setting", "value"), [("model", "resnet18"), ("mode", "linear"), ("mode", "full")])
def test_two_counters_come_to_the_same(place, setting, value):
    config = tiny_config(place, **{f"finetune__{setting}": value})
    assert _flops_by_hooks(step_of(config, 3)) == 3 * finetuning_flops(config)


def test_operations_do_not_depend_on_where_and_how_fast_it_learns(place):
    first = finetuning_flops(tiny_config(place))
    assert first == finetuning_flops(tiny_config(place, seed=3, finetune__optimizer__base_lr=0.5, finetune__sample=7))
    assert first < finetuning_flops(tiny_config(place, activation_checkpointing=True))


def test_operations_of_a_pretraining_are_those_of_its_dry_run(place):
    config = tiny_config(place)
    assert pretraining_flops_of(config) == counted(config).flops


def log(folder, rows) -> None:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LOGGED = [
    {"step": 5, "train/loss": 1.0, "train/images_per_second": 7.0, "train/peak_memory_gb": 1.5},
    {"step": 5, "epoch": 1, "validate/loss": 1.0},
    {"step": 7, "skipped_images": ["row 3"]},
    {"step": 8, "train/images_per_second": 3.0, "train/peak_memory_gb": 1.25},
    {"step": 8, "epoch": 2, "validate/loss": 1.0},
]


def test_time_is_summed_over_looks_whatever_stands_between_them(tmp_path):
    log(tmp_path / "run", LOGGED)
    found = spent(tmp_path / "run", batch_size=21)
    assert (found.steps, found.images, found.memory) == (8, 8 * 21, 1.5)
    assert found.seconds == pytest.approx(5 * 21 / 7 + 3 * 21 / 3)
    assert found.images_per_second == pytest.approx(8 * 21 / 36)


def test_a_run_that_has_logged_nothing_has_cost_nothing(tmp_path):
    found = spent(tmp_path / "none", batch_size=21)
    assert (found.steps, found.seconds, found.images_per_second) == (0, 0.0, None)


def test_the_batch_is_no_larger_than_what_there_is_to_train_on(place, tmp_path):
    log(tmp_path / "run", LOGGED)
    config = tiny_config(place)
    cost = finetuning_cost(tmp_path / "run", config, train_images=5)  # the batch size is 7
    assert cost["train_flops"] == 8 * 5 * finetuning_flops(config)
    assert set(cost) == {"train_seconds", "train_flops", "images_per_second"}
    earlier = pretraining_cost(tmp_path / "run", config, train_images=100)
    assert earlier["pretrain_flops"] == 8 * config.pretrain.batch_size * pretraining_flops_of(config)


def test_counting_leaves_torch_as_it_was(place):
    finetuning_flops(tiny_config(place, finetune__model="resnet18", data__image_size=20))
    assert torch.zeros(1).item() == 0.0


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        *[(5e6, "5 MFLOP"), (1.234e10, "12.3 GFLOP"), (2e12, "2 TFLOP"), (7e15, "7 PFLOP"), (3e18, "3 EFLOP")],
        *[(9.994e11, "999 GFLOP"), (9.996e11, "1 TFLOP"), (9.9999e8, "1 GFLOP"), (1.2345e21, "1230 EFLOP")],
    ],
)
def test_operations_have_three_digits_and_a_unit(flops, text):
    assert operations(flops) == text
