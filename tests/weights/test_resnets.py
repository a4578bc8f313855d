"""Laws of `finetune.init`: a ResNet of another program computes here what it computes there, or is refused."""

import json
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from foreign_resnets import (
    IMAGENET,
    medmnist_names,
    older,
    pth,
    replicated,
    resnet_config,
    torchvision_features,
    torchvision_weights,
)
from foreign_weights import quiet
from safetensors.torch import save_file
from tiny_world import call
from torch import Tensor, nn

import classify.models.resnet
from classify.cli import finetune as mae_finetune
from classify.finetune import finetune, optimizer_choice
from classify.models import resnet_weights
from classify.models.build import build_model
from classify.models.resnet import ResNet, resnet_layer_scale
from classify.models.resnet_weights import is_resnet, resnet_start
from data.errors import UserError
from mae import load_checkpoint
from mae.engine.optim import seeded


@pytest.fixture
def wide(monkeypatch):
    """ResNets are as wide as published ones; those of other tests are not."""
    monkeypatch.setattr(classify.models.resnet, "WIDTH", 64)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """resnet18, by torchvision's names."""
    return pth(tmp_path_factory.mktemp("published") / "resnet18-f37072fd.pth", torchvision_weights())


def grey(b: int = 2, size: tuple[int, int] = (45, 37)) -> Tensor:
    """White at the border, where padding would show."""
    images = torch.randint(0, 256, (b, 1, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[:, :, :5] = 255
    return images


def begun(config, say=quiet) -> ResNet:
    resolved, start = resnet_start(config, say)
    model = build_model(resolved, start)
    assert isinstance(model, ResNet)
    return model.eval()


def features(model: ResNet, images: Tensor) -> Tensor:
    """What the head receives for 8-bit images, in 64 bits."""
    model = model.double()
    seen = []
    model.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model((images.double() / 255 - model.mean) / model.std)
    return seen[0]


def as_doubles(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in weights.items()}


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"model.pixel_mean": 0.3, "model.pixel_std": 0.9}, {"model.in_channels": 3}],
    ids=["grey", "grey otherwise", "three channels"],
)
def test_features_are_those_of_the_replicated_standardised_image_borders_included(tmp_path, network, changes):
    weights = torchvision_weights(network)
    file = pth(tmp_path / "weights.pth", weights)
    model = begun(resnet_config(tmp_path, file, {"finetune.model": network} | changes))
    expected = torchvision_features(as_doubles(weights), replicated(grey(), *IMAGENET))
    torch.testing.assert_close(features(model, grey()), expected, rtol=1e-5, atol=1e-5)


def test_without_its_offsets_the_border_would_differ(tmp_path, published):
    weights = torchvision_weights()
    model = begun(resnet_config(tmp_path, published))
    assert isinstance(model.conv1, nn.Conv2d)
    everywhere = model.conv1.offset.sum((1, 2, 3)).double()
    expected = torch.nn.functional.conv2d(
        replicated(grey(), *IMAGENET), weights["conv1.weight"].double(), stride=2, padding=3
    )
    images = (grey().double() / 255 - model.mean.double()) / model.std.double()
    with torch.no_grad():
        found = model.conv1.double()(images)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        model.conv1.offset.zero_()
        as_a_bias = model.conv1(images) + everywhere[:, None, None]
    torch.testing.assert_close(as_a_bias[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], rtol=1e-5, atol=1e-5)
    assert (as_a_bias - expected).abs().max() > 0.1


def test_three_channels_of_the_files_own_standardisation_stay_bit_for_bit(tmp_path, published):
    mean, std = ([round(v, 3) for v in level.tolist()] for level in IMAGENET)
    changes = {"model.in_channels": 3, "model.pixel_mean": mean, "model.pixel_std": std}
    model = begun(resnet_config(tmp_path, published, changes)).state_dict()
    weights = torchvision_weights()
    for name, tensor in weights.items():
        assert name.startswith("fc.") or model[name].equal(tensor), name
    assert not model["conv1.offset"].any()


