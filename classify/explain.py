"""Why: which parts of a radiograph speak for what a classifier calls it, as heat from 0 to 1.

- `rollout`: how attention flows from the patches to the features, whatever the class (Abnar and Zuidema 2020);
- `gradient_attention`: the same flow, each attention weighted by what it does to the logit (Chefer et al. 2021);
- `patch_subsets`: what a cell of a few patches (or pixels, for a ResNet) adds to the logit, by many subsets of the
  cells (after LIME, Ribeiro et al. 2016, and RISE, Petsiuk et al. 2018); a ViT is not shown the others, as in its
  pretraining, a ResNet sees them blurred;
- `grad_cam`: the maps of a ResNet's layer, weighted by their mean gradient (Selvaraju et al. 2017);
- `gaussian` and `random` do not look at the image: they are what the others must beat.

docs/prediction.md tells how they were judged.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from classify.models.build import Model
from classify.models.classifier import Classifier
from classify.models.resnet import ResNet
from classify.scores import full_precision
from data.errors import UserError
from data.settings import Resize
from mae import contact_sheet
from mae.engine.loop import evaluating
from mae.transformer import Attention, Block

# measures of the methods
SUBSETS = 2  # for each cell; half of them are the complements of the others
RIDGE = 0.1  # how strongly what a patch adds is shrunk, as a share of the number of subsets
CELLS = 8  # a side, at most: each is one patch or a few, which are left out together
LEAST_CELLS = 7  # a side of the map that Grad-CAM reads; with coarser ones it lost to the Gaussian
SIGMA = 0.25  # of the Gaussian in the middle, share of a side
BLUR = 0.125  # of the image that stands in for what a ResNet does not see, share of a side

AT_A_TIME = 64  # images; fewer if their attention would take more than this many bytes
BYTES = 2**28

COLOURS = "inferno"
OPACITY = 0.55  # of the hottest pixel; the radiograph stays to be read beneath

# by the rule of benchmarks/heatmaps.py
DEFAULTS = {"vit": "patch_subsets", "resnet": "patch_subsets"}
HEAT_OF = "Heat of a "  # how the notes in our pictures begin, by which they are known
JUDGED = {
    "vit": f"{HEAT_OF}ViT is by patch_subsets, which told better than a fixed Gaussian which cells decide",
    "resnet": f"{HEAT_OF}ResNet is by patch_subsets, which told better than a fixed Gaussian which cells decide",
}

Raw = Callable[[Model, Tensor, Tensor], Tensor]  # (model, standardised images b c h w, sign b) → heat b gh gw


def heatmaps(
    model: Model,
    images: Tensor | np.ndarray,
    method: str | Raw | None = None,
    abnormal: Tensor | np.ndarray | None = None,
) -> np.ndarray:
    """8-bit images (b 1 h w) → heat (b h w), float32 from 0 to 1; the hottest pixel of an image has 1.

    method: a name from above, or such a function; None: the default of this kind of model. abnormal: (b) bool, which
    class the heat speaks for; None: the more probable one. Black bars around an image get no heat, and an image in
    which nothing speaks for the class gets none at all. The model is left as found. UserError for a method that this
    kind of model does not have.
    """
    images = torch.as_tensor(images)
    assert images.dtype == torch.uint8 and images.ndim == 4
    raw = _method(model, method)
    device = next(model.parameters()).device
    size = _at_a_time(model)

    def look(_: nn.Module) -> Tensor:
        parts = [torch.empty(0, *images.shape[2:])]
        for start in range(0, len(images), size):
            some = images[start : start + size].to(device)
            called = None
            if abnormal is not None:
                called = torch.as_tensor(abnormal[start : start + size]).to(device)
            parts.append(_heat(model, some, raw, called).cpu())
        return torch.cat(parts)

    with torch.inference_mode(False), full_precision(device):
        heat: np.ndarray = evaluating(model, look).numpy()
    return heat


def methods_of(model: Model) -> tuple[str, ...]:
    """The names of the methods that this kind of model has."""
    return tuple(OF_VIT if isinstance(model, Classifier) else OF_RESNET)


def default_of(model: Model) -> str:
    """The method that did best on validation images: docs/prediction.md."""
    return DEFAULTS["vit" if isinstance(model, Classifier) else "resnet"]


def judged(kind: str) -> str:
    """A sentence on the default method of a kind of model, vit or resnet, to stand beside its heatmaps."""
    return f"{JUDGED[kind]} (docs/prediction.md)."


def _method(model: Model, name: str | Raw | None) -> Raw:
    if callable(name):
        return name
    methods = OF_VIT if isinstance(model, Classifier) else OF_RESNET
    name = name or default_of(model)
    if name not in methods:
        kind = "a ViT" if isinstance(model, Classifier) else "a ResNet"
        raise UserError(f"heatmaps: found method {name!r} for {kind}, expected one of {', '.join(methods)}")
    return methods[name]


def _at_a_time(model: Model) -> int:
    """For how many images all attention fits into memory, with its gradients."""
    if not isinstance(model, Classifier):
        return AT_A_TIME
    encoder = model.encoder
    tokens = 1 + encoder.grid[0] * encoder.grid[1]
    heads = sum(module.heads for module in encoder.modules() if isinstance(module, Attention))
    return max(1, min(AT_A_TIME, BYTES // (2 * 4 * heads * tokens**2)))


def _heat(model: Model, images: Tensor, raw: Raw, abnormal: Tensor | None) -> Tensor:
    """(b h w) of 8-bit images (b 1 h w)."""
    standardised = model.standardize(images)  # b c h w
    if abnormal is None:
        abnormal = model(standardised) >= 0
    sign = torch.where(abnormal, 1.0, -1.0)  # b

    # from patches to pixels
    heat = raw(model, standardised, sign).detach().float()  # b gh gw
    heat = F.interpolate(heat[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]  # b h w

    # what speaks for the class, as a share of the hottest
    heat = heat.clamp(min=0) * between_bars(images)
    hottest = reduce(heat, "b h w -> b 1 1", "max")
    return heat / hottest.clamp(min=torch.finfo(heat.dtype).tiny)


def between_bars(images: Tensor) -> Tensor:
    """(b h w) bool: what 8-bit images (b 1 h w) show between black rows and columns at their edges."""
    bright = images[:, 0] > 0  # b h w
    rows = _from_first_to_last(bright.any(dim=2))  # b h
    columns = _from_first_to_last(bright.any(dim=1))  # b w
    return rows[:, :, None] & columns[:, None, :]


def _from_first_to_last(found: Tensor) -> Tensor:
    """(b n) bool → True from a row's first True to its last."""
    begun = found.cumsum(dim=1) > 0
    not_ended = found.flip(1).cumsum(dim=1).flip(1) > 0
    return begun & not_ended


