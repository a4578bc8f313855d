"""What `--data` and `batch_size: auto` choose, in one place: sizes, epochs, learning rates and batches.

Numbers and rates for CPUs were measured on Kermany's 4,005 images at 64 pixels and PneumoniaMNIST's 4,128 at 28, with
30 epochs of pretraining and 8 of fine-tuning (docs/speed.md, "Time to quality"). For GPUs we have measured nothing yet:
sizes, epochs and rates are those of the MAE paper and of medical_mae, which pretrains 800 epochs on 0.3 million
radiographs. Better measurements replace rows here, and nothing else.
"""

from typing import Literal, NamedTuple

Device = Literal["cpu", "cuda"]


class Size(NamedTuple):
    """An image's side, and the patches that go with it."""

    side: int
    patch: int  # a preset's


class Recipe(NamedTuple):
    """What is trained, up to a number of training images."""

    up_to: float  # training images
    side: int  # of the images, at most
    width: Literal["micro", "small", "base"]  # of the presets
    epochs: int  # of stage one
    finetune_epochs: int


# 49 to 256 patches of an image; a side between two of these is rounded down
SIZES = (Size(224, 16), Size(192, 16), Size(160, 16), Size(128, 8), Size(96, 8), Size(64, 8), Size(48, 4), Size(28, 4))
SMALLEST = 8  # the shortest side, in pixels

RECIPES: dict[Device, tuple[Recipe, ...]] = {
    "cpu": (
        Recipe(up_to=500, side=64, width="micro", epochs=200, finetune_epochs=30),
        Recipe(up_to=2_000, side=64, width="micro", epochs=80, finetune_epochs=15),
        Recipe(up_to=10_000, side=64, width="micro", epochs=30, finetune_epochs=8),
        Recipe(up_to=float("inf"), side=64, width="micro", epochs=15, finetune_epochs=5),
    ),
    "cuda": (
        Recipe(up_to=1_000, side=224, width="small", epochs=800, finetune_epochs=50),
        Recipe(up_to=10_000, side=224, width="small", epochs=400, finetune_epochs=50),
        Recipe(up_to=100_000, side=224, width="base", epochs=400, finetune_epochs=30),
        Recipe(up_to=float("inf"), side=224, width="base", epochs=200, finetune_epochs=30),
    ),
}
# the learning rate of small models in short runs is far above the paper's, which is for 800 epochs at batch 4096
BASE_LR = {"micro": 4e-3, "small": 1.5e-3, "base": 1.5e-4}
FINETUNE_LR = {"micro": 2e-3, "small": 1e-3, "base": 5e-4}
PROBE_LR = 2e-2
# the share of patches that a ViT's fine-tuning leaves out: not inferior, in half of the time; not tried on GPUs
DROP_PATCHES = {"cpu": 0.5, "cuda": 0.0}

# for each width and patch the nearest preset; if it has another patch, `model.patch_size` overrides that
PRESETS = {
    ("micro", 4): "vit_micro_patch4",
    ("micro", 8): "vit_micro_patch8",
    ("micro", 16): "vit_micro_patch16",
    ("small", 4): "vit_small_patch4",
    ("small", 8): "vit_small_patch8",
    ("small", 16): "vit_small_patch16",
    ("base", 4): "vit_base_patch16",
    ("base", 8): "vit_base_patch16",
    ("base", 16): "vit_base_patch16",
}
SMALL_GPU = 8e9  # bytes; on a GPU with less a base model leaves no room for a batch

# (training images up to, images of a step): beyond these, larger steps learn no better, and fewer steps learn less
BATCHES: dict[str, tuple[tuple[float, int], ...]] = {
    "pretrain": ((20_000, 64), (100_000, 256), (float("inf"), 512)),
    "finetune": ((20_000, 64), (float("inf"), 128)),
}
STEPS = 16  # an epoch has at least this many,
FEW = 8  # but a step has at least this many images


def recipe_for(device: Device, images: int) -> Recipe:
    """The first row for this many training images."""
    return next(recipe for recipe in RECIPES[device] if images <= recipe.up_to)


def size_for(side: int, most: int) -> Size:
    """The largest size that enlarges no image of that side, and is at most `most`."""
    for size in SIZES:
        if size.side <= min(side, most):
            return size
    return Size(max(side // 4 * 4, SMALLEST), 4)


def patch_for(side: int) -> int:
    """The patch that goes with a side, which need not be one of `SIZES`."""
    for size in SIZES:
        if size.side <= side and side % size.patch == 0:
            return size.patch
    return 4


def good_batch(stage: str, images: int) -> int:
    """The largest batch that is good for learning from this many training images; 1 or more."""
    most = next(batch for up_to, batch in BATCHES[stage] if images <= up_to)
    return max(min(most, max(images // STEPS, FEW), images), 1)
