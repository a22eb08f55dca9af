"""What happens when a gradient comes by: a call, or the end of a graph that begins or ends in the middle of a model."""

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


def beginning(x: Tensor, take: Callable[[Tensor], None]) -> Tensor:
    """x, detached, as the beginning of a graph, which does not keep it: its gradient is given to `take`."""
    anchor = torch.empty(0, device=x.device, requires_grad=True)
    begun: Tensor = _Begin.apply(anchor, x.detach(), take)  # type: ignore[no-untyped-call]
    return begun


def ending(x: Tensor, give: Callable[[], Tensor]) -> Tensor:
    """An empty tensor whose `backward` goes back from x with the gradient that `give` has then. It does not keep x."""
    end: Tensor = _End.apply(x, give)  # type: ignore[no-untyped-call]
    return end


class _Tell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.call()
        return grad, None


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.take(grad)
        return None, None, None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, give: Callable[[], Tensor]) -> Tensor:
        ctx.give = give
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.give(), None
