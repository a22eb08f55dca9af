"""Frozen linears that multiply in 8 bits, forward and for the gradient of the input: weights and activations are both rounded (W8A8).

A weight has one scale per output channel, so W = q * s. Forward multiplies by the scales what comes out, backward what goes in, and both
products are of the same stored bytes. Activations and gradients get a scale per row each time. LoRAs stay in the dtype of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..device import check_capability
from ..layers.linear import Linear
from ..weights.scales import SMALLEST_SCALE, dequantised

FORMATS: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_CAPABILITY = {"int8": (7, 5), "fp8": (8, 9)}
_MULTIPLE = 16  # sizes that 8-bit products want
_LEAST_ROWS = 17  # of an int8 product on CUDA


def check_products(name: str, device: torch.device) -> None:
    """UserError where the GPU has no such products."""
    check_capability(device, _CAPABILITY[name], f"--w8a8 {name} needs a GPU that multiplies {name}")


def rounded(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """rows [n, k] -> (8-bit ones, scales [n, 1] in float32), with rows ~ 8-bit * scale."""
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=-1, keepdim=True).float()
    whole = dtype == torch.int8
    scales = (largest / (127.0 if whole else torch.finfo(dtype).max)).clamp_(min=SMALLEST_SCALE)
    fitted = rows / scales  # in float32, at most the largest number
    return (fitted.round_() if whole else fitted).to(dtype), scales


class W8A8Linear(Linear):
    """A frozen linear with `weight` in int8 or fp8 and `scale_weight` [out, 1] in float32. Sizes that 8-bit products do not take are
    multiplied in the input's dtype."""

    scale_weight: Tensor | None
    keeps_weight = False

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale_weight", None)
        self.stored = dtype

    def take(self, weight: Tensor, scale: Tensor | None, device: torch.device) -> Tensor:
        rows, channels = rounded(weight if scale is None else dequantised(weight, scale, torch.float32), self.stored)
        self.scale_weight = channels.to(device)
        return rows

    def dtype_of(self, stored: torch.dtype) -> torch.dtype:
        return self.stored

    def dense(self, dtype: torch.dtype) -> Tensor:
        return dequantised(self.weight, self.scale_weight, dtype)

    def base_output(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and self._fits(x.flatten(0, -2)):
            result: Tensor = _CompiledProduct.apply(x, start, self.weight, self._channels(), self.bias)  # type: ignore[no-untyped-call]
            return result
        return super().base_output(x, start)

    def product(self, x: Tensor, start: Tensor | None) -> Tensor:
        if not self._fits(x.flatten(0, -2)):
            return super().product(x, start)
        return _product(x, start, self.weight, self._channels(), self.bias)

    def input_gradient(self, grad: Tensor) -> Tensor:
        if not self._fits(grad.flatten(0, -2)):
            return super().input_gradient(grad)
        return _input_gradient(grad, self.weight, self._channels())

    def _channels(self) -> Tensor:
        """[1, out]"""
        if self.scale_weight is None:  # a planned one, of which nothing was read
            return torch.empty(1, self.out_features, device=self.weight.device)
        return self.scale_weight.t()

    def _fits(self, rows: Tensor) -> bool:
        return len(rows) >= _LEAST_ROWS and self.in_features % _MULTIPLE == 0 and self.out_features % _MULTIPLE == 0


def _product(x: Tensor, start: Tensor | None, weight: Tensor, channels: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in], start [N, out] (see `layers.linear`), weight [out, in] in 8 bits, channels [1, out] -> [..., out]"""
    small, scales = rounded(x.flatten(0, -2), weight.dtype)
    out = _multiplied(small, weight.t()).mul_(scales).mul_(channels)
    added = bias if start is None else start
    return (out if added is None else out.add_(added)).to(x.dtype).view(*x.shape[:-1], len(weight))


def _input_gradient(grad: Tensor, weight: Tensor, channels: Tensor) -> Tensor:
    """grad [..., out] -> [..., in]"""
    small, scales = rounded(grad.flatten(0, -2) * channels, weight.dtype)
    return _multiplied(small, weight).mul_(scales).to(grad.dtype).view(*grad.shape[:-1], weight.shape[1])


class _CompiledProduct(torch.autograd.Function):
    """The product with its own backward, from tensors only: what a compiler can look into. Backward keeps the 8-bit weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor | None, weight: Tensor, channels: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, channels)
        ctx.started = start is not None
        return _product(x, start, weight, channels, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        weight, channels = ctx.saved_tensors
        return _input_gradient(grad, weight, channels), grad if ctx.started else None, None, None, None


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] @ b [k, m] of 8-bit numbers, in float32. On CUDA rows of a and columns of b must each lie in one piece: always for fp8, for
    int8 since CUDA 13, whose cuBLAS has no other kernels (PyTorch's `test_linalg.py: test__int_mm`)."""
    a, b = a.contiguous(), b.t().contiguous().t()
    if a.dtype == torch.int8:
        return torch._int_mm(a, b).float()
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16).float()


def hold_in_8_bits(model: nn.Module, names: list[str], name: str) -> None:
    """Put an empty `W8A8Linear` in the place of each linear in `names` (module paths); loading fills them. name: of `FORMATS`."""
    for path in names:
        parent, _, leaf = path.rpartition(".")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        with linear.weight.device:
            empty = W8A8Linear(linear.in_features, linear.out_features, linear.bias is not None, FORMATS[name])
        model.get_submodule(parent)._modules[leaf] = empty.requires_grad_(False)
