"""Broken weights of other programs, by the hundred: refused in one line, or loaded as the same network.

MAE_BROKEN_WEIGHTS is the number of files (default 100; a failure tells its number, which makes it again).
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from foreign_weights import (
    HEADS,
    folder_of,
    from_weights,
    grey,
    reference_file,
    timm_features,
    timm_weights,
    tiny,
    with_decoder,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.config import change_config
from data.errors import UserError
from mae.engine.checkpoint import load_weights
from mae.model import mae_from
from mae.weights import is_foreign, starting_point
from mae.weights.source import IMAGENET

COUNT = int(os.environ.get("MAE_BROKEN_WEIGHTS", "100"))
EVIL = "evil\x1b[2J\r\nname\u202e"
WRONG = [None, "x", "a\nb\x1b[2J", -1, 0, 1.5, True, [], {}, math.inf, math.nan, [1, 2, 3], ["a"], 10**30, {"a": [1]}]


@dataclass
class Case:
    """A file or folder to break, and what its weights are meant to be."""

    kind: str
    path: Path
    random: Random
    weights: dict[Any, Any]  # of the file, as they will be written
    meant: dict[str, Tensor]  # the tensors that a network of these must compute with
    features: Callable[[dict[str, Tensor]], Tensor]
    what: str = ""  # what was broken

    def pick(self) -> str:
        return self.random.choice([name for name in self.weights if isinstance(name, str)])


# ---------------------------------------------------------------- files that are whole


def timm_expected(weights: dict[str, Tensor]) -> Tensor:
    mean, std = (torch.tensor(value)[:, None, None] for value in IMAGENET)
    return timm_features(weights, (grey() / 255).expand(-1, 3, -1, -1).sub(mean).div(std))


def of_tiny(weights: dict[str, Tensor]) -> Tensor:
    """Features of a folder: our own network, given the weights under transformers' names one by one."""
    model = tiny()
    with torch.no_grad():
        own = model.encoder
        own.class_token.copy_(
            weights["vit.embeddings.cls_token"] + weights["vit.embeddings.position_embeddings"][:, :1]
        )
        own.positions.copy_(weights["vit.embeddings.position_embeddings"][0, 1:])
        kernel = weights["vit.embeddings.patch_embeddings.projection.weight"]
        own.embed.weight.copy_(kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1))
        own.embed.bias.copy_(weights["vit.embeddings.patch_embeddings.projection.bias"])
        own.norm.weight.copy_(weights["vit.layernorm.weight"])
        own.norm.bias.copy_(weights["vit.layernorm.bias"])
        for number, block in enumerate(own.blocks):
            stem = f"vit.encoder.layer.{number}."
            names = {"layernorm_before": block.norm1, "layernorm_after": block.norm2}
            names |= {"attention.output.dense": block.attention.out}
            names |= {"intermediate.dense": block.mlp.up, "output.dense": block.mlp.down}
            for leaf in ("weight", "bias"):
                for name, layer in names.items():
                    getattr(layer, leaf).copy_(weights[f"{stem}{name}.{leaf}"])
                qkv = [weights[f"{stem}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
                getattr(block.attention.qkv, leaf).copy_(torch.cat(qkv))
        return own(own.standardize(grey()))


def whole(number: int, root: Path, folder: dict[str, Tensor]) -> Case:
    random = Random(number)
    kind = random.choice(["timm", "reference", "folder", "folder"])
    path = root / str(number)
    if kind == "folder":
        folder_of(tiny(), path)
        return Case(kind, path, random, dict(folder), dict(folder), of_tiny)
    weights = timm_weights() if kind == "timm" else with_decoder(timm_weights())
    return Case(
        kind, path.with_suffix(random.choice([".pth", ".pt", ".bin"])), random, weights, dict(weights), timm_expected
    )


def write(case: Case) -> None:
    """Write it as programs do: a pickle in either format, or safetensors where the content allows it."""
    content = {"model": case.weights} if case.kind == "reference" else case.weights
    path = case.path
    if case.kind == "folder":
        (path / "model.safetensors").unlink()
        path = path / "pytorch_model.bin"
    plain = all(isinstance(name, str) and _is_plain(tensor) for name, tensor in case.weights.items())
    if plain and case.kind != "reference" and case.random.random() < 0.4:
        path = case.path / "model.safetensors" if case.kind == "folder" else case.path
        save_file({name: tensor.contiguous().clone() for name, tensor in case.weights.items()}, path)
        return
    torch.save(content, path, _use_new_zipfile_serialization=case.random.random() < 0.7)


def _is_plain(value: Any) -> bool:
    return torch.is_tensor(value) and value.layout == torch.strided and not value.is_meta


# ---------------------------------------------------------------- ways to break one


def rename(case: Case) -> None:
    name = case.pick()
    at = case.random.randrange(len(name))
    new = case.random.choice(
        [name[:at] + "X" + name[at + 1 :], name[:at] + name[at + 1 :], EVIL, name.upper(), name + EVIL, 7]
    )
    case.weights[new] = case.weights.pop(name)


def drop(case: Case) -> None:
    for _ in range(case.random.randint(1, 3)):
        del case.weights[case.pick()]


def reshape(case: Case) -> None:
    name = case.pick()
    tensor = case.weights[name]
    ways = [
        tensor.flatten()[:, None],
        tensor[None],
        tensor[1:],
        torch.cat([tensor, tensor[:1]]),
        tensor[:0],
        tensor.sum(),
    ]
    if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
        ways.append(tensor.T)
    if tensor.ndim == 3:
        ways += [tensor[0], tensor[:, 1:], tensor[:, :, 1:], tensor.transpose(1, 2), tensor.expand(2, -1, -1)]
    if tensor.ndim == 4:
        ways += [tensor[:, :, 1:], tensor.reshape(len(tensor), -1, 2, 2), tensor[:, 1:]]
    case.weights[name] = case.random.choice([way for way in ways if way.shape != tensor.shape])


def spoil(case: Case) -> None:
    name = case.pick()
    tensor = case.weights[name].clone()
    tensor.view(-1)[case.random.randrange(tensor.numel())] = case.random.choice([math.nan, math.inf, -math.inf])
    case.weights[name] = tensor


def wrap(case: Case) -> None:
    """This breaks nothing: the weights are the same."""
    for _ in range(case.random.randint(1, 3)):
        prefix = case.random.choice(["module.", "_orig_mod.", "model.", "encoder.", EVIL + "."])
        case.weights = {f"{prefix}{name}": tensor for name, tensor in case.weights.items()}
    for _ in range(case.random.randint(0, 2)):
        case.weights = {case.random.choice(["state_dict", "model", "x", EVIL]): case.weights, "epoch": 3, "odd": [1]}


def retype(case: Case) -> None:
    types = [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float64]
    dtype = case.random.choice(types)
    names = [case.pick()] if case.random.random() < 0.5 else list(case.weights)
    for name in names:
        case.weights[name] = case.weights[name].to(dtype)
        if dtype.is_floating_point:
            case.meant[name] = case.weights[name].float()


def no_numbers(case: Case) -> None:
    name = case.pick()
    tensor = case.weights[name]
    others = [None, tensor.tolist(), "text", 3.5, {}, {"a": tensor}, (tensor,), tensor.to("meta")]
    others += [tensor.to_sparse(), torch.nn.Parameter(tensor), tensor.to(torch.float8_e4m3fn)]
    case.weights[name] = case.random.choice(others)


def twice(case: Case) -> None:
    """The same tensor under two names that mean the same, or another tensor under the second name."""
    name = case.pick()
    again = case.random.choice(
        [f"module.{name}", f"_orig_mod.{name}", name.replace(".", "._orig_mod.", 1), f"other.{name}"]
    )
    if case.kind == "folder":
        again = name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
        again = again.replace("vit.encoder.layer.", "vit.layers.").replace(
            "attention.attention.query", "attention.q_proj"
        )
    if again != name:
        other = case.weights[name].clone() if case.random.random() < 0.5 else case.weights[name] + 1
        case.weights[again] = other


def other_family(case: Case) -> None:
    """Networks that are no plain Vision Transformers, as far as their names tell."""
    three, vector, matrix = torch.ones(12, 3, 4, 4), torch.ones(12), torch.ones(12, 12)
    timm = timm_weights()
    families = {
        "resnet": {"conv1.weight": three, "layer1.0.conv1.weight": three, "fc.weight": matrix},
        "clip": {"visual.conv1.weight": three, "visual.class_embedding": vector, "text_projection": matrix},
        "clip of transformers": {
            "vision_model.embeddings.patch_embedding.weight": three,
            "logit_scale": torch.ones(()),
        },
        "bert": {"bert.embeddings.word_embeddings.weight": matrix, "bert.pooler.dense.weight": matrix},
        "swin": {"patch_embed.proj.weight": three, "layers.0.blocks.0.attn.qkv.weight": matrix, "norm.weight": vector},
        "swin of transformers": {
            "swin.embeddings.patch_embeddings.projection.weight": three,
            "swin.layernorm.weight": vector,
        },
        "dinov2": timm | {f"blocks.{block}.ls1.gamma": vector for block in range(2)},
        "dinov2 of transformers": {
            "embeddings.patch_embeddings.projection.weight": three,
            "embeddings.cls_token": vector[None, None],
        },
        "registers": timm | {"reg_token": torch.ones(1, 4, 12)},
        "deit": timm | {"dist_token": torch.ones(1, 1, 12), "pos_embed": torch.ones(1, 11, 12)},
        "beit": {n: t for n, t in timm.items() if "qkv.bias" not in n} | {"blocks.0.attn.q_bias": vector},
        "swiglu": timm | {f"blocks.{block}.mlp.fc1.weight": torch.ones(96, 12) for block in range(2)},
        "two towers": {f"{side}.{n}": t for side in ("query", "key") for n, t in timm.items()},
        "nothing": {},
    }
    case.what = case.random.choice(list(families))
    case.weights = families[case.what]
    case.meant = {}


def tear(case: Case) -> None:
    """After it is written: the file ends too soon, or begins with something else."""
    for path in [case.path] if case.kind != "folder" else list(case.path.glob("*model*")):
        content = path.read_bytes()
        kept = case.random.randrange(len(content))
        other = [b"", b"\x80" + content[:50], content[:8] + b"x" + content[9:90], EVIL.encode()]
        path.write_bytes(case.random.choice([content[:kept], *other]))
    case.meant = {}


def damage_settings(case: Case) -> None:
    """After it is written: settings of the wrong kind, or no JSON."""
    if case.kind != "folder":
        return
    path = case.path / case.random.choice(["config.json", "preprocessor_config.json"])
    if case.random.random() < 0.2:
        content = path.read_bytes()
        torn = content[: case.random.randrange(len(content))]
        path.write_bytes(case.random.choice([torn, b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b"3"]))
        case.meant = {} if path.name == "config.json" else case.meant
        return
    settings = json.loads(path.read_text())
    name = case.random.choice([name for name in settings if name != "rescale_factor"])
    case.what = name
    if case.random.random() < 0.3:
        del settings[name]
    else:
        settings[name] = case.random.choice(WRONG)
    path.write_text(json.dumps(settings))


BEFORE = [rename, drop, reshape, spoil, wrap, retype, no_numbers, twice, other_family]
AFTER = [tear, damage_settings]


# ---------------------------------------------------------------- the law


def outcome(case: Case, config) -> tuple[Tensor | None, str]:
    """The features of the network that a run would begin from, None where it is refused; and what was said."""
    said: list[str] = []
    assert is_foreign(case.path) in (True, False)
    try:
        start = starting_point(change_config(config, {"model.init": str(case.path)}), said.append)
    except UserError as error:
        return None, str(error)
    assert start is not None
    model = mae_from(start.config.model, start.config.data.image_size).eval()
    load_weights(model, start)
    with torch.no_grad():
        return model.encoder(model.encoder.standardize(grey())), "\n".join(said)


def is_plain_text(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A config to begin from weights, and the tensors of a folder."""
    root = tmp_path_factory.mktemp("broken")
    heads = {"model.heads": HEADS, "model.decoder_heads": 2}
    folder = load_file(folder_of(tiny(), root / "whole") / "model.safetensors")
    return from_weights(root, root, heads), folder, root


def test_files_that_are_whole_load_as_they_are(start):
    config, folder, root = start
    for number in range(12):
        case = whole(number, root / "plain", folder)
        case.path.parent.mkdir(exist_ok=True)
        write(case)
        found, said = outcome(case, config)
        torch.testing.assert_close(found, case.features(case.meant), rtol=0, atol=1e-4)
        assert is_plain_text(said)


def test_broken_weights_are_refused_in_one_line_or_are_the_same_network(start):
    config, folder, root = start
    refused = loaded = 0
    for number in range(COUNT):
        case = whole(number, root, folder)
        way = case.random.choice(BEFORE + AFTER)
        if way in BEFORE:
            way(case)
        write(case)
        if way in AFTER:
            way(case)
        where = f"number {number}: {case.kind}, {way.__name__} {case.what}"

        try:
            found, said = outcome(case, config)
        except Exception as error:
            raise AssertionError(where) from error
        if found is None:
            refused += 1
            assert way is not wrap, f"{where}: {said!r}"
            assert said.isprintable() and ": found " in said, f"{where}: {said!r}"
            continue
        loaded += 1
        assert is_plain_text(said), f"{where}: {said!r}"
        assert case.meant, f"{where}: loaded, {said}"
        same = torch.allclose(found, case.features(case.meant), rtol=0, atol=1e-3)
        assert same or "assumed: mean" in said, f"{where}: loaded as another network, {said}"
    assert refused and loaded


def test_a_file_of_the_reference_may_hold_anything_beside_the_model(tmp_path, start):
    config, _, _ = start
    weights = with_decoder(timm_weights())
    for number, arguments in enumerate(
        [3, "x", None, [], {"norm_pix_loss": "x"}, {"norm_pix_loss": torch.ones(2)}, torch.ones(2)]
    ):
        path = reference_file(tmp_path / f"{number}.pth", weights, args=arguments, format=arguments)
        said: list[str] = []
        assert starting_point(change_config(config, {"model.init": str(path)}), said.append)
        assert "assumed: plain pixels" in said[0]
