"""`finetune.init`: another program's ResNet weights → the trunk of a ResNet here, which computes the same.

A file takes the same way as in `mae/weights/`: `files.py` reads tensors and plain values, `state_dicts.py` removes what
is wrapped around them. Here the tensors get torchvision's names, are checked against the expected network, and are
adapted to images as this project standardises them.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from classify.models.resnet import OFFSET, build_resnet
from classify.settings import ClassifyConfig, FinetuneSettings
from data.config import change_config, expand
from data.errors import UserError, printable
from mae.engine.checkpoint import Checkpoint, is_dense
from mae.engine.checkpoint_file import existing
from mae.engine.distributed import is_main
from mae.weights.account import Report
from mae.weights.adapt import as_channels
from mae.weights.files import SETTINGS, described_in, digest, read_facebook, read_folder, read_json
from mae.weights.huggingface import preprocessing_of
from mae.weights.layouts import FLOATS
from mae.weights.licenses import UNKNOWN, License, license_of
from mae.weights.source import IMAGENET, Levels, as_levels, as_tuple
from mae.weights.start import is_ours
from mae.weights.state_dicts import StateDict, holds_a_resnet, resnet_state_dict_of

Say = Callable[[str], None]

# names of torchvision's files end in the first digits of their SHA-256; these digits → what a file holds
PUBLISHED = {
    "f37072fd": ("resnet18", "IMAGENET1K_V1"),
    "5c106cde": ("resnet18", "IMAGENET1K_V1, as first published"),
    "0676ba61": ("resnet50", "IMAGENET1K_V1"),
    "19c8e357": ("resnet50", "IMAGENET1K_V1, as first published"),
    "11ad3fa6": ("resnet50", "IMAGENET1K_V2"),
}
TORCHVISION_LICENSE: License = {
    "license": "other",
    "license_name": "torchvision: its code BSD-3-Clause, its weights by terms that may derive from ImageNet's",
    "license_link": "https://github.com/pytorch/vision#pre-trained-model-license",
}
MEDMNIST = 0.5, 0.5  # mean and deviation that MedMNIST's authors standardise by

# whether blocks are bottlenecks, and how many each of the four layers has → the network's name
NETWORKS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
TRUNK = re.compile(r"(conv1|bn1|maxpool|layer\d)\.")  # how the names of the trunk's tensors begin
COUNTS = "num_batches_tracked"  # files from before torch 0.4.1 lack it; nothing here reads it


@dataclass(frozen=True)
class ResNetSource:
    """A trunk as its file has it, under torchvision's names, and what is known of it."""

    place: str
    network: str  # resnet18, …
    stem: str  # imagenet or small
    tensors: dict[str, Tensor]
    names: dict[str, str]  # torchvision's → the file's
    unexpected: tuple[str, ...]  # the file's names, not used
    mean: Levels
    std: Levels
    license: License
    assumed: tuple[str, ...]

    @property
    def channels(self) -> int:
        return self.tensors["conv1.weight"].shape[1]


@dataclass(frozen=True)
class _Said:
    """What a file says besides its tensors; None where it says nothing."""

    mean: Levels | None = None
    std: Levels | None = None
    license: License = UNKNOWN
    assumed: tuple[str, ...] = ()


# ---------------------------------------------------------------- for a fine-tuning


def _say_once(text: str) -> None:
    """Print on one rank only."""
    if is_main():
        print(text)


def resnet_start(config: ClassifyConfig, say: Say = _say_once) -> tuple[ClassifyConfig, Checkpoint | None]:
    """The config with the stem of `finetune.init`'s weights, and the checkpoint of their trunk; None without them.

    The checkpoint has no head: the head starts fresh. `meta` has the licence and a digest of the file's weights.
    """
    if config.finetune.init is None:
        return config, None
    source = _source_of(config)
    config = _with_stem(config, source)
    weights, adapted = _adapted(source, config)
    facts = {
        "seen": [],
        "seen_elsewhere": True,
        "license": source.license,
        "init": digest({name: tensor for name, tensor in source.tensors.items() if not name.endswith(COUNTS)}),
    }
    say(str(_report(source, config, adapted)))
    return config, Checkpoint("resnet", config.model_dump(mode="json"), weights, facts, place=source.place)


def resolve_resnet(config: ClassifyConfig) -> ClassifyConfig:
    """The config with the stem of `finetune.init`'s weights; UserError if these are not what the config asks for."""
    if config.finetune.init is None:
        return config
    return _with_stem(config, _source_of(config))


