"""Attention behind one function, so that a model does not know which kernel runs.

"torch" is PyTorch's scaled_dot_product_attention; flash, flash3 and xformers are optional packages, imported when chosen.
A bias over keys always runs in PyTorch, which has kernels for it; the others are for long self-attention, where they count.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

MODES = ("torch", "flash", "flash3", "xformers")
KEY_ALIGNMENT = 8  # CUDA's memory-efficient kernel wants bias rows in multiples of 8; otherwise it copies the bias

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, mode: str = "torch", bias: Tensor | None = None, split: bool = False) -> Tensor:
    """q [B, S, H, D], k and v [B, K, H, D] -> [B, S, H * D].

    bias: [B or 1, 1, 1, K], added to the scores, in q's dtype. split: one sample at a time, for less memory at once.
    """
    if split and q.shape[0] > 1:
        biases = [None] * q.shape[0] if bias is None else list(bias.expand(q.shape[0], -1, -1, -1).split(1))
        samples = zip(q.split(1), k.split(1), v.split(1), biases, strict=True)
        return torch.cat([attention(q1, k1, v1, mode, bias1) for q1, k1, v1, bias1 in samples])
    if mode != "torch" and bias is None:
        return _kernel(mode)(q, k, v).flatten(2)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


def check_mode(mode: str) -> None:
    """UserError when the package of an attention mode is not installed."""
    if mode != "torch":
        _kernel(mode)


@lru_cache(maxsize=1)
def _kernel(mode: str) -> Kernel:
    packages = {"flash": "flash_attn", "flash3": "flash_attn_interface", "xformers": "xformers.ops"}
    if mode not in packages:
        raise UserError(f"unknown attention mode {mode!r}; choose one of {', '.join(MODES)}")
    try:
        package = importlib.import_module(packages[mode])
    except ImportError as error:
        raise UserError(f"{mode} attention needs the package {packages[mode]} ({error}); install it or use --sdpa") from error
    if mode == "xformers":
        efficient: Kernel = package.memory_efficient_attention
        return efficient
    flash: Kernel = package.flash_attn_func
    return flash


@lru_cache(maxsize=4096)
def repeated_key_biases(count: int, dtype: torch.dtype) -> tuple[float, ...]:
    """Biases b with sum(exp(b)) = count, exact in `dtype`: keys with them stand for `count` identical keys.

    `count` equal keys weigh count * exp(score) in a softmax, so one key with a bias of log(count) replaces them. bf16 holds
    log(count) only to 3 digits; further copies of the key make up the rest.
    """
    biases: list[float] = []
    rest = float(count)
    while rest > count * 1e-7:
        log = math.log(rest)
        # one spacing below, so that rounding never lands above log(rest)
        biases.append(torch.tensor(log - abs(log) * torch.finfo(dtype).eps, dtype=dtype).item())
        rest -= math.exp(biases[-1])
    return tuple(biases) if len(biases) < count else (0.0,) * count
