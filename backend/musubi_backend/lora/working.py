"""The factors of a network as a training step computes with them: cast once for a step, not at each use.

A step in bf16 uses each float32 factor in forward, again where blocks are recomputed, and once more for the gradient: six casts and, where
alpha is not the rank, two multiplications, each a launch of its own for a matrix that is computed in no time. Here all are cast together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .modules import LoRA


class WorkingCopies:
    """Copies of the factors of `modules` in `dtype`, the up factor times the scale. Backward leaves gradients in them."""

    def __init__(self, modules: Sequence[LoRA], dtype: torch.dtype) -> None:
        self.modules = modules
        self.parameters: list[Tensor] = [factor.weight for one in modules for factor in (one.lora_down, one.lora_up)]
        self.copies = [torch.empty_like(one, dtype=dtype).requires_grad_() for one in self.parameters]

    def fit(self) -> bool:
        """Are they still where the parameters are?"""
        return all(copy.device == one.device for copy, one in zip(self.copies, self.parameters, strict=True))

    @torch.no_grad()
    def begin(self) -> None:
        """From now on the modules compute with copies of what their parameters are now."""
        torch._foreach_copy_(self.copies, self.parameters)
        self._times_scale(self.copies)
        for number, module in enumerate(self.modules):
            module.working = self.copies[2 * number], self.copies[2 * number + 1]

    @torch.no_grad()
    def gather(self) -> None:
        """Add the gradients of the copies to those of the parameters, in float32."""
        wide = [None if copy.grad is None else torch.empty_like(one) for copy, one in zip(self.copies, self.parameters, strict=True)]
        pairs = [(to, copy.grad) for to, copy in zip(wide, self.copies, strict=True) if to is not None and copy.grad is not None]
        if pairs:
            torch._foreach_copy_([to for to, _ in pairs], [grad for _, grad in pairs])
            self._times_scale(wide)
        sums: list[Tensor] = []
        added: list[Tensor] = []
        for parameter, gradient in zip(self.parameters, wide, strict=True):
            if gradient is not None and parameter.grad is not None:
                sums.append(parameter.grad)
                added.append(gradient)
            elif gradient is not None:
                parameter.grad = gradient
        if sums:
            torch._foreach_add_(sums, added)

    def end(self) -> None:
        for copy in self.copies:
            copy.grad = None
        for module in self.modules:
            module.working = None

    def _times_scale(self, factors: Sequence[Tensor | None]) -> None:
        """The up factors among them, or their gradients."""
        scaled = [(up, one.scale) for up, one in zip(factors[1::2], self.modules, strict=True) if up is not None and one.scale != 1.0]
        if scaled:
            torch._foreach_mul_([up for up, _ in scaled], [scale for _, scale in scaled])


def of(network: nn.Module) -> list[LoRA]:
    """The LoRA modules of a network: what can have working copies. LoHa and LoKr make their products from the factors each time."""
    return [module for module in network.children() if isinstance(module, LoRA)]