def test_transformers_agrees(wide, tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.ResNetForImageClassification(settings).eval()
    generator = torch.Generator().manual_seed(3)
    for name, buffer in theirs.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else -0.5))
    theirs.save_pretrained(tmp_path / "hf")
    preprocessing = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "hf/preprocessor_config.json").write_text(json.dumps(preprocessing))

    said = []
    model = begun(resnet_config(tmp_path, tmp_path / "hf"), said.append)
    images = replicated(grey(), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])).float()
    with torch.no_grad():
        expected = theirs.resnet(images).pooler_output.flatten(1)
    torch.testing.assert_close(features(model, grey()).float(), expected, rtol=1e-4, atol=1e-5)
    assert "unexpected, not used: classifier.*.bias, classifier.*.weight" in said[0]
    assert is_resnet(tmp_path / "hf")


# ---------------------------------------------------------------- whatever it comes in


@pytest.mark.parametrize(
    "pack",
    [
        lambda path, w: pth(path, older(w), legacy=True),
        lambda path, w: pth(path, older(w)),
        lambda path, w: pth(path, {"state_dict": {f"module.{n}": t for n, t in w.items()}, "epoch": 3}),
        lambda path, w: pth(path, {"model": {f"backbone.body.{n}": t for n, t in w.items()}}),
        lambda path, w: pth(path, {"net": medmnist_names(w)}),
        lambda path, w: save_file(w, path.with_suffix(".safetensors")) or path.with_suffix(".safetensors"),
    ],
    ids=["before torch 1.6", "parameters", "DataParallel", "a detector's", "MedMNIST's", "safetensors"],
)
def test_wrappers_formats_and_names_change_nothing(tmp_path, pack):
    weights = torchvision_weights(classes=5)
    file = pack(tmp_path / "weights.pth", weights)
    changes = {"finetune.init_mean": IMAGENET[0].tolist(), "finetune.init_std": IMAGENET[1].tolist()}
    assert is_resnet(file)
    model = begun(resnet_config(tmp_path, file, changes))
    expected = torchvision_features(as_doubles(weights), replicated(grey(), *IMAGENET))
    torch.testing.assert_close(features(model, grey()), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_becomes_float32(tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in torchvision_weights().items()}
    said = []
    model = begun(resnet_config(tmp_path, pth(tmp_path / "half.pth", half)), said.append)
    expected = torchvision_features(as_doubles(half), replicated(grey(), *IMAGENET))
    torch.testing.assert_close(features(model, grey()), expected, rtol=1e-5, atol=1e-5)
    assert "conv1.weight: float16 → float32; 3 channels" in said[0]


def test_medmnists_small_stem_is_taken_over_and_so_is_how_its_authors_standardise(tmp_path):
    weights = torchvision_weights(kernel=3, classes=2)
    file = pth(tmp_path / "resnet18_28_1.pth", {"net": medmnist_names(weights)})
    said = []
    config, start = resnet_start(resnet_config(tmp_path, file), said.append)
    assert config.finetune.stem == "small"
    half = torch.full((3,), 0.5)
    expected = torchvision_features(as_doubles(weights), replicated(grey(), half, half))
    torch.testing.assert_close(features(build_model(config, start).eval(), grey()), expected, rtol=1e-5, atol=1e-5)
    assert "MedMNIST's mean 0.5 and deviation 0.5" in said[0]


def test_one_channel_is_read_by_the_statistics_that_are_said_of_it(tmp_path):
    weights = torchvision_weights(channels=1)
    file = pth(tmp_path / "grey.pth", weights)
    model = begun(resnet_config(tmp_path, file, {"finetune.init_mean": 0.5, "finetune.init_std": 1 / 2048}))
    expected = torchvision_features(
        as_doubles(weights), replicated(grey(), torch.tensor([0.5]), torch.tensor([1 / 2048]))
    )
    torch.testing.assert_close(features(model, grey()), expected, rtol=1e-5, atol=1e-3)


# ---------------------------------------------------------------- the account


def test_every_tensor_is_accounted_for(tmp_path, published):
    said = []
    config = resnet_config(tmp_path, published)
    begun(config, said.append)
    [text] = said
    assert "119 tensors loaded" in text  # 122 without the adapted kernel and the head
    assert "adapted: conv1.weight: 3 channels and their standardisation → grey, exactly" in text
    assert "missing, left at fresh initialisation: fc.weight, fc.bias" in text
    assert "unexpected, not used: fc.weight, fc.bias" in text
    assert "torchvision: its code BSD-3-Clause" in text

    report = resnet_weights._report(*_parts(config))
    named = [*report.loaded, *report.adapted, *report.unexpected]
    assert sorted(named) == sorted(torchvision_weights())


def _parts(config):
    source = resnet_weights._source_of(config)
    return source, config, resnet_weights._adapted(source, config)[1]


def test_a_file_without_counts_of_batches_says_so(tmp_path):
    said = []
    begun(resnet_config(tmp_path, pth(tmp_path / "old.pth", older(torchvision_weights()), legacy=True)), said.append)
    assert "missing, left at fresh initialisation: fc.weight, fc.bias\n" in said[0]
    assert "assumed: no num_batches_tracked, which nothing here reads" in said[0]


def test_a_published_file_is_known_by_content_and_a_name_that_its_content_is_not_is_said(
    tmp_path, published, monkeypatch
):
    said = []
    begun(resnet_config(tmp_path, published), said.append)
    assert "assumed: by its name torchvision's resnet18 IMAGENET1K_V1, though its content has the digest" in said[0]

    content = re.search(r"the digest (\w{8})", said[0])[1]
    monkeypatch.setitem(resnet_weights.PUBLISHED, content, ("resnet18", "drawn"))
    other = tmp_path / "renamed.pth"
    other.write_bytes(published.read_bytes())
    begun(resnet_config(tmp_path, other), said.append)
    assert "assumed" not in said[1]
    assert "BSD-3-Clause" in said[1]

    # without either, the licence is unknown, and the statistics are ImageNet's because that is usual
    begun(resnet_config(tmp_path, pth(tmp_path / "mine.pth", torchvision_weights(seed=1))), said.append)
    assert "licence unknown" in said[2]
    assert "of the pixels, ImageNet's; finetune.init_mean and init_std say others" in said[2]


# ---------------------------------------------------------------- what does not fit


Content = Callable[[], dict]  # of a file, made where its test runs


def torchvision(*form: str, **form_of: int) -> Content:
    return partial(torchvision_weights, *form, **form_of)


def without(name: str) -> Content:
    return lambda: {n: t for n, t in torchvision_weights().items() if n != name}


def spoilt(**changed: Tensor) -> Content:
    return lambda: torchvision_weights() | {name.replace("__", "."): tensor for name, tensor in changed.items()}


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (torchvision("resnet34"), {}, "found a resnet34, expected resnet18 by finetune.model; take"),
        (torchvision("resnet50"), {}, "found a resnet50, expected resnet18 by finetune.model; give"),
        (torchvision(), {"finetune.stem": "small"}, "found the imagenet stem, expected small by finetune.stem"),
        (torchvision(kernel=3), {"finetune.stem": "imagenet"}, "found the small stem, expected imagenet"),
        (torchvision(kernel=5), {}, "found conv1.weight (8, 3, 5, 5), expected a stem of 7x7 or 3x3"),
        (torchvision(channels=4), {}, "found 4 channels in conv1.weight, expected 1 or 3"),
        (torchvision(channels=1), {"model.in_channels": 3}, "found weights for 1 channel(s), expected 3"),
        (torchvision(channels=1), {"finetune.init_mean": [0.1, 0.2, 0.3], "finetune.init_std": 0.5}, "found 3"),
        (without("layer3.1.bn2.running_var"), {}, "found no tensor for layer3.1.bn2.running_var, expected those of a"),
        (without("conv1.weight"), {}, "found no conv1.weight, expected a stem of one convolution"),
        (spoilt(conv1__bias=torch.ones(8)), {}, "found conv1.bias, expected a stem of one convolution without bias"),
        (spoilt(layer1__0__se__fc1__weight=torch.ones(4, 8, 1, 1)), {}, "found layer1.0.se.fc1.weight, expected"),
        (spoilt(layer2__1__conv2__weight=torch.ones(16, 4, 3, 3)), {}, "found layer2.1.conv2.weight (16, 4, 3, 3)"),
        (spoilt(bn1__running_var=-torch.ones(8)), {}, "found a variance below 0 in bn1.running_var"),
        (spoilt(bn1__weight=torch.ones(8, dtype=torch.int64)), {}, "found torch.int64 in bn1.weight"),
        (spoilt(bn1__bias=torch.full((8,), torch.nan)), {}, "bn1.bias: found NaN or infinity"),
        (lambda: {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4)}, {}, "found no layer1.0.conv1.weight or embedder"),
        (lambda: {"a": torchvision_weights(), "b": torchvision_weights()}, {}, "found 2 models (a, b), expected"),
        (lambda: {"epoch": 3}, {}, "found no state dict, expected names with tensors"),
    ],
)  # fmt: skip
def test_what_is_no_such_resnet_is_one_line(tmp_path, content, changes, said):
    file = pth(tmp_path / "weights.pth", content())
    with pytest.raises(UserError) as error:
        resnet_start(resnet_config(tmp_path, file, changes), quiet)
    assert str(error.value).startswith(f"{file}: {said}")
    assert "\n" not in str(error.value)


