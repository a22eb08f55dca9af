"""PyTorch's attention as one operator that a compiler does not look into.

A compiled block is computed again as a whole. This operator asks when it runs, not when it is compiled, whether its outputs were kept
(`recompute.outputs_once`), so that a block is compiled in one piece, once for all blocks, and its attention still runs once. Backward needs
the logarithms of the sums, so PyTorch's fused kernels are called by their own names; a compiler knows them.

What is kept is memory of a compiled function's, which it may use again for something else. Not of these outputs: backward needs them, so
they are outputs of the function. Where nothing needs a gradient, attention has to go another way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .recompute import outputs_once

_aten = torch.ops.aten
_FLASH_CAPABILITY = (8, 0)  # NVIDIA Ampere is the first that PyTorch has this kernel for
_FLASH_WIDTH = 256

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def fits(q: Tensor) -> bool:
    """Do the kernels take heads [..., D] of this size as they are?"""
    return q.device.type == "cpu" or q.shape[-1] % 8 == 0


@torch.library.custom_op(
    "musubi::attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? bias, int number) -> (Tensor, Tensor, Tensor, Tensor)",
)
def operator(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, number: int) -> Outputs:
    """q [B, H, S, D], k and v [B, H, K, D], bias [B or 1, 1, 1, K] in their dtype -> output [B, H, S, D]; what backward needs besides.

    number: as in `outputs_once`.
    """
    out, sums, seed, offset = outputs_once(partial(_forward, q, k, v, bias), number)
    return out, sums, seed, offset


@operator.register_fake
def _shapes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, number: int) -> Outputs:
    return _forward(q, k, v, bias)


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Outputs:
    if q.device.type == "cpu":
        out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        return out, sums, q.new_empty(0), q.new_empty(0)
    if _is_flash(q, bias):
        out, sums, _, _, _, _, seed, offset, _ = _aten._scaled_dot_product_flash_attention(q, k, v)
        return out, sums, seed, offset
    out, sums, seed, offset = _aten._scaled_dot_product_efficient_attention(q, k, v, _every(bias, q, k), True)
    return out, sums, seed, offset


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(*inputs[:-1], *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    q, k, v, bias, out, sums, seed, offset = ctx.saved_tensors
    if q.device.type == "cpu":
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, sums, 0.0, False, attn_mask=bias)
    elif _is_flash(q, bias):
        longest = q.shape[2], k.shape[2]
        grads = _aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, sums, None, None, *longest, 0.0, False, seed, offset
        )  # fmt: skip
    else:
        grads = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, _every(bias, q, k), out, sums, seed, offset, 0.0, [True, True, True, False]
        )  # fmt: skip
    return grads[0], grads[1], grads[2], None, None


operator.register_autograd(_backward, setup_context=_remember)


def _is_flash(q: Tensor, bias: Tensor | None) -> bool:
    """Else it is the memory-efficient kernel, which every GPU has and which takes a bias and float32."""
    if bias is not None or q.dtype == torch.float32 or q.shape[-1] > _FLASH_WIDTH or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(q.device) >= _FLASH_CAPABILITY


def _every(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The kernel wants a bias for each head and query; they share its memory."""
    return None if bias is None else bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
