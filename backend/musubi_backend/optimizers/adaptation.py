"""The two factors that AdaptiveHinaAdamW puts on the learning rate of each tensor: how important it is, and how steady its gradients are.

Neither depends on the scale of the loss or the number of weights in a tensor, and both are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .pairing import Pair
from .stages import agreements, norms

_SETTLING = 5e-4  # of the way back to 1 that the mask goes in each step after its warm-up
_LEAST, _MOST = 0.1, 10.0
FACTORS = (0.5, 2.0)


def importance_of(weights: Tensor, momenta: Tensor, squares: Tensor, references: Tensor) -> Tensor:
    """40 % how consistent gradients are, 30 % how much the norm changed since `references`, 30 % how evenly the weights are spread; each
    from 0 to 1: [tensors, 1], of [tensors, numbers]."""
    steady = (norms(momenta) / squares.sum(1, keepdim=True).sqrt().clamp_min(1e-30)).clamp(0, 1)
    lengths = norms(weights)
    change = (lengths - references).abs() / (lengths + references).clamp_min(1e-30)
    return 0.4 * steady + 0.3 * change + 0.3 * _spread(weights)


def _spread(weights: Tensor) -> Tensor:
    """Share of the variance in the mean square, times the share of weights that are not close to 0."""
    square = weights.square().mean(1, keepdim=True)
    variance = (square - weights.mean(1, keepdim=True).square()) / square.clamp_min(1e-30)
    return (variance * (weights.abs() > 1e-3 * square.sqrt()).to(weights.dtype).mean(1, keepdim=True)).clamp(0, 1)


def rate_factors(importance: Tensor, pairs: Sequence[Pair], strength: float) -> Tensor:
    """What the learning rates are multiplied with: the importance over its mean, of pairs drawn together by their compatibility, to the
    power of `strength`, in `FACTORS`: [tensors]."""
    values = list(importance.unbind())
    if pairs:  # numbers of Python go to a device with their kernel, a tensor of them would be waited for
        first, second = ([values[at] for at in places] for places in zip(*((pair.first, pair.second) for pair in pairs), strict=True))
        apart = list((torch.stack(second) - torch.stack(first)).unbind())
        for pair, pull in zip(pairs, torch._foreach_mul(apart, [pair.compatibility / 2 for pair in pairs]), strict=True):
            values[pair.first], values[pair.second] = values[pair.first] + pull, values[pair.second] - pull
    joint = torch.stack(values)
    return (joint / joint.mean().clamp_min(1e-30)).pow(strength).clamp(*FACTORS)


@dataclass(frozen=True)
class Mask:
    """The bounds of the ratio of learning rates: those of the group's rate, at most from a tenth to ten times, and never without 1."""

    bump: float
    least: float
    most: float

    @classmethod
    def of(cls, group: dict[str, Any]) -> Mask:
        """Of a group with `lr_bump`, `min_lr`, `max_lr`; its rate is the one without its schedule."""
        rate: float = group["initial_lr"] if "initial_lr" in group else group["first_rate"]
        if rate <= 0:
            return cls(0.0, 1.0, 1.0)
        bump, low, high = group["lr_bump"], group["min_lr"], group["max_lr"]
        return cls(bump / rate, min(1.0, max(low / rate, _LEAST)), max(1.0, min(high / rate, _MOST)))

    def move(self, ratios: Tensor, grads: Tensor, momenta: Tensor, warming: bool, scratch: Tensor | None = None) -> None:
        """`ratios` [tensors, 1] in place, with `scratch` for products. While warming up: up where more gradients have the sign of the
        momentum before them than not, else down, by `bump` at most. Afterwards slowly back to 1."""
        if warming:
            ratios.add_(agreements(grads, momenta, scratch), alpha=self.bump).clamp_(self.least, self.most)
        else:
            ratios.lerp_(ratios.new_ones(()), _SETTLING)
