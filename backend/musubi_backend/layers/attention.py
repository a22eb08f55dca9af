"""Attention behind one function, so that a model does not know which kernel runs.

"torch" is PyTorch's scaled_dot_product_attention; flash, flash3, xformers and sage (8-bit scores, arXiv 2410.02367; no gradients) are
optional packages, imported when chosen.
A bias over keys always runs in PyTorch, which has kernels for it; the others are for long self-attention, where they count.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import check_capability, is_older
from ..errors import UserError
from .recompute import once

KEPT = "kept"
"""PyTorch's, as compiled blocks run it whose attention's output is kept (`attention_operator`). See `with_compiler`."""

MODES = ("torch", "flash", "flash3", "xformers", "sage")
PYTORCH = ("torch", KEPT)
_PACKAGES = {"flash": "flash_attn", "flash3": "flash_attn_interface", "xformers": "xformers.ops", "sage": "sageattention"}
_INSTEAD = "use PyTorch's attention (--sdpa, --attn_mode torch)"
_SIXTEEN_BITS = ("flash", "flash3", "sage")
KEY_ALIGNMENT = 8  # CUDA's memory-efficient kernel wants bias rows in multiples of 8; otherwise it copies the bias

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(
    q: Tensor, k: Tensor, v: Tensor, mode: str = "torch", bias: Tensor | None = None, split: bool = False, number: int = 0
) -> Tensor:
    """q [B, S, H, D], k and v [B, K, H, D] -> [B, S, H * D].

    bias: [B or 1, 1, 1, K], added to the scores, in q's dtype. split: one sample at a time, for less memory at once. number: which of those
    attentions of a block that need not wait for each other.
    """
    if split and q.shape[0] > 1:
        biases = [None] * q.shape[0] if bias is None else list(bias.expand(q.shape[0], -1, -1, -1).split(1))
        samples = zip(q.split(1), k.split(1), v.split(1), biases, strict=True)
        return torch.cat([attention(q1, k1, v1, mode, bias1) for q1, k1, v1, bias1 in samples])
    # attention to few keys (text) is cheap to run again for what its output takes
    run: Callable[..., Tensor] = once if k.shape[1] >= q.shape[1] else _again
    if q.is_meta:  # a plan: whatever the mode and the bias, the kernel is a fused one, which keeps no scores
        return run(_planned, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)
    if mode == KEPT and run is once and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        from .attention_operator import fits, operator

        if fits(q):
            out: Tensor = operator(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, number)[0]
            return out.transpose(1, 2).flatten(2)
    if mode not in PYTORCH and bias is None:
        return run(_kernel(mode), q, k, v).flatten(2)
    added = () if bias is None else (bias,)
    return run(F.scaled_dot_product_attention, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *added).transpose(1, 2).flatten(2)


def _planned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return result


def _again(kernel: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return kernel(*inputs)


def with_compiler(mode: str, split: bool = False) -> str:
    """The mode of compiled blocks whose attention's output is kept; where that cannot be, `mode`, whose attention runs twice."""
    return KEPT if mode == "torch" and not split else mode


def check_mode(mode: str, dtype: torch.dtype, device: torch.device) -> None:
    """UserError when the package of an attention mode is not installed, does not compute in `dtype`, or has no code for the GPU."""
    if mode in PYTORCH:
        return
    _kernel(mode)
    if mode != "xformers":
        check_capability(device, (8, 0), f"{_PACKAGES[mode]} needs a GPU that runs its code", f"; {_INSTEAD}")
    elif dtype == torch.bfloat16:
        check_capability(device, (8, 0), "xformers in bfloat16 needs a GPU that computes in it", f"; use an fp16 file, or {_INSTEAD}")
    if mode == "flash3" and device.type == "cuda" and not is_older(device, (10, 0)):
        raise UserError(
            f"flash_attn_interface has code for RTX 30 to H200 only, and {torch.cuda.get_device_name(device)} is newer; {_INSTEAD}"
        )
    if mode in _SIXTEEN_BITS and dtype not in (torch.float16, torch.bfloat16):
        raise UserError(
            f"{_PACKAGES[mode]} computes in 16 bits only, and this runs in {str(dtype).removeprefix('torch.')}; use a bf16 or fp16 file "
            "or --mixed_precision bf16 where there is one, or PyTorch's attention (--sdpa, --attn_mode torch)"
        )


@lru_cache(maxsize=1)
def _kernel(mode: str) -> Kernel:
    if mode not in _PACKAGES:
        raise UserError(f"unknown attention mode {mode!r}; choose one of {', '.join(MODES)}")
    try:
        package = importlib.import_module(_PACKAGES[mode])
    except ImportError as error:
        raise UserError(
            f"{mode} attention needs the package {_PACKAGES[mode].partition('.')[0]} ({error}); install it in the backend's environment or "
            f"{_INSTEAD}"
        ) from error
    if mode == "xformers":
        efficient: Kernel = package.memory_efficient_attention
        return efficient
    if mode == "sage":
        return partial(package.sageattn, tensor_layout="NHD", is_causal=False)
    return partial(_flash, package.flash_attn_func)


def _flash(function: Callable[..., Tensor | tuple[Tensor, ...]], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Some versions also return the logarithms of the sums."""
    result = function(q, k, v)
    return result[0] if isinstance(result, tuple) else result


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
