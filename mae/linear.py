"""A linear layer that uses the faster of torch's two matrix products on CPU."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Product = Literal["onednn", "blas"]  # blas: whatever torch.mm calls, MKL on most machines


class Linear(nn.Linear):
    """`nn.Linear` (… k) → (… n), initialised as in the paper; float32 on CPU uses oneDNN's product or BLAS's.

    On CPU torch multiplies float32 matrices with Intel's MKL. On other makers' processors MKL leaves half of the
    AVX-512 rate unused; oneDNN, which torch uses for convolutions, does not. Elsewhere MKL can be faster:
    `mae/product.py` measures (docs/decisions.md).
    """

    product: Product = "onednn"

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases (He et al. 2022, section A.1)."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.product == "onednn" and _by_onednn(tokens):
            return _Product.apply(tokens, self.weight, self.bias)
        return F.linear(tokens, self.weight, self.bias)


def onednn_product() -> Callable[..., Tensor] | None:
    """The operator that torch.compile's CPU code calls. It is private, so it is looked up: None if torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


ONEDNN = onednn_product()


def _by_onednn(tokens: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: what follows would break the graph
        and ONEDNN is not None
        and tokens.device.type == "cpu"
        and tokens.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _multiply(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        gradient_rows = gradient.flatten(0, -2)  # m n
        token_rows = tokens.flatten(0, -2)  # m k

        # a frozen layer, or one that reads pixels, needs fewer than all three
        for_tokens = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_tokens = _multiply(gradient, weight.t())  # … k
        if ctx.needs_input_grad[1]:
            for_weight = _multiply(gradient_rows.t(), token_rows.t())  # n k
        if ctx.needs_input_grad[2]:
            for_bias = gradient_rows.sum(0)  # n
        return for_tokens, for_weight, for_bias


def _multiply(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """tokens (… k) · weightᵀ (k n) + bias → (… n)."""
    assert ONEDNN is not None
    return ONEDNN(tokens, weight, bias, "none", [], "")