def is_resnet(path: str | Path) -> bool:
    """Whether the path holds readable weights of another program's ResNet."""
    path = Path(path)
    try:
        if folder := described_in(path):
            return (folder / SETTINGS).is_file() and holds_a_resnet(read_folder(path))
        if not path.is_file():
            return False
        raw = read_facebook(path)
    except UserError:
        return False
    return not is_ours(raw) and holds_a_resnet(raw)


def _source_of(config: ClassifyConfig) -> ResNetSource:
    settings = config.finetune
    assert settings.init is not None
    source = read_resnet(expand(settings.init, "finetune.init"), settings)
    if source.channels not in (1, 3):
        raise UserError(f"{source.place}: found {source.channels} channels in conv1.weight, expected 1 or 3")
    if source.channels < config.model.in_channels:
        raise UserError(
            f"{source.place}: found weights for {source.channels} channel(s), expected {config.model.in_channels}; "
            "give model.in_channels=1"
        )
    return source


def _with_stem(config: ClassifyConfig, source: ResNetSource) -> ClassifyConfig:
    return change_config(config, {"finetune.stem": source.stem}, source.place)


# ---------------------------------------------------------------- reading


def read_resnet(path: str | Path, settings: FinetuneSettings) -> ResNetSource:
    """The weights of `settings.model` in a file, or in a folder of Hugging Face's or timm's.

    A one-line UserError for weights that are not such a ResNet, or that would not be the same network here.
    """
    path = existing(path)
    raw = read_folder(path) if described_in(path) else read_facebook(path)
    if is_ours(raw):
        raise UserError(f"{path}: found a checkpoint of this project, expected another program's weights of a ResNet")
    found = resnet_state_dict_of(raw, str(path))
    tensors, names = _under_torchvisions_names(found)

    network = _network(tensors, str(path))
    if network != settings.model:
        advice = f"give finetune.model={network}" if network in ("resnet18", "resnet50") else "take other weights"
        raise UserError(f"{path}: found a {network}, expected {settings.model} by finetune.model; {advice}")
    stem = _stem(tensors, names, str(path))
    if settings.stem not in ("auto", stem):
        raise UserError(
            f"{path}: found the {stem} stem, expected {settings.stem} by finetune.stem; leave it out, or take other "
            "weights"
        )
    _check_tensors(tensors, names, network, stem, str(path))

    said = _said(path, found, settings.model)
    assumed = list(said.assumed)
    mean, std = _statistics(said, tensors["conv1.weight"].shape[1], settings, str(path), assumed)
    if stem == "small":
        assumed.append("a 3x3 stem of stride 1 without pooling")

    # not used: the head, and what stands beside the network
    trunk = {name: tensor for name, tensor in tensors.items() if TRUNK.match(name)}
    heads = [names[name] for name in tensors if name not in trunk]
    return ResNetSource(
        place=str(path),
        network=network,
        stem=stem,
        tensors=trunk,
        names={name: names[name] for name in trunk},
        unexpected=(*heads, *found.others),
        mean=mean,
        std=std,
        license=said.license,
        assumed=tuple(assumed),
    )


def _under_torchvisions_names(found: StateDict) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and their names in the file, by torchvision's names."""
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in found.tensors.items():
        name = _of_transformers(theirs) if found.program == "transformers" else theirs
        name = re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", name)  # MedMNIST's, after kuangliu's
        if name in tensors:
            raise UserError(f"{found.place}: found {names[name]} and {theirs}, expected one of them")
        tensors[name] = tensor
        names[name] = found.names[theirs]
    return tensors, names


def _of_transformers(name: str) -> str:
    """A tensor's name in transformers' ResNet → in torchvision's."""
    name = re.sub(r"^embedder\.embedder\.convolution\.", "conv1.", name)
    name = re.sub(r"^embedder\.embedder\.normalization\.", "bn1.", name)
    block = re.match(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.(\d+))\.(convolution|normalization)\.", name
    )
    if block is None:
        return name
    stage, layer, shortcut, number, part = block.groups()
    leaf = name[block.end() :]
    place = f"layer{int(stage) + 1}.{layer}"
    if shortcut == "shortcut":
        return f"{place}.downsample.{0 if part == 'convolution' else 1}.{leaf}"
    return f"{place}.{'conv' if part == 'convolution' else 'bn'}{int(number) + 1}.{leaf}"


def name_in_transformers(name: str) -> str:
    """A tensor's name in torchvision's ResNet → in transformers' ResNetForImageClassification: the way back."""
    name = re.sub(r"^fc\.", "classifier.1.", name)
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    block = re.match(r"layer(\d)\.(\d+)\.(downsample\.|conv|bn)(\d)\.", name)
    if block is None:
        return name
    layer, place, part, number = block.groups()
    leaf = name[block.end() :]
    stem = f"resnet.encoder.stages.{int(layer) - 1}.layers.{place}"
    if part == "downsample.":
        return f"{stem}.shortcut.{'convolution' if number == '0' else 'normalization'}.{leaf}"
    return f"{stem}.layer.{int(number) - 1}.{'convolution' if part == 'conv' else 'normalization'}.{leaf}"