# ---------------------------------------------------------------- by attention


def rollout(model: Model, images: Tensor, sign: Tensor) -> Tensor:
    """Attention multiplied through the blocks; in each, half passes by unchanged, as through the residual path."""
    assert isinstance(model, Classifier)
    tokens = model.encoder.embed_kept(images, None)  # b 1+n d
    flow = torch.eye(tokens.shape[1], device=tokens.device)  # 1+n 1+n
    for block in model.encoder.blocks:
        tokens, attention = with_attention(block, tokens)
        mean = reduce(attention, "b h to of -> b to of", "mean")
        step = (mean + torch.eye(tokens.shape[1], device=tokens.device)) / 2
        flow = step @ flow  # b 1+n 1+n

    heat = _of_patches(model, flow)
    return heat - reduce(heat, "b h w -> b 1 1", "min")  # every patch has some, so the coldest is 0


def gradient_attention(model: Model, images: Tensor, sign: Tensor) -> Tensor:
    """Relevance that each block adds: its attention × gradient where positive, mean over heads."""
    assert isinstance(model, Classifier)
    attentions = []
    with torch.enable_grad():
        tokens = model.encoder.embed_kept(images, None).detach().requires_grad_()  # b 1+n d
        for block in model.encoder.blocks:
            tokens, attention = with_attention(block, tokens)
            attentions.append(attention)
        logits = model.classify(model.encoder.norm(tokens))
        gradients = torch.autograd.grad((sign * logits).sum(), attentions)

    relevance = torch.eye(tokens.shape[1], device=tokens.device)  # 1+n 1+n
    for attention, gradient in zip(attentions, gradients, strict=True):
        counted = reduce((attention * gradient).detach().clamp(min=0), "b h to of -> b to of", "mean")
        relevance = relevance + counted @ relevance  # b 1+n 1+n
    return _of_patches(model, relevance - torch.eye(tokens.shape[1], device=tokens.device))


