"""Names and layouts of tensors: other programs' ↔ ours, bit for bit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from data.errors import UserError
from mae.engine.checkpoint import is_dense

Names = Mapping[str, str]  # ours → theirs, without .weight and .bias; `*` stands for a block's number


def _names(tokens: dict[str, str], block: dict[str, str], encoder: str, decoder: str) -> Names:
    stems = {"encoder.blocks": encoder, "decoder.blocks": decoder}
    blocks = {f"{ours}.*.{a}": f"{theirs}.*.{b}" for ours, theirs in stems.items() for a, b in block.items()}
    return tokens | blocks


TIMM = _names(  # and facebookresearch/mae, which builds on it
    {
        "encoder.class_token": "cls_token",
        "encoder.positions": "pos_embed",
        "encoder.embed": "patch_embed.proj",
        "encoder.norm": "norm",
        "decoder.embed": "decoder_embed",
        "decoder.mask_token": "mask_token",
        "decoder.positions": "decoder_pos_embed",
        "decoder.norm": "decoder_norm",
        "decoder.predict": "decoder_pred",
    },
    {
        "norm1": "norm1",
        "attention.qkv": "attn.qkv",
        "attention.out": "attn.proj",
        "norm2": "norm2",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
    },
    "blocks",
    "decoder_blocks",
)
_HUGGINGFACE_TOKENS = {
    "encoder.class_token": "vit.embeddings.cls_token",
    "encoder.positions": "vit.embeddings.position_embeddings",
    "encoder.embed": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.positions": "decoder.decoder_pos_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.predict": "decoder.decoder_pred",
}
_HUGGINGFACE_BLOCK = {
    "norm1": "layernorm_before",
    "attention.q": "attention.attention.query",
    "attention.k": "attention.attention.key",
    "attention.v": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
# as published files have it, facebook/vit-mae-base among them: written by transformers 4, read by 4 and 5
HUGGINGFACE = _names(_HUGGINGFACE_TOKENS, _HUGGINGFACE_BLOCK, "vit.encoder.layer", "decoder.decoder_layers")
# as transformers 5 writes it; transformers 4 does not find its decoder (transformers 46650)
HUGGINGFACE_5 = _names(_HUGGINGFACE_TOKENS, _HUGGINGFACE_BLOCK, "vit.encoder.layer", "decoder.decoder_encoder.layer")
HUGGINGFACE_MODULES = _names(  # as transformers 5 calls them in memory
    _HUGGINGFACE_TOKENS,
    {
        "norm1": "layernorm_before",
        "attention.q": "attention.q_proj",
        "attention.k": "attention.k_proj",
        "attention.v": "attention.v_proj",
        "attention.out": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
    },
    "vit.layers",
    "decoder.decoder_layers",
)
# a DINOv2, which is the same network if its branches' scales are 1; it is only written, never read
DINOV2 = _names(
    {ours: theirs.replace("vit.", "dinov2.", 1) for ours, theirs in _HUGGINGFACE_TOKENS.items()},
    {
        **_HUGGINGFACE_BLOCK,
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
    },
    "dinov2.encoder.layer",
    "decoder.decoder_layers",
)
# for each program, theirs → ours: one table for all its versions, as their names never contradict each other
TO_OURS = {
    program: {theirs: ours for layout in layouts for ours, theirs in layout.items()}
    for program, layouts in {"timm": [TIMM], "huggingface": [HUGGINGFACE, HUGGINGFACE_5, HUGGINGFACE_MODULES]}.items()
}
# tensors of a ViT that no table has: each belongs to a module that changes what is computed
IN_A_VIT = re.compile(
    r"blocks\.|patch_embed\.|vit\.(encoder|layers?)\.|vit\.embeddings\.(?!mask_token)"
    r"|(vit\.)?(norm_pre|pre_norm|ln_pre|embed_norm)\.|(vit\.)?(reg_|regist|dist_|prompt|rope|rotary|rel_pos|relative_pos)"
)
IN_A_DECODERS_BLOCK = re.compile(r"(decoder_blocks|decoder\.decoder_layers|decoder\.decoder_encoder\.layer)\.(?=\d+\.)")
NO_BIASES = "has no biases: zeros, the same"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def rename(name: str, names: Names) -> str | None:
    """A tensor's name by the table; None if the table has none."""
    stem, dot, leaf = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    number = re.search(r"\.(\d+)\.", f".{stem}")
    found = names.get(re.sub(r"(^|\.)\d+\.", r"\1*.", stem))
    return found and found.replace("*", number[1] if number else "*") + dot + leaf


