"""Laws of the classifiers: the probe, fine-tuning's groups and loss, and the ResNets."""

import pandas as pd
import pytest
import torch
from scipy.special import logit
from torch import Tensor, nn

from classify import build_classifier, build_resnet
from classify.finetune import classification_loss, decision_threshold, finetune_step
from classify.models.classifier import Classifier, layer_scale
from classify.scores import in_units
from classify.settings import FinetuneSettings
from data.errors import UserError
from data.loader import Batch
from mae import build_mae
from mae.engine.optim import adamw, parameter_groups, seeded
from mae.engine.schedule import set_learning_rate
from mae.patches import patchify, unpatchify

DEPTH = 3


def tiny(pool: str = "mean", probe: bool = False, drop_path: float = 0.0, drop_patches: float = 0.0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"width": 12, "depth": DEPTH, "heads": 3, "decoder_depth": 1}
        encoder = build_mae("vit_tiny_patch16", (6, 10), patch_size=2, **sizes).encoder
        return build_classifier(encoder, pool, probe, drop_path, drop_patches)


def pixels(b: int = 7) -> Tensor:
    return torch.randn(b, 1, 6, 10, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([1.0, 0, 1, 1, 0, 0, 1])


def take_step(model: nn.Module, **batch) -> None:
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), (0.9, 0.999))
    set_learning_rate(optimizer, 0.1)
    classification_loss(model(pixels(), **batch), LABELS).backward()
    optimizer.step()


# ---------------------------------------------------------------- pooling


def test_logits_are_one_per_image():
    assert tiny()(pixels()).shape == (7,)
    assert tiny()(pixels(1)).shape == (1,)


def test_mean_pool_leaves_the_class_token_out():
    model = tiny("mean")
    tokens = model.encoder(pixels())
    torch.testing.assert_close(model(pixels()), model.head(tokens[:, 1:].mean(1))[:, 0])


def test_cls_pool_reads_the_class_token_alone():
    model = tiny("cls")
    torch.testing.assert_close(model(pixels()), model.head(model.encoder(pixels())[:, 0])[:, 0])


def test_shuffling_a_batch_shuffles_its_logits():
    model, order = tiny().double(), torch.tensor([4, 2, 6, 0, 5, 1, 3])
    images = pixels().double()
    torch.testing.assert_close(model(images[order]), model(images)[order], rtol=0, atol=1e-12)


# ---------------------------------------------------------------- linear probe


