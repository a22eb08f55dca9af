"""Writing fp32 results back into bfloat16 and fp16 weights."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(dtype: torch.dtype) -> torch.dtype:
    """What weights of a dtype are updated in: float32, or float64 where they have that."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def write_back(weights: list[Tensor], results: list[Tensor], seed: int | None) -> None:
    """Copy results into weights of a smaller dtype. seed: of stochastic rounding, for bfloat16: up or down with the chance that the mean
    is exact, so that updates under half of its resolution are not lost; None rounds to the nearest. Another seed for each step."""
    if seed is None or weights[0].dtype != torch.bfloat16:
        torch._foreach_copy_(weights, results)
        return
    chance = torch.Generator(weights[0].device).manual_seed(seed)
    for weight, result in zip(weights, results, strict=True):
        bits = result.contiguous().view(torch.int32)
        noise = torch.randint(0, 1 << 16, bits.shape, generator=chance, device=bits.device, dtype=torch.int32)
        weight.copy_(((bits + noise) & -65536).view(torch.float32))