@dataclass
class Translation:
    """Tensors under our names and in our layout, still with their own grid and channels."""

    weights: dict[str, Tensor]
    origins: dict[str, tuple[str, ...]]  # our name → the source's
    unexpected: list[str]
    adapted: dict[str, str]  # the source's name → what was done to it
    patch_size: int
    in_channels: int

    def note(self, ours: str, how: str) -> None:
        """Record what was done to the tensors that became `ours`."""
        for name in self.origins[ours]:
            self.adapted[name] = "; ".join(filter(None, (self.adapted.get(name), how)))

    def without_decoder(self) -> "Translation":
        """The encoder's part; the decoder's tensors are not used."""
        weights = {}
        origins = {}
        left: list[str] = []
        for ours, names in self.origins.items():
            if ours.startswith("decoder."):
                left += names
            else:
                weights[ours] = self.weights[ours]
                origins[ours] = names

        adapted = {name: how for name, how in self.adapted.items() if name not in left}
        return replace(self, weights=weights, origins=origins, unexpected=self.unexpected + left, adapted=adapted)


def translate(tensors: Mapping[str, Tensor], program: str, place: str) -> Translation:
    """Their tensors → ours: kernels become linear, q, k and v are joined, the class tokens' positions folded in.

    Raises UserError for anything but a plain Vision Transformer, and for one that would compute something else here.
    """
    # first the names
    found = _under_our_names(tensors, program, place)
    if not any(name.startswith("decoder.") for name in found.weights.keys() - {"decoder.mask_token"}):
        found = found.without_decoder()  # a stray mask token is no decoder
    _check_is_a_vit(found, tensors, place)

    # then the layout of the tensors
    _make_float(found)
    found.weights["encoder.embed.weight"] = rearrange(found.weights["encoder.embed.weight"], "d c p q -> d (p q c)")
    _join_qkv(found, place)
    _zero_biases(found, place)
    _take_class_position(found)
    return found


def _under_our_names(tensors: Mapping[str, Tensor], program: str, place: str) -> Translation:
    weights: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name, tensor in tensors.items():
        ours = rename(name, TO_OURS[program])
        if ours is None and IN_A_DECODERS_BLOCK.match(name):  # of a decoder that computes something else
            ours = IN_A_DECODERS_BLOCK.sub("decoder.blocks.", name, count=1)
        if ours is None or (ours in weights and torch.equal(tensor, weights[ours])):
            unexpected.append(name)  # the latter: a duplicate under another version's name
            continue
        if ours in weights:
            [other] = origins[ours]
            raise UserError(f"{place}: found {other} and {name}, which differ, expected one of them")
        _check_numbers(name, tensor, place)
        weights[ours] = tensor
        origins[ours] = (name,)

    kernel = weights["encoder.embed.weight"]  # the landmark by which the model was found
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or kernel.shape[1] not in (1, 3) or not kernel.numel():
        raise UserError(
            f"{place}: found a patch embedding {tuple(kernel.shape)}, expected a kernel with square patches of 1 or 3 "
            "channels"
        )
    return Translation(
        weights=weights,
        origins=origins,
        unexpected=unexpected,
        adapted={},
        patch_size=kernel.shape[-1],
        in_channels=kernel.shape[1],
    )


def _check_numbers(name: str, tensor: Tensor, place: str) -> None:
    """UserError unless a tensor holds simply real numbers: conversion to float32 would silently garble others."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if not is_dense(tensor):
        kind = "no dense numbers"
    elif tensor.dtype in FLOATS:
        return
    raise UserError(f"{place}: found {kind} in {name}, expected floating-point numbers")


def _make_float(found: Translation) -> None:
    for name, tensor in found.weights.items():
        if tensor.dtype != torch.float32:
            found.weights[name] = tensor.float()
            found.note(name, f"{tensor.dtype} → float32".replace("torch.", ""))


def _check_is_a_vit(found: Translation, tensors: Mapping[str, Tensor], place: str) -> None:
    """UserError if this is no plain ViT: features would be wrong, whatever the report said."""
    weights = found.weights
    width = len(weights["encoder.embed.weight"])
    _check_tokens(weights, "encoder", width, place)
    if any(name.startswith("decoder.") for name in weights):
        decoder_width = weights["decoder.embed.bias"].numel() if "decoder.embed.bias" in weights else 0
        _check_tokens(weights, "decoder", decoder_width, place)
    for name in found.unexpected:
        if IN_A_VIT.match(name) or _may_be_tokens(name, tensors[name], width):
            raise UserError(f"{place}: found {name}, expected a plain Vision Transformer, which has none")


def _may_be_tokens(name: str, tensor: Tensor, width: int) -> bool:
    """Whether a ViT's own tensor, of no module inside it, has the form of tokens or positions, whatever its name.

    Registers and prompts have many names. Tokens that stand for hidden patches are not used without a mask.
    """
    is_its_own = "." not in name.removeprefix("vit.")
    return is_its_own and "mask" not in name and tensor.ndim > 1 and tensor.shape[-1] == width


def _check_tokens(weights: Mapping[str, Tensor], room: str, width: int, place: str) -> None:
    """UserError unless the token, its positions and the embedding's bias are there, in shapes that can be added."""
    n = 0  # patches
    positions = weights.get(f"{room}.positions")
    if positions is not None and positions.ndim == 3:
        n = positions.shape[1] - 1
    token = {"encoder": "class_token", "decoder": "mask_token"}[room]
    shapes = {f"{room}.{token}": (1, 1, width), f"{room}.positions": (1, 1 + n, width), f"{room}.embed.bias": (width,)}
    for name in shapes:
        if name not in weights:
            raise UserError(f"{place}: found no tensor for {name}, expected those of a Vision Transformer")
    for name, shape in shapes.items():
        if weights[name].shape != shape or not weights[name].numel():
            raise UserError(f"{place}: found {name} {tuple(weights[name].shape)}, expected {shape}")