def _network(tensors: Mapping[str, Tensor], place: str) -> str:
    """The network's name, from its blocks."""
    blocks = {match.groups() for name in tensors if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    stages = [stage for stage, _ in blocks]
    depths = tuple(stages.count(str(number)) for number in (1, 2, 3, 4))
    is_bottleneck = "layer1.0.conv3.weight" in tensors
    network = NETWORKS.get((is_bottleneck, depths))
    if network is None or len(stages) != sum(depths):
        raise UserError(f"{place}: found {' + '.join(map(str, depths))} blocks, expected those of a ResNet")
    return network


def _stem(tensors: Mapping[str, Tensor], names: Mapping[str, str], place: str) -> str:
    """The kind of the first layers: imagenet or small."""
    others = [names[name] for name in tensors if name.startswith("conv1.") and name != "conv1.weight"]
    if others:
        raise UserError(f"{place}: found {printable(others[0])}, expected a stem of one convolution without bias")
    if "conv1.weight" not in tensors:
        raise UserError(f"{place}: found no conv1.weight, expected a stem of one convolution")
    shape = tuple(tensors["conv1.weight"].shape)
    sides = {(7, 7): "imagenet", (3, 3): "small"}
    if len(shape) != 4 or shape[2:] not in sides:
        raise UserError(f"{place}: found conv1.weight {shape}, expected a stem of 7x7 or 3x3")
    return sides[shape[2:]]


def _check_tensors(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], network: str, stem: str, place: str
) -> None:
    """UserError unless the trunk has exactly the network's tensors, in its shapes and with usable numbers."""
    with torch.device("meta"):
        model = build_resnet(network, in_channels=tensors["conv1.weight"].shape[1], stem=stem)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if TRUNK.match(name)}

    for name, expected in wanted.items():
        if name not in tensors:
            if name.endswith(COUNTS):
                continue
            raise UserError(f"{place}: found no tensor for {name}, expected those of a {network}")
        tensor = tensors[name]
        if tensor.shape != expected.shape:
            raise UserError(
                f"{place}: found {printable(names[name])} {tuple(tensor.shape)}, expected {tuple(expected.shape)}, as "
                f"a plain {network} has"
            )
        if name.endswith(COUNTS):
            continue
        if not is_dense(tensor) or tensor.dtype not in FLOATS:
            raise UserError(
                f"{place}: found {tensor.dtype} in {printable(names[name])}, expected floating-point numbers"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(f"{place}: found a variance below 0 in {printable(names[name])}, expected none")

    for name in tensors:
        if TRUNK.match(name) and name not in wanted:
            raise UserError(f"{place}: found {printable(names[name])}, expected a plain {network}, which has none")


# ---------------------------------------------------------------- what a file says besides


def _said(path: Path, found: StateDict, model: str) -> _Said:
    """Statistics and licence, as far as folder, content or name tell them."""
    if folder := described_in(path):
        return _said_by_folder(folder, model)
    if "net" in found.wrappers:
        return _Said(
            *MEDMNIST, assumed=("MedMNIST's mean 0.5 and deviation 0.5, as its authors' files lie under `net`",)
        )
    named = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    if content in PUBLISHED:
        return _Said(*IMAGENET, license=TORCHVISION_LICENSE)
    if named and named[1] in PUBLISHED:
        what = f"by its name torchvision's {' '.join(PUBLISHED[named[1]])}, though its content has the digest {content}"
        return _Said(*IMAGENET, license=TORCHVISION_LICENSE, assumed=(what,))
    return _Said()


def _said_by_folder(folder: Path, model: str) -> _Said:
    config_file = folder / SETTINGS
    if not config_file.is_file():
        raise UserError(f"{folder}: found no config.json, expected a folder of Hugging Face's or timm's layout")
    config = read_json(config_file)
    said = _Said(license=license_of(folder))

    # timm's: its variants of a ResNet may have the same tensors and other pooling
    if "pretrained_cfg" in config:
        trained = config["pretrained_cfg"]
        if not isinstance(trained, dict):
            raise UserError(f"{config_file}: found no settings for pretrained_cfg, expected those of timm")
        if config.get("architecture", model) != model:
            raise UserError(f"{config_file}: found {printable(config['architecture'])}, expected a plain {model}")
        if "mean" in trained and "std" in trained:
            mean, std = (as_levels(trained[name], 1, config_file) for name in ("mean", "std"))
            said = replace(said, mean=mean, std=std)
        return said

    # transformers': settings that no tensor shows
    usual = {"downsample_in_bottleneck": False, "downsample_in_first_stage": False, "hidden_act": "relu"}
    for name, value in usual.items():
        if config.get(name, value) != value:
            raise UserError(f"{config_file}: found {name} {printable(config[name])}, expected {value}")
    levels = preprocessing_of(folder / "preprocessor_config.json")
    return replace(said, mean=levels.get("pixel_mean"), std=levels.get("pixel_std"))


def _statistics(
    said: _Said, channels: int, settings: FinetuneSettings, place: str, assumed: list[str]
) -> tuple[Levels, Levels]:
    """Mean and deviation of the pixels: the settings', else the file's, else what is usual."""
    mean, std = said.mean, said.std
    if settings.init_mean is not None and settings.init_std is not None:
        mean, std = settings.init_mean, settings.init_std
    if mean is None or std is None:
        mean, std = IMAGENET if channels == 3 else (0.5, 0.25)
        whose = ", ImageNet's" if channels == 3 else ""
        assumed.append(
            f"mean {mean} and deviation {std} of the pixels{whose}; finetune.init_mean and init_std say others"
        )

    for name, levels in (("mean", mean), ("deviation", std)):
        if isinstance(levels, tuple) and len(levels) != channels:
            raise UserError(
                f"{place}: found {len(levels)} numbers for the {name} of the pixels, expected one for each of "
                f"{channels} channel(s)"
            )
    if min(as_tuple(std)) <= 0:
        raise UserError(f"{place}: found deviation {std} of the pixels, expected more than 0")
    return mean, std


# ---------------------------------------------------------------- made to read our images


def _adapted(source: ResNetSource, config: ClassifyConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trunk's weights for a network that standardises by the config, and each adaptation, by the file's names."""
    adapted: dict[str, str] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        weights[name] = tensor
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            weights[name] = tensor.float()
            adapted[source.names[name]] = f"{tensor.dtype} → float32".replace("torch.", "")

    # the standardisation of the config, and that which the weights were made for
    model = config.model
    kernel = source.tensors["conv1.weight"]
    ours = as_channels(model.pixel_mean, model.in_channels), as_channels(model.pixel_std, model.in_channels)
    theirs = as_channels(source.mean, source.channels), as_channels(source.std, source.channels)
    if model.in_channels == source.channels and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        weights[OFFSET] = torch.zeros(len(kernel), 1, *kernel.shape[2:])
        return weights, adapted

    folded, offset = standardised_by(kernel, theirs, ours)
    weights["conv1.weight"] = folded
    weights[OFFSET] = offset
    how = "their own standardisation → the config's, exactly"
    if model.in_channels != source.channels:
        how = f"{source.channels} channels and their standardisation → grey, exactly"
    name = source.names["conv1.weight"]
    adapted[name] = "; ".join(filter(None, (adapted.get(name), how)))
    return weights, adapted


def standardised_by(
    kernel: Tensor, theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """A kernel (d c p q) for channels standardised by `theirs` (mean and deviation, c each) → for `ours`.

    A grey level g = m + s·x reaches channel c as (g - μ_c) / σ_c, so x is weighed by s·W_c/σ_c, and each position of
    the kernel adds W_c(m - μ_c)/σ_c. It adds this inside the image only, as padding is 0 in either standardisation:
    hence a kernel of offsets (d 1 p q) instead of a bias. One channel of ours stands for all of theirs.
    """
    mean, std = theirs
    m, s = ours
    kernel = kernel.double() / std[:, None, None]
    offset = (kernel * (m - mean)[:, None, None]).sum(1, keepdim=True)  # d 1 p q
    if len(m) == 1:
        kernel = kernel.sum(1, keepdim=True)
    return (kernel * s[:, None, None]).float(), offset.float()


def _report(source: ResNetSource, config: ClassifyConfig, adapted: Mapping[str, str]) -> Report:
    with torch.device("meta"):
        model = build_resnet(source.network, config.model.in_channels, stem=source.stem)
    used = source.names.values()
    lacking = [name for name in model.state_dict() if name not in source.tensors]
    uncounted: list[str] = []
    if any(name.endswith(COUNTS) for name in lacking):
        uncounted = [f"no {COUNTS}, which nothing here reads"]
    return Report(
        place=source.place,
        license=source.license,
        loaded=tuple(name for name in used if name not in adapted),
        adapted=adapted,
        missing=tuple(name for name in lacking if not name.endswith(COUNTS)),
        unexpected=source.unexpected,
        assumed=(*source.assumed, *uncounted),
    )