def with_attention(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output for tokens (b n d), and its attention (b h n n), which the block itself does not keep."""
    assert isinstance(block, Block)
    attend = block.attention
    q, k, v = rearrange(attend.qkv(block.norm1(tokens)), "b n (three h d) -> three b h n d", three=3, h=attend.heads)
    attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)  # b h n n

    tokens = tokens + attend.out(rearrange(attention @ v, "b h n d -> b n (h d)"))
    return tokens + block.mlp(block.norm2(tokens)), attention


def _of_patches(model: Classifier, flow: Tensor) -> Tensor:
    """What flows (b 1+n 1+n) from each patch to what the head reads: the class token, or the mean of the patches."""
    into = flow[:, 0, 1:] if model.pool == "cls" else flow[:, 1:, 1:].mean(dim=1)  # b n
    return _on_grid(model, into)


def _on_grid(model: Classifier, patches: Tensor) -> Tensor:
    return rearrange(patches, "b (h w) -> b h w", h=model.encoder.grid[0])


# ---------------------------------------------------------------- by convolutions


def grad_cam(model: Model, images: Tensor, sign: Tensor, layer: int | None = None) -> Tensor:
    """Σ map × its mean gradient, of a layer from 1 to 4; None: the last that has enough cells."""
    assert isinstance(model, ResNet)
    x = model.stem(images)
    layers = [model.layer1, model.layer2, model.layer3, model.layer4]
    if layer is None:
        layer = _last_with_cells(x)
    for compute in layers[:layer]:
        x = compute(x)

    with torch.enable_grad():
        maps = x.detach().requires_grad_()  # b d h w
        x = maps
        for compute in layers[layer:]:
            x = compute(x)
        [gradient] = torch.autograd.grad((sign * model.classify(x)).sum(), [maps])
    weights = reduce(gradient, "b d h w -> b d 1 1", "mean")
    return reduce(weights * maps, "b d h w -> b h w", "sum")


def _last_with_cells(x: Tensor) -> int:
    """The last layer whose map has LEAST_CELLS a side; each after the first halves it."""
    layer = 4
    while layer > 1 and min(x.shape[2:]) < LEAST_CELLS * 2 ** (layer - 1):
        layer -= 1
    return layer


# ---------------------------------------------------------------- by leaving out


def patch_subsets(model: Model, images: Tensor, sign: Tensor) -> Tensor:
    """What each cell adds to the logit: a ridge regression of logits on which half of the cells is there."""
    height, width = _cells(model, images)
    there = subsets(height * width).to(images.device)  # m n
    blurry = images if isinstance(model, Classifier) else blurred(images, BLUR)

    logits = []
    for cells in rearrange(there, "m (h w) -> m 1 h w", h=height):
        if isinstance(model, Classifier):
            [keep] = enlarged(cells, model.encoder.grid).flatten().nonzero(as_tuple=True)  # k patches
            tokens = model.encoder(images, repeat(keep, "k -> b k", b=len(images)))
            logits.append(model.classify(tokens))
        else:
            logits.append(model(torch.where(enlarged(cells, images.shape[2:]), images, blurry)))
    found = sign * torch.stack(logits)  # m b

    # a cell that is there counts +1, one that is not -1
    design = torch.where(there, 1.0, -1.0).double()  # m n
    shrunk = design.T @ design + RIDGE * len(there) * torch.eye(height * width, device=design.device)
    added = torch.linalg.solve(shrunk, design.T @ (found - found.mean(dim=0)).double())  # n b
    return rearrange(added, "(h w) b -> b h w", h=height)


def subsets(n: int) -> Tensor:
    """(m n) bool: subsets of half of n cells, each followed by its complement; the same for every image."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(SUBSETS * n // 2, n, generator=generator).argsort(dim=1)
    half = order < n // 2
    return rearrange(torch.stack([half, ~half]), "two m n -> (m two) n")


def enlarged(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Cells (b h w) → the (b 1 h w) of patches or pixels that each covers."""
    return F.interpolate(cells[:, None].float(), tuple(size), mode="nearest").to(cells.dtype)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (b c h w) under a Gaussian filter; sigma is a share of each side."""
    for axis in (2, 3):
        side = images.shape[axis]
        places = torch.arange(side, device=images.device, dtype=images.dtype)
        weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * (sigma * side) ** 2))
        weights = weights / weights.sum(dim=1, keepdim=True)  # what lies outside does not count
        images = torch.einsum("ij,bcjw->bciw" if axis == 2 else "ij,bchj->bchi", weights, images)
    return images