def _join_qkv(found: Translation, place: str) -> None:
    """q, k and v under one name, in this order."""
    ours = re.compile(r"(.*\.attention\.)[qkv](\.\w+)")
    found_parts = [match for name in found.weights if (match := ours.fullmatch(name))]
    for stem, leaf in dict.fromkeys(match.groups() for match in found_parts):
        parts = [f"{stem}{part}{leaf}" for part in "qkv"]
        for part in parts:
            if part not in found.weights:
                raise UserError(f"{place}: found no tensor for {part}, expected q, k and v")
        shapes = [tuple(found.weights[part].shape) for part in parts]
        if len(set(shapes)) > 1 or not shapes[0]:
            raise UserError(f"{place}: found {stem}q{leaf} and its k and v of shapes {shapes}, expected one shape")

        joined = f"{stem}qkv{leaf}"
        found.weights[joined] = torch.cat([found.weights.pop(part) for part in parts])
        found.origins[joined] = tuple(each for part in parts for each in found.origins.pop(part))


def _zero_biases(found: Translation, place: str) -> None:
    """Attention without biases is attention with zeros. UserError if only some are there: the others were lost."""
    inside = [name for name in found.weights if ".attention." in name and ".out." not in name]
    biases = [name for name in inside if name.endswith(".bias")]
    for name in inside:
        bias = name.removesuffix(".weight") + ".bias"
        if not name.endswith(".qkv.weight") or bias in found.weights:
            continue
        if biases:
            raise UserError(f"{place}: found {biases[0]} and no {bias}, expected biases in all blocks or in none")
        found.weights[bias] = found.weights[name].new_zeros(found.weights[name].shape[:1])
        found.origins[bias] = ()
        found.note(name, NO_BIASES)


def _take_class_position(found: Translation) -> None:
    """Positions (1 1+n d) → (n d); the class token's own goes where it has the same effect."""
    for room in ("encoder", "decoder"):
        name = f"{room}.positions"
        if name not in found.weights:
            continue
        positions = found.weights[name][0]  # 1+n d
        first = positions[0]  # d
        found.weights[name] = positions[1:]
        if not first.any():
            continue  # sine-cosine positions add nothing to the class token

        if room == "encoder":
            _shift(found, {"encoder.class_token": first}, "the class token's position is added to the token: the same")
            found.note(name, "without the class token's")
        else:  # embedded and mask tokens gain what all positions lose: only the class token, which has none, shifts
            how = "the class token's position, taken from the others, is added to bias and mask token: the same"
            _shift(found, {"decoder.embed.bias": first, "decoder.mask_token": first, name: -first}, how)


def _shift(found: Translation, shifts: Mapping[str, Tensor], how: str) -> None:
    for name, shift in shifts.items():
        found.weights[name] = found.weights[name] + shift
        found.note(name, how)


def to_huggingface(weights: Mapping[str, Tensor], patch_size: int, layout: Names = HUGGINGFACE) -> dict[str, Tensor]:
    """Ours → theirs, as published files have it; the way back from `translate`."""
    parts: dict[str, Tensor] = {}  # under our names, in their layout
    for name, tensor in weights.items():
        if ".qkv." in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                parts[name.replace(".qkv.", f".{part}.")] = chunk
        elif name == "encoder.embed.weight":
            parts[name] = rearrange(tensor, "d (p q c) -> d c p q", p=patch_size, q=patch_size)
        elif name.endswith(".positions"):  # theirs has zeros for the class token
            parts[name] = torch.cat([torch.zeros_like(tensor[:1]), tensor])[None]
        else:
            parts[name] = tensor

    found = {}
    for name, tensor in parts.items():
        theirs = rename(name, layout)
        assert theirs is not None, name
        found[theirs] = tensor.contiguous().clone()
    return found
