"""Makes every CPU one without instructions for 16-bit products, as the numbers that tests expect come from one: with them, what names no
dtype is computed in bfloat16 or float16, and differs in the third digit."""

from __future__ import annotations

import torch

_WIDTHS = ("bf16", "fp16")
real = torch.cpu.get_capabilities
"""What the CPU says, for what other processes do."""


def pretend() -> None:
    """From now on in this process and its forks: PyTorch's list of what the CPU can do has no such instructions."""
    has = real()
    torch.cpu.get_capabilities = lambda: {name: False if any(width in name for width in _WIDTHS) else value for name, value in has.items()}
