"""Timesteps as vectors: sinusoids at geometric frequencies (arXiv 1706.03762, section 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(timesteps: Tensor, width: int, precision: torch.dtype = torch.float64) -> Tensor:
    """[...] -> [..., width] float32: cosines, then sines, of the timesteps at geometric frequencies.

    precision: of the angles. float32 for models that were trained with it and take numbers in the thousands (a guidance of
    6 as 6000), where its error reaches 4e-4.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=precision, device=timesteps.device) / half
    angles = timesteps.to(precision).unsqueeze(-1) * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
