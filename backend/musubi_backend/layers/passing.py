"""A call when a gradient comes by: at what point backward is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def when_gradient_passes(x: Tensor, call: Callable[[], None]) -> Tensor:
    """The same tensor; `call` is called when its gradient passes. What it raises, `backward` raises."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    watched: Tensor = _Tell.apply(x, call)  # type: ignore[no-untyped-call]
    return watched


class _Tell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.call()
        return grad, None
