"""Laws of heatmaps: where they may be hot, what they leave as found, and that they find what decides."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classify import explain
from classify.explain import (
    between_bars,
    default_of,
    heatmaps,
    methods_of,
    on_original,
    overlay,
    rollout,
    sheet,
    subsets,
    with_attention,
)
from classify.models.classifier import Classifier, build_classifier
from classify.models.resnet import BasicBlock, ResNet
from data.errors import UserError
from data.images import fit_image
from mae import build_mae
from mae.transformer import configure_blocks

SIZE = (24, 40)  # 3 × 5 patches
SIZES = {"patch_size": 8, "width": 12, "depth": 3, "heads": 3}
BLIND = ("gaussian", "random")


def vit(pool: str = "mean", probe: bool = False) -> Classifier:
    """A ViT whose every weight is drawn, so that no bias is 0 and no norm 1."""
    torch.manual_seed(0)
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    model = build_classifier(build_mae("vit_tiny_patch16", SIZE, **SIZES, **decoder).encoder, pool, probe)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def resnet(probe: bool = False) -> ResNet:
    """A ResNet of one block a layer."""
    torch.manual_seed(0)
    preprocessing = {"pixel_mean": 0.5, "pixel_std": 0.25}
    return ResNet(BasicBlock, (1, 1, 1, 1), 1, classes=1, small_stem=False, probe=probe, **preprocessing)


@pytest.fixture(autouse=True)
def few_cells(monkeypatch):
    """At most 4 cells a side, so that a cell may be several patches, and few subsets of them."""
    monkeypatch.setattr(explain, "CELLS", 4)


def pictures(b: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(1, 256, (b, 1, *SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


MODELS = {
    "ViT, mean": lambda: vit("mean"),
    "ViT, class token": lambda: vit("cls"),
    "ViT, probe": lambda: vit("mean", probe=True),
    "ResNet": resnet,
    "ResNet, probe": lambda: resnet(probe=True),
}
EVERY = [(name, method) for name, make in MODELS.items() for method in methods_of(make())]
LOOKING = [(name, method) for name, method in EVERY if method not in BLIND]


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_heat_is_from_0_to_1_and_nothing_of_the_model_changes(name, method):
    model, images = MODELS[name]().train(), pictures()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    wishes = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    with torch.inference_mode():  # a caller may be in this mode, but gradients are needed all the same
        heat = heatmaps(model, images.clone(), method)

    assert heat.shape == (2, *SIZE) and heat.dtype == np.float32
    assert heat.min() >= 0 and np.allclose(heat.max(axis=(1, 2)), 1)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wishes
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("name", "method"), LOOKING)
def test_an_images_heat_does_not_hang_on_its_neighbours(name, method):
    model, images = MODELS[name]().eval(), pictures(3)
    together = heatmaps(model, images, method)
    assert np.allclose(together[[1]], heatmaps(model, images[[1]], method), atol=1e-4)
    assert not np.allclose(together[0], together[1], atol=1e-2)
    assert heatmaps(model, images[:0], method).shape == (0, *SIZE)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_attention_that_is_kept_computes_what_the_fused_one_does(pool):
    model = vit(pool).eval()
    images = model.standardize(pictures())
    tokens = model.encoder.embed_kept(images, None)
    for block in model.encoder.blocks:
        tokens, attention = with_attention(block, tokens)
        assert torch.allclose(attention.sum(dim=-1), torch.ones(()))
    assert torch.allclose(model.classify(model.encoder.norm(tokens)), model(images), atol=1e-5)


def test_compiled_blocks_give_the_same_heat(monkeypatch):
    plain = {method: heatmaps(vit().eval(), pictures(), method) for method in ("rollout", "gradient_attention")}
    model = vit().eval()
    monkeypatch.setattr(nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", module._call_impl))
    configure_blocks(model, compiled=True, recompute=True)
    for method, heat in plain.items():
        assert np.allclose(heatmaps(model, pictures(), method), heat, atol=1e-5)


def test_rollout_is_the_product_of_attentions_and_shortcuts():
    model = vit("cls").eval()
    images = model.standardize(pictures())
    tokens, flow = model.encoder.embed_kept(images, None), torch.eye(16)
    for block in model.encoder.blocks:
        tokens, attention = with_attention(block, tokens)
        flow = (attention.mean(dim=1) / 2 + torch.eye(16) / 2) @ flow
    assert torch.allclose(flow.sum(dim=-1), torch.ones(()))  # attention is divided up, never created

    expected = flow[:, 0, 1:].reshape(2, 3, 5)
    expected = expected - expected.amin(dim=(1, 2), keepdim=True)
    with torch.no_grad():
        assert torch.allclose(rollout(model, images, torch.ones(2)), expected, atol=1e-6)


# ---------------------------------------------------------------- where it is hot


def sees_bright_patches(model: nn.Module, steps: int) -> nn.Module:
    """Train a little: abnormal is a bright square in one of the four corners."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        images, labels = corners(16, seed=step)
        loss = nn.functional.binary_cross_entropy_with_logits(model(model.standardize(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def corners(b: int, seed: int, place: int | None = None) -> tuple[Tensor, Tensor]:
    """Grey images; in abnormal ones a corner (0 top left, 1 top right, 2 bottom left, 3 bottom right) is bright."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (b, 1, *SIZE), dtype=np.uint8)
    labels = np.ones(b) if place is not None else rng.integers(0, 2, b)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(rng.integers(4) if place is None else place, 2)
        if label:
            image[0, 16 * row : 16 * row + 8, 32 * column : 32 * column + 8] = 250
    return torch.from_numpy(images), torch.from_numpy(labels).float()


@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    return {"vit": sees_bright_patches(vit(), steps=150), "resnet": sees_bright_patches(resnet().train(), steps=40)}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("vit", method) for method in ("gradient_attention", "patch_subsets")),
        *(("resnet", method) for method in ("grad_cam", "patch_subsets")),
    ],
)
def test_the_square_that_decides_is_hot_where_it_is(trained, kind, method, place):
    images, _ = corners(5, seed=99, place=place)
    heat = heatmaps(trained[kind], images, method)
    quadrants = heat.reshape(5, 2, 12, 2, 20).mean(axis=(0, 2, 4)).flatten()
    assert quadrants.argmax() == place  # neither upside down nor left for right


def test_the_class_asked_for_is_the_one_that_is_explained(trained):
    images, _ = corners(5, seed=99, place=0)
    called = heatmaps(trained["vit"], images, "patch_subsets")
    abnormal = heatmaps(trained["vit"], images, "patch_subsets", torch.ones(5, dtype=torch.bool))
    normal = heatmaps(trained["vit"], images, "patch_subsets", torch.zeros(5, dtype=torch.bool))
    assert np.array_equal(called, abnormal)
    assert normal[:, :8, :8].mean() < 0.1 < abnormal[:, :8, :8].mean()


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_black_bars_get_no_heat(name, method):
    images = pictures()
    images[0, :, :, :10] = 0
    images[0, :, :, 33:] = 0
    images[1, :, :7] = 0
    images[1, :, 12, 12] = 0  # black inside the radiograph is no bar
    heat = heatmaps(MODELS[name]().eval(), images, method)
    assert not heat[0][:, :10].any() and not heat[0][:, 33:].any() and not heat[1][:7].any()
    assert between_bars(images)[1, 12, 12]


@pytest.mark.parametrize("name", MODELS)
def test_an_image_without_anything_has_no_heat(name):
    model = MODELS[name]().eval()
    for method in methods_of(model):
        assert not heatmaps(model, torch.zeros(1, 1, *SIZE, dtype=torch.uint8), method).any()


def test_a_model_that_cannot_tell_gives_no_heat_by_gradients():
    for model, methods in ((vit(), ("gradient_attention",)), (resnet(), ("grad_cam",))):
        head = model.head if isinstance(model, Classifier) else model.fc
        nn.init.zeros_(head.weight)
        for method in methods:
            heat = heatmaps(model.eval(), pictures(), method)
            assert np.isfinite(heat).all() and not heat.any()


# ---------------------------------------------------------------- names, subsets, pictures


@pytest.mark.parametrize(("name", "other"), [("ViT, mean", "grad_cam"), ("ResNet", "rollout"), ("ResNet", "lime")])
def test_a_method_of_another_kind_of_model_is_named(name, other):
    model = MODELS[name]()
    with pytest.raises(UserError, match=f"^heatmaps: found method '{other}' for a .*, expected one of .*"):
        heatmaps(model, pictures(), other)
    assert default_of(model) in methods_of(model)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 64])
def test_every_cell_is_there_in_half_of_the_subsets(n):
    there = subsets(n)
    assert there.any(dim=1).all()
    if n > 1:
        assert torch.equal(there[::2], ~there[1::2])
        assert (there.float().mean(dim=0) == 0.5).all()


@pytest.mark.parametrize("size", [(3, 3), (1, 5), (17, 2), (32, 32), (33, 70)])
def test_a_resnet_explains_images_of_any_shape(size):
    images = torch.randint(1, 256, (1, 1, *size), dtype=torch.uint8)
    model = resnet().eval()
    for method in methods_of(model):
        assert heatmaps(model, images, method).shape == (1, *size)


def test_an_overlay_is_the_radiograph_where_there_is_no_heat_and_keeps_its_detail_where_there_is():
    image = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    assert np.array_equal(overlay(image, np.zeros((5, 7))), np.repeat(image[..., None], 3, axis=2))

    heat = np.zeros((5, 7), np.float32)
    heat[:2, :3] = 1  # top left
    coloured = overlay(image, heat).astype(int)
    is_coloured = np.ptp(coloured, axis=2) > 0
    assert np.array_equal(is_coloured, heat > 0)
    assert (np.diff(coloured[0, :3].sum(axis=1)) > 0).all()  # brighter stays brighter


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(60, 100), (100, 60), (30, 30)])
def test_heat_goes_back_to_where_it_came_from(resize, size):
    image = np.full(size, 20, np.uint8)
    place = slice(size[0] * 3 // 10, size[0] * 5 // 10), slice(size[1] * 5 // 10, size[1] * 13 // 20)  # never cut away
    image[place] = 250
    back = on_original((fit_image(image, (48, 32), resize) > 135).astype(np.float32), size, resize)
    assert back.shape == size and back.dtype == np.float32
    for axis, wanted in ((1, place[0]), (0, place[1])):
        found = np.flatnonzero((back > 0.5).any(axis=axis))
        assert abs(found.min() - wanted.start) <= 3 and abs(found.max() + 1 - wanted.stop) <= 3


def test_a_sheet_has_a_line_for_each_radiograph_and_a_column_for_each_model():
    radiographs = np.full((2, 24, 40), 100, np.uint8)
    overlays = {"ViT": np.full((2, 24, 40, 3), (200, 10, 10), np.uint8)}
    overlays["ResNet"] = np.full((2, 12, 20, 3), (10, 200, 10), np.uint8)  # of another size
    drawn = np.asarray(sheet(radiographs, overlays, ["a note"]))
    assert drawn.ndim == 3
    colours = ((100, 100, 100), (200, 10, 10), (10, 200, 10))
    for colour in colours:
        rows = (drawn == colour).all(axis=2).any(axis=1)
        assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 2  # two lines
    columns = [
        np.flatnonzero((drawn == colour).all(axis=2).any(axis=0)).min() for colour in ((200, 10, 10), (10, 200, 10))
    ]
    assert columns == sorted(columns)
