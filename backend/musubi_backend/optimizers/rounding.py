"""Writing fp32 results back into bfloat16 and fp16 weights."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(dtype: torch.dtype) -> torch.dtype:
    """What weights of a dtype are updated in: float32, or float64 where they have that."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def write_back(weights: list[Tensor], results: Tensor, seed: int | None) -> None:
    """Copy results [weights, numbers] into weights, of a smaller dtype or not; those that are the weights' own memory are there already.
    seed: of stochastic rounding, for bfloat16: up or down with the chance that the mean is exact, so that updates under half of its
    resolution are not lost; None rounds to the nearest. Another seed for each step."""
    if results.data_ptr() == weights[0].data_ptr():
        return
    if seed is not None and weights[0].dtype == torch.bfloat16:
        bits = results.contiguous().view(torch.int32)
        chance = torch.Generator(bits.device).manual_seed(seed)
        noise = torch.randint(0, 1 << 16, bits.shape, generator=chance, device=bits.device, dtype=torch.int32)
        results = noise.add_(bits).bitwise_and_(-65536).view(torch.float32)
    torch._foreach_copy_(weights, [row.view(weight.shape) for row, weight in zip(results, weights, strict=True)])