def _cells(model: Model, images: Tensor) -> tuple[int, int]:
    """Into how many cells an image is cut: of whole patches of a ViT, of pixels for a ResNet."""
    height, width = model.encoder.grid if isinstance(model, Classifier) else images.shape[2:]
    return _at_most_cells(height), _at_most_cells(width)


def _at_most_cells(side: int) -> int:
    return ceil(side / ceil(side / CELLS))


# ---------------------------------------------------------------- without looking


def gaussian(model: Model, images: Tensor, sign: Tensor) -> Tensor:
    """A Gaussian in the middle of every image."""
    bells = []
    for side in images.shape[2:]:
        places = (torch.arange(side, device=images.device) + 0.5) / side - 0.5
        bells.append(torch.exp(-(places**2) / (2 * SIGMA**2)))
    return repeat(torch.outer(*bells), "h w -> b h w", b=len(images))


def random(model: Model, images: Tensor, sign: Tensor, seed: int = 0) -> Tensor:
    """A random order of the cells, a different one for every image of a batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(images), *_cells(model, images), generator=generator).to(images.device)


OF_BOTH: dict[str, Raw] = {"patch_subsets": patch_subsets, "gaussian": gaussian, "random": random}
OF_VIT: dict[str, Raw] = {
    "rollout": rollout,
    "gradient_attention": gradient_attention,
    **OF_BOTH,
}
OF_RESNET: dict[str, Raw] = {"grad_cam": grad_cam, **OF_BOTH}


# ---------------------------------------------------------------- pictures


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Grey levels (h w) uint8 and heat (h w) from 0 to 1 → colours (h w 3) uint8; where there is no heat, only grey."""
    assert image.shape == heatmap.shape
    grey = repeat(image / 255, "h w -> h w 3")
    colours = colormaps[COLOURS](heatmap)[..., :3]  # h w 3
    opacity = OPACITY * heatmap[..., None]
    mixed = (1 - opacity) * grey + opacity * colours
    return (255 * mixed).round().astype(np.uint8)


def on_original(heatmap: np.ndarray, size: tuple[int, int], resize: Resize) -> np.ndarray:
    """Heat (h w) of an image that `fit_image` has fitted → heat of the original, of `size` (height, width), float32.

    What `crop` has cut away has none. The original must have square pixels.
    """
    (height, width), (h, w) = size, heatmap.shape
    if resize == "squash":
        return _resized(heatmap, (height, width))
    if resize == "pad":
        scale = min(h / height, w / width)
        shown_h, shown_w = max(1, round(height * scale)), max(1, round(width * scale))
        shown = _centre(heatmap, (shown_h, shown_w))
        return _resized(heatmap[shown], (height, width))

    scale = max(h / height, w / width)
    kept_h, kept_w = min(height, round(h / scale)), min(width, round(w / scale))
    original = np.zeros((height, width), np.float32)
    original[_centre(original, (kept_h, kept_w))] = _resized(heatmap, (kept_h, kept_w))
    return original


def _centre(image: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Where a part of this size stands in the middle of an image (h w)."""
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return slice(top, top + size[0]), slice(left, left + size[1])


def _resized(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(heatmap.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def sheet(radiographs: np.ndarray, overlays: Mapping[str, np.ndarray], notes: Sequence[str]) -> Image.Image:
    """Radiographs (k h w), and each model's overlays (k h w 3) by its name → one picture, a row for each radiograph."""
    size = (radiographs.shape[2], radiographs.shape[1])
    columns = [repeat(radiographs, "k h w -> k h w 3")]
    for pictures in overlays.values():
        columns.append(np.stack([np.asarray(Image.fromarray(picture).resize(size)) for picture in pictures]))
    return contact_sheet.sheet(np.stack(columns, axis=1), ["Radiograph", *overlays], notes)
