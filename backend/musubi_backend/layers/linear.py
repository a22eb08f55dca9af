"""The linear layer of every transformer block: a frozen base with an optional LoRA folded into its matrix product.

A LoRA costs two thin products; its result is where the base product starts accumulating, in place, so no full-size temporary is made
and no tensor changes dtype. Other kinds of weights are sub-classes of `Linear` that override `dense` or `product` (see
`memory.fp8`); neither the LoRA nor the models need to know.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Addition(Protocol):
    """What a linear can carry, such as a LoRA module (`lora.modules`)."""

    def is_skipped(self) -> bool:
        """True when this forward goes without it."""

    def start(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] -> what is added and the bias, in rows [N, out]. Nobody else holds them, as the base product is accumulated onto them
        in place, nor does backward need them."""

    def start_for_both(self, x: Tensor, layer: Linear) -> Tensor | None:
        """As `start` with the bias of `layer`. Its backward gives the gradient of x through the base product too
        (`layer.input_gradient`), so that the two never exist apart. None where it cannot."""


class Linear(nn.Linear):
    """`nn.Linear` that can carry a LoRA.

    The addition is not a sub-module: `state_dict()`, `.to()` and freezing concern the base weights only, and the network that
    owns the LoRA modules (`lora.network.LoRANetwork`) trains, moves and saves them.
    """

    addition: Addition | None = None
    keeps_weight = True
    """May backward rely on the weight that forward used? Not where it is made for each product, or comes and goes."""
    swapped_to: torch.device | None = None
    """Where the weight is when it is used, if it is otherwise in system RAM (`memory.streaming`)."""

    def attach(self, addition: Addition | None) -> None:
        """Add `addition` to what this layer computes; None takes it away."""
        self.__dict__["addition"] = addition

    @property
    def device(self) -> torch.device:
        """Where this layer computes."""
        return self.swapped_to or self.weight.device

    def swap_to(self, device: torch.device) -> None:
        """From now on somebody else decides where the weight is: `.to()` leaves it alone, and it is on `device` when it is used."""
        self.__dict__.update(swapped_to=device, keeps_weight=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Linear:
        if self.swapped_to is None:
            whole: Linear = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return whole
        parameters, buffers = self._parameters, self._buffers
        self._parameters = {name: parameter for name, parameter in parameters.items() if name != "weight"}
        self._buffers = {}
        try:
            moved: Linear = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return moved
        finally:
            self._parameters, self._buffers = {**parameters, **self._parameters}, buffers

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] to multiply with. dtype: that of the input; a plain weight has it already."""
        return self.weight

    def base_output(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """x [..., in] @ weight.T, added to the bias. With `start` [N, out], which already holds the bias, x is [N, in], and
        the product is accumulated onto start, which is used up."""
        if self.keeps_weight or not torch.is_grad_enabled():
            return self.product(x, start)
        if torch.compiler.is_compiling():  # a compiler cannot look into the function, but knows this
            from torch.utils.checkpoint import checkpoint

            recomputed: Tensor = checkpoint(self.product, x, start, use_reentrant=False)
            return recomputed
        result: Tensor = _RecomputedProduct.apply(x, start, self)  # type: ignore[no-untyped-call]
        return result

    def product(self, x: Tensor, start: Tensor | None) -> Tensor:
        """As `base_output`; autograd may keep the weight."""
        if start is None:
            return F.linear(x, self.dense(x.dtype), self.bias)
        if torch.compiler.is_compiling():  # which finds memory to use again itself
            return torch.addmm(start, x, self.dense(x.dtype).t())
        return start.addmm_(x, self.dense(x.dtype).t())

    def input_gradient(self, grad: Tensor) -> Tensor:
        """grad [..., out] of this layer's output -> [..., in] of its input, where the weight is not kept."""
        return grad @ self.dense(grad.dtype)

    def forward(self, x: Tensor) -> Tensor:
        addition = self.addition
        if addition is None or addition.is_skipped():
            return self.base_output(x)
        # The addition comes first so that, when a checkpointed block is recomputed, everything that backward needs exists before
        # the expensive product: the recomputation of the last linear of a block stops short of it.
        rows, shape = x.flatten(0, -2), (*x.shape[:-1], self.out_features)
        start = addition.start_for_both(x, self) if self._passes_gradients() else None
        if start is None:
            return self.base_output(rows, addition.start(x, self.bias)).view(shape)
        result: Tensor = _RecomputedProduct.apply(rows.detach(), start, self)  # type: ignore[no-untyped-call]
        return result.view(shape)

    def _passes_gradients(self) -> bool:
        return torch.is_grad_enabled() and not self.weight.requires_grad and not torch.compiler.is_compiling()


class _RecomputedProduct(torch.autograd.Function):
    """A frozen linear's product that keeps nothing for backward: the gradient of the input asks the layer for its weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor | None, layer: Linear) -> Tensor:
        ctx.layer = layer
        result = layer.product(x, start)
        if result is start:
            ctx.mark_dirty(start)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_x = ctx.layer.input_gradient(grad) if ctx.needs_input_grad[0] else None
        return for_x, grad if ctx.needs_input_grad[1] else None, None
