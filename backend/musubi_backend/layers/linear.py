"""The linear layer of every transformer block: a frozen base with an optional LoRA folded into its matrix product.

A LoRA costs two thin products; its result is where the base product starts accumulating, so no full-size temporary is made
and no tensor changes dtype. Other kinds of weights are sub-classes of `Linear` that override `dense` or `product` (see
`memory.fp8`); neither the LoRA nor the models need to know.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRAAdapter(nn.Module):
    """Low-rank addition to one linear: delta = alpha / rank * up @ down (arXiv 2106.09685), weights in float32.

    Names of parameters and buffer are musubi-tuner's: `lora_down.weight` [rank, in], `lora_up.weight` [out, rank], `alpha` [].
    """

    alpha: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
    ) -> None:
        """alpha 0 means alpha = rank. dropout acts on the rank-wide activations, rank_dropout on whole ranks of a sample,
        module_dropout on the whole adapter; all only in train mode."""
        super().__init__()
        self.rank = rank
        alpha = float(alpha) or float(rank)
        self.scale = alpha / rank
        self.register_buffer("alpha", torch.tensor(alpha))
        self.lora_down = _Factor(in_features, rank)
        self.lora_up = _Factor(rank, out_features)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=5**0.5)
        nn.init.zeros_(self.lora_up.weight)
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout
        self.enabled = True

    def is_skipped(self) -> bool:
        """True when this forward goes without the adapter (switched off, or dropped as a whole)."""
        if not self.enabled:
            return True
        return bool(self.training and self.module_dropout and torch.rand(1).item() < self.module_dropout)

    def hidden(self, x: Tensor) -> tuple[Tensor, float]:
        """x [..., in] -> (activations [..., rank] in x's dtype, factor for the up product)."""
        hidden = F.linear(x, self.lora_down.weight.to(x.dtype))
        factor = self.scale
        if self.training:
            if self.dropout:
                hidden = F.dropout(hidden, self.dropout)
            if self.rank_dropout:
                shape = (hidden.shape[0], *[1] * (hidden.ndim - 2), self.rank)
                hidden = hidden * (torch.rand(shape, device=hidden.device) > self.rank_dropout)
                factor /= 1.0 - self.rank_dropout
        return hidden, factor

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.scale = self.alpha.item() / self.rank


class Linear(nn.Linear):
    """`nn.Linear` that can carry a LoRA.

    The adapter is not a sub-module: `state_dict()`, `.to()` and freezing concern the base weights only, and the network that
    owns the adapters (`lora.LoRANetwork`) trains, moves and saves them.
    """

    adapter: LoRAAdapter | None = None
    keeps_weight = True
    """May backward rely on the weight that forward used? Not where it is made for each product, or comes and goes."""
    visits: torch.device | None = None
    """Where the weight is when it is used, if it lives in main memory otherwise (`memory.streaming`)."""

    def attach(self, adapter: LoRAAdapter | None) -> None:
        """Add `adapter` to what this layer computes; None takes it away."""
        self.__dict__["adapter"] = adapter

    @property
    def device(self) -> torch.device:
        """Where this layer computes."""
        return self.visits or self.weight.device

    def visit(self, device: torch.device) -> None:
        """From now on somebody else decides where the weight is: `.to()` leaves it alone, and it is on `device` when it is used."""
        self.__dict__.update(visits=device, keeps_weight=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Linear:
        if self.visits is None:
            return super()._apply(fn, recurse)
        parameters, buffers = self._parameters, self._buffers
        self._parameters = {name: parameter for name, parameter in parameters.items() if name != "weight"}
        self._buffers = {}
        try:
            return super()._apply(fn, recurse)
        finally:
            self._parameters, self._buffers = {**parameters, **self._parameters}, buffers

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] to multiply with. dtype: that of the input; a plain weight has it already."""
        return self.weight

    def base_output(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """x [..., in] @ weight.T, accumulated onto `start` [..., out], which already holds the bias, else onto the bias."""
        # a compiler decides by itself what to keep, and cannot look into the function
        if self.keeps_weight or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.product(x, start)
        return _ForgettingProduct.apply(x, start, self)

    def product(self, x: Tensor, start: Tensor | None) -> Tensor:
        """As `base_output`; autograd may keep the weight."""
        if start is None:
            return F.linear(x, self.dense(x.dtype), self.bias)
        return torch.addmm(start.flatten(0, -2), x.flatten(0, -2), self.dense(x.dtype).t()).view(start.shape)

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.adapter
        if adapter is None or adapter.is_skipped():
            return self.base_output(x)
        # The LoRA comes first so that, when a checkpointed block is recomputed, everything that backward needs exists before
        # the expensive product: the recomputation of the last linear of a block stops short of it.
        hidden, factor = adapter.hidden(x)
        up = adapter.lora_up.weight.to(x.dtype).t()
        bias: Tensor | None = self.bias
        rows = hidden.flatten(0, -2)
        start = (rows * factor) @ up if bias is None else torch.addmm(bias, rows, up, alpha=factor)
        return self.base_output(x, start.view(*x.shape[:-1], start.shape[-1]))


class _ForgettingProduct(torch.autograd.Function):
    """A frozen linear's product that keeps nothing for backward: the gradient of the input asks the layer for its weight again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor | None, layer: Linear) -> Tensor:
        ctx.layer = layer
        return layer.product(x, start)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_x = grad @ ctx.layer.dense(grad.dtype) if ctx.needs_input_grad[0] else None
        return for_x, grad if ctx.needs_input_grad[1] else None, None


class _Factor(nn.Module):
    """One matrix [out, in] of an adapter, not yet filled."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