def test_variants_that_share_names_and_not_the_function_are_told_by_their_folder(tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(torchvision_weights(), folder / "model.safetensors")
    settings = {"architecture": "resnetblur18", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="found resnetblur18, expected a plain resnet18"):
        resnet_start(resnet_config(tmp_path, folder), quiet)

    (folder / "config.json").write_text(json.dumps(settings | {"architecture": "resnet18"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    said = []
    model = begun(resnet_config(tmp_path, folder), said.append)
    images = replicated(grey(), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3]))
    expected = torchvision_features(as_doubles(torchvision_weights()), images)
    torch.testing.assert_close(features(model, grey()), expected, rtol=1e-5, atol=1e-5)
    assert "licence apache-2.0" in said[0]

    (folder / "config.json").write_text(json.dumps({"downsample_in_bottleneck": True}))
    with pytest.raises(UserError, match="found downsample_in_bottleneck True, expected False"):
        resnet_start(resnet_config(tmp_path, folder), quiet)


def test_settings_that_contradict_each_other_are_one_line(world, tmp_path, published):
    for settings, said in [
        ([f"finetune.init={published}"], "init: found it with finetune.model vit, expected resnet18 or resnet50;"),
        (["finetune.init_mean=0.5", "finetune.init_std=0.5"], "found it without finetune.init"),
        ([f"finetune.init={published}", "finetune.model=resnet18", "finetune.init_mean=0.5"], "found one of init_mean"),
        (["finetune.init=nothing.pth", "finetune.model=resnet18"], "nothing.pth: found no such file or folder"),
        ([f"model.init={published}"], "expected the state dict of one Vision Transformer"),
    ]:  # fmt: skip
        outcome = call(mae_finetune, "--config", world.config, *settings, f"finetune.run={tmp_path}/run")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert said in outcome.err


# ---------------------------------------------------------------- a run


def test_a_run_from_weights_has_the_pretrained_rates_and_says_what_it_owes(tmp_path, published):
    config = resnet_config(tmp_path, published)
    folder = finetune(config)
    best = load_checkpoint(folder / "best.pt")
    assert best.meta["seen_elsewhere"] is True
    assert best.meta["pretrained_from"] == str(published)
    assert best.meta["license"]["license"] == "other"
    assert best.config.finetune.stem == "imagenet"  # at 12 pixels, auto would be small
    choice = optimizer_choice(config.finetune, pretrained=True)
    scales = {group["lr_scale"] for group in load_checkpoint(folder / "last.pt").optimizer["param_groups"]}
    assert scales == {choice.layer_decay**power for power in range(6)}

    # only the same weights continue it, and evaluation needs none
    finetune(config)
    pth(published.with_name("other.pth"), torchvision_weights(seed=1))
    other = published.with_name("other.pth").read_bytes()
    kept = published.read_bytes()
    try:
        published.write_bytes(other)
        with pytest.raises(UserError, match="init"):
            finetune(config)
    finally:
        published.write_bytes(kept)


def test_a_resnet_given_as_checkpoint_is_finetune_init(world, tmp_path, published):
    words = ["--checkpoint", published, "finetune.model=resnet18", f"finetune.run={tmp_path}/run"]
    outcome = call(mae_finetune, "--config", world.config, *words)
    assert outcome.code == 0, outcome.err
    assert "adapted: conv1.weight: 3 channels" in outcome.out
    assert load_checkpoint(tmp_path / "run/best.pt").config.finetune.init == str(published)
    assert not is_resnet(tmp_path / "run/best.pt")


def test_our_own_checkpoint_is_no_other_programs_resnet(tmp_path):
    run = finetune(resnet_config(tmp_path, None))
    with pytest.raises(UserError, match="found a checkpoint of this project, expected another program's weights"):
        resnet_start(resnet_config(tmp_path, run / "best.pt"), quiet)


def test_layer_decay_of_a_resnet(tmp_path):
    scale = resnet_layer_scale(0.5)
    assert scale("fc.weight") == 1.0
    assert [scale(f"layer{stage}.0.bn1.weight") for stage in (4, 3, 2, 1)] == [0.5, 0.25, 0.125, 0.0625]
    assert scale("conv1.weight") == scale("bn1.bias") == 0.5**5
    names = [name for name, _ in build_model(resnet_config(tmp_path, None)).named_parameters()]
    assert {resnet_layer_scale(1.0)(name) for name in names} == {1.0}


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("init", [False, True], ids=["random", "published"])
def test_a_probed_resnets_trunk_stays_as_it_was(tmp_path, published, init):
    config = resnet_config(tmp_path, published if init else None, {"finetune.mode": "linear"})
    config, start = resnet_start(config, quiet)
    with seeded(config.seed):
        before = build_model(config, start).state_dict()
    folder = finetune(config)
    after = load_checkpoint(folder / "last.pt").weights
    changed = {name for name in before if not after[name].equal(before[name])}
    assert changed == {"fc.weight", "fc.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    model = build_model(config).train()
    frozen = [m for n, m in model.named_modules() if n and n.split(".")[0] not in ("fc", "norm")]
    assert not any(module.training for module in frozen)
    assert model.training
    assert model.norm.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_a_probe_does_not_depend_on_the_features_scale(tmp_path):
    model = build_model(resnet_config(tmp_path, None, {"finetune.mode": "linear"})).double().train()
    images = torch.randn(5, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []
    model.norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    scale_features(model, 5000)  # far beyond the eps of the norm
    logits = model(images)
    scale_features(model, 7)
    torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[1], 7 * seen[0])


def scale_features(model: ResNet, factor: float) -> None:
    """Scale what the trunk computes by a factor."""
    first, last = model.layer4
    with torch.no_grad():
        for norm in (first.bn2, first.downsample[1], last.bn2):
            norm.weight.mul_(factor)
            norm.bias.mul_(factor)
        last.bn1.weight.div_(factor)