def test_probe_freezes_the_encoder():
    model = tiny(probe=True, drop_path=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_step(model)
    after = model.state_dict()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert changed == {"head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_probes_encoder_is_in_evaluation_mode_even_while_training():
    model = tiny(probe=True, drop_path=0.5)
    for mode in (True, False, True):
        model.train(mode)
        assert not any(module.training for module in model.encoder.modules())
        assert model.norm.training is model.head.training is model.training is mode
    assert model.train()(pixels()).equal(model(pixels()))  # no stochastic depth


def test_probes_batch_norm_has_no_parameters_and_uses_the_batch_while_training():
    model = tiny(probe=True).train()
    assert not list(model.norm.parameters())
    features = model.encoder(pixels())[:, 1:].mean(1)
    normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(model(pixels()), model.head(normed)[:, 0], rtol=1e-4, atol=1e-5)


def test_probe_does_not_depend_on_the_features_scale():
    model = tiny(probe=True).double().train()
    logits = model(pixels().double())
    with torch.no_grad():
        model.encoder.norm.weight.mul_(50)
        model.encoder.norm.bias.mul_(50).add_(3)
    torch.testing.assert_close(model(pixels().double()), logits, rtol=0, atol=1e-3)


def test_fine_tuning_trains_everything():
    model = tiny(drop_path=0.1).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.head.weight.mul_(100)
        before["head.weight"] *= 100
    take_step(model, noise=torch.ones(7, 2 * DEPTH))
    assert not [name for name, p in model.named_parameters() if p.equal(before[name])]


# ---------------------------------------------------------------- dropped patches


@pytest.mark.parametrize(("share", "kept"), [(0.2, 12), (0.5, 7), (0.99, 1)])
def test_of_the_patches_those_with_the_lowest_draws_are_looked_at(share, kept):
    model = tiny(drop_patches=share).eval()
    assert model.patch_draws == 15
    noise = torch.rand(7, 15, generator=torch.Generator().manual_seed(2))

    # pixels elsewhere may be anything
    looked_at = noise.argsort(dim=1)[:, :kept]
    patches = patchify(pixels(), 2)
    elsewhere = torch.ones(7, 15, 1).scatter(1, looked_at[:, :, None], 0.0)
    changed = unpatchify(patches + 100 * elsewhere, (3, 5), 2)
    torch.testing.assert_close(model(changed, None, noise), model(pixels(), None, noise))
    assert not torch.allclose(model(changed), model(pixels()), atol=1e-4)


def test_a_step_draws_its_patches_by_seed_epoch_and_image_and_predictions_look_at_all():
    settings = FinetuneSettings(drop_patches=0.5, augment={"enabled": False}, drop_path=0.0)
    model = tiny(drop_patches=0.5).train()
    images = torch.randint(0, 256, (7, 1, 6, 10), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    batch = Batch(images, LABELS, torch.arange(7))

    def loss(epoch: int, seed: int) -> float:
        return finetune_step(model, batch, epoch, settings, seed).item()

    assert loss(2, 5) == loss(2, 5)
    assert len({loss(1, 5), loss(2, 5), loss(2, 7)}) == 3
    whole = tiny()
    torch.testing.assert_close(model.eval()(pixels()), whole.eval()(pixels()), rtol=0, atol=0)


def test_a_probe_and_a_resnet_leave_nothing_out():
    assert tiny(probe=True, drop_patches=0.5).patch_draws == tiny().patch_draws == 0
    assert build_resnet("resnet18", stem="small").patch_draws == 0


# ---------------------------------------------------------------- layer decay


def test_layer_decay_factors():
    scale = layer_scale(0.75, DEPTH)
    assert scale("head.weight") == scale("head.bias") == scale("encoder.norm.weight") == 1.0
    for block in range(DEPTH):
        assert scale(f"encoder.blocks.{block}.attention.qkv.weight") == 0.75 ** (DEPTH - block)
    assert scale("encoder.embed.weight") == scale("encoder.class_token") == 0.75 ** (DEPTH + 1)
    assert {layer_scale(1.0, DEPTH)(name) for name, _ in tiny().named_parameters()} == {1.0}


def test_layer_decay_reaches_the_learning_rates():
    model = tiny()
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05, layer_scale(0.5, DEPTH)), (0.9, 0.999))
    set_learning_rate(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.bias)] == 0.8
    assert rates[id(model.encoder.blocks[2].mlp.up.weight)] == 0.4
    assert rates[id(model.encoder.embed.bias)] == 0.05


# ---------------------------------------------------------------- loss


def test_unknown_labels_carry_no_gradient():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.0], requires_grad=True)
    labels = torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0])
    loss = classification_loss(logits, labels, 0.1)
    loss.backward()
    assert (logits.grad != 0).tolist() == [True, False, True, False, True]
    known = classification_loss(logits.detach()[[0, 2, 4]], labels[[0, 2, 4]], 0.1)
    torch.testing.assert_close(loss.detach(), known)


def test_a_batch_without_labels_changes_nothing():
    logits = torch.randn(3, requires_grad=True)
    loss = classification_loss(logits, torch.full((3,), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_formula(smoothing):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.0, 1.5, -3.0])
    p = torch.sigmoid(logits)
    target = torch.where(LABELS == 1, 1 - smoothing / 2, smoothing / 2)
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(classification_loss(logits, LABELS, smoothing), expected)


# ---------------------------------------------------------------- ResNet


