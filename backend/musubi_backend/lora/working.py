"""The factors of a network as a training step computes with them: cast once for a step, not at each use.

A step in bf16 uses each float32 factor in forward, again where blocks are recomputed, and once more for the gradient: six casts and, where
alpha is not the rank, two multiplications, each a launch of its own for a matrix that is computed in no time. Here all are cast together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        self._times_scale(dict(enumerate(self.copies)))
        for number, module in enumerate(self.modules):
            module.working = self.copies[2 * number], self.copies[2 * number + 1]

    @torch.no_grad()
    def gather(self) -> None:
        """Move the gradients of the copies to those of the parameters, where they add up in float32."""
        gradients = {number: grad for number, copy in enumerate(self.copies) if (grad := copy.grad) is not None}
        if not gradients:
            return
        wide = {number: torch.empty_like(self.parameters[number]) for number in gradients}
        torch._foreach_copy_(list(wide.values()), list(gradients.values()))
        self._times_scale(wide)
        sums: list[Tensor] = []
        added: list[Tensor] = []
        for number, gradient in wide.items():
            self.copies[number].grad = None
            before = self.parameters[number].grad
            if before is None:
                self.parameters[number].grad = gradient
            else:
                sums.append(before)
                added.append(gradient)
        if sums:
            torch._foreach_add_(sums, added)

    def end(self) -> None:
        for copy in self.copies:
            copy.grad = None
        for module in self.modules:
            module.working = None

    def _times_scale(self, factors: Mapping[int, Tensor]) -> None:
        """The up factors among them, or their gradients, by their number among the copies."""
        ups = ((up, self.modules[number // 2].scale) for number, up in factors.items() if number % 2)
        scaled = [(up, scale) for up, scale in ups if scale != 1.0]
        if scaled:
            torch._foreach_mul_([up for up, _ in scaled], [scale for _, scale in scaled])


def of(network: nn.Module) -> list[LoRA]:
    """The LoRA modules of a network: what can have working copies. LoHa and LoKr make their products from the factors each time."""
    return [module for module in network.children() if isinstance(module, LoRA)]


def copies_at_work(network: nn.Module) -> list[Tensor]:
    """The copies that a network's LoRA modules compute with now; none outside of `LoRANetwork.working_in`, nor in float32."""
    return [copy for module in network.modules() if isinstance(module, LoRA) for copy in module.working or ()]
