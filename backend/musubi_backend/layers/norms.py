"""Norms and residuals of modulated (adaLN) transformer blocks, without detours through float32 copies of the stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension with a learned scale (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not self.weight.requires_grad and not torch.compiler.is_compiling():
            result: Tensor = _RMSNormOnCPU.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return result
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class _RMSNormOnCPU(torch.autograd.Function):
    """`F.rms_norm` with a frozen weight, in half the passes over memory: a GPU has one kernel for it, a CPU takes eight and keeps float32
    copies for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # reductions of narrow tensors are slow
        factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, factor)
        ctx.weight = weight
        return _times(wide, factor, wide is not x).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, factor = ctx.saved_tensors
        wide, wide_grad = x.to(factor.dtype), grad.to(factor.dtype)
        normed, result = _times(wide, factor, wide is not x), _times(wide_grad, ctx.weight, wide_grad is not grad)
        along = torch.linalg.vecdot(result, normed).unsqueeze(-1)
        return result.addcmul_(normed, along, value=-1 / x.shape[-1]).mul_(factor).to(x.dtype), None, None


def _times(x: Tensor, factor: Tensor, in_place: bool) -> Tensor:
    return x.mul_(factor) if in_place else x * factor


class LayerNorm(nn.LayerNorm):
    """Layer norm that is modulated by the condition: norm(x) * scale + shift."""

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """See `modulated_norm`."""
        return modulated_norm(x, scale, shift, self.eps)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm over channels, times scale plus shift. x [B, S, C]; scale and shift [B, 1 or S, C] in x's dtype (scale is 1 + the
    predicted one)."""
    width = (x.shape[-1],)
    if scale.shape[0] == 1 and scale.shape[1] == 1:
        return F.layer_norm(x, width, scale[0, 0], shift[0, 0], eps)
    return torch.addcmul(shift, F.layer_norm(x, width, None, None, eps), scale)


class _GatedResidual(torch.autograd.Function):
    """x + gate * y for a gate without gradient.

    Nothing is kept through autograd's saved tensors: a recomputed block therefore ends at the last tensor another operation
    saved, and does not compute its last matrix product again only to save the gate.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        ctx.gate = gate
        return torch.addcmul(x, y, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        return grad if ctx.needs_input_grad[0] else None, grad * ctx.gate, None


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y; x, y [B, S, C], gate [B, 1 or S, C]."""
    if gate.requires_grad:
        return torch.addcmul(x, y, gate)
    result: Tensor = _GatedResidual.apply(x, y, gate)  # type: ignore[no-untyped-call]
    return result