def norm_names(prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def torchvision_names(depths: tuple[int, ...], convolutions: int, first_downsamples: bool) -> list[str]:
    names = ["conv1.weight", *norm_names("bn1")]
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            place = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names += [f"{place}.conv{number}.weight", *norm_names(f"{place}.bn{number}")]
            if block == 0 and (stage > 1 or first_downsamples):
                names += [f"{place}.downsample.0.weight", *norm_names(f"{place}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "parameters", "tensors", "names"),
    [
        ("resnet18", 11_689_512, 122, torchvision_names((2, 2, 2, 2), 2, False)),
        ("resnet50", 25_557_032, 320, torchvision_names((3, 4, 6, 3), 3, True)),
    ],
)
def test_resnets_are_torchvisions(name, parameters, tensors, names):
    with torch.device("meta"):
        model = build_resnet(name, in_channels=3, classes=1000)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert list(model.state_dict()) == names
    assert len(names) == tensors


@pytest.mark.parametrize("network", ["vit", "resnet18"])
def test_classifiers_compute_on_tensors_without_values(network):
    """In this way costs are counted and the faster product of a CPU is found."""
    with torch.device("meta"):
        if network == "vit":
            encoder = build_mae("vit_tiny_patch16", image_size=32, width=12, depth=1, heads=3).encoder
            model = build_classifier(encoder)
        else:
            model = build_resnet(network, in_channels=1)
        assert model(torch.empty(5, 1, 32, 32)).shape == (5,)


def test_resnet_weights_have_torchvisions_shapes():
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in build_resnet("resnet50", 3, 1000).state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)


@pytest.mark.parametrize(
    ("name", "stem", "sides"),
    [("resnet18", "imagenet", [16, 8, 4, 2]), ("resnet50", "imagenet", [16, 8, 4, 2]), ("resnet18", "small", [64, 32])],
)
def test_resnet_halves_the_image_where_torchvision_does(name, stem, sides):
    model, seen = build_resnet(name, stem=stem).eval(), []
    for stage in range(1, 5):
        getattr(model, f"layer{stage}").register_forward_hook(lambda module, args, out: seen.append(out.shape[-2:]))
    with torch.no_grad():
        assert model(torch.randn(2, 1, 64, 96)).shape == (2,)
    assert [tuple(side) for side in seen][: len(sides)] == [(side, side * 3 // 2) for side in sides]


def test_the_strided_convolution_is_the_3x3_one():
    block = build_resnet("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


def test_a_resnet_block_is_the_published_sum():
    torch.manual_seed(0)
    block = build_resnet("resnet18").layer2[0].eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight), nn.init.uniform_(module.bias), nn.init.uniform_(module.running_mean)
    x = torch.randn(2, 64, 6, 10)
    branch = torch.relu(block.bn1(block.conv1(x)))
    branch = block.bn2(block.conv2(branch))
    torch.testing.assert_close(block(x), torch.relu(branch + block.downsample[1](block.downsample[0](x))))


def test_resnet_standardizes_like_the_encoder():
    grey = torch.tensor([0, 102, 153, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    standardized = build_resnet(pixel_mean=0.4, pixel_std=0.2).standardize(grey)
    torch.testing.assert_close(standardized.flatten(), torch.tensor([-2.0, 0.0, 1.0, 3.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("resnet34",), "finetune.model: found 'resnet34'"), (("resnet18", 1, 1, "tiny"), "finetune.stem: found 'tiny'")],
)
def test_unknown_resnets_are_refused_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        build_resnet(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_building_by_seed_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with seeded(3):
        first = build_resnet().state_dict()
    with seeded(3):
        second = build_resnet().state_dict()
    assert torch.get_rng_state().equal(before)
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("model", [tiny(), tiny(probe=True), build_resnet("resnet18")], ids=["full", "probe", "resnet"])
def test_scores_are_float32_under_autocast(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(pixels()).dtype == torch.float32


def test_studies_have_a_threshold_of_their_own():

    studies = ["a", "a", "b", "c", "c", "c", "d"]
    table = pd.DataFrame({"image_id": list("tuvwxyz"), "patient_id": studies, "study_id": studies})
    table["label"] = table["study_id"].map({"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
    table["score"] = [0.9, 0.1, 0.3, 0.2, 0.8, 0.8, 0.2]
    table["logit"] = logit(table["score"])
    means = in_units(table, "study")
    assert means["study_id"].tolist() == ["a", "b", "c", "d"]
    assert means["score"].tolist() == pytest.approx([0.5, 0.3, 0.6, 0.2])
    assert decision_threshold(means, "youden") == pytest.approx(0.4)
    assert decision_threshold(in_units(table, "image"), "youden") == pytest.approx(0.55)
