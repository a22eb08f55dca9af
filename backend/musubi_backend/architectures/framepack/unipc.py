"""FramePack's sampler: UniPC (arXiv 2302.04867) of third order on the flow's own time, B(h) = h, and a shift that depends on the size.

With data prediction, x at time t is x_0-estimate plus t times noise, up to a change of variables in which lambda = -log t and alpha = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...inference.samplers import shifted
from ..sampler import Sampler

ORDER = 3
_MU_AT = ((256, 0.5), (4096, 1.15))  # logarithm of the shift at these numbers of tokens, linear between and beyond
_LARGEST_SHIFT = 7.0


def dynamic_shift(tokens: int) -> float:
    """The shift for a section of so many tokens (latent pixels / 4)."""
    (first, low), (last, high) = _MU_AT
    return min(math.exp(low + (high - low) * (tokens - first) / (last - first)), _LARGEST_SHIFT)


def sigmas(steps: int, shift: float) -> list[float]:
    """steps + 1 sigmas from 1 to 0."""
    return shifted([1 - i / steps for i in range(steps + 1)], shift)


class FlowUniPC(Sampler):
    """The model is asked at predicted samples; its answer corrects them before the next prediction. The last answer is the result."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__(sigmas)
        self.order = min(ORDER, len(sigmas) - 2)
        self.history: list[tuple[float, Tensor]] = []  # (sigma, data estimate), newest last
        self.corrected: Tensor | None = None

    def _advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        now, after = self.sigmas[self.index], self.sigmas[self.index + 1]
        data = sample - now * velocity
        if self.corrected is not None:
            sample = self._step(self.corrected, now, data)
        self.history = [*self.history, (now, data)][-max(1, self.order) :]
        self.corrected = sample
        return self._step(sample, after, None) if after > 0 else data

    def _step(self, start: Tensor, after: float, data_after: Tensor | None) -> Tensor:
        """From `start`, at the newest sigma of the history, to `after`; with the data estimate there it is the corrector."""
        now, newest = self.history[-1]
        h = math.log(now / after)
        order = min(self.order, len(self.history))
        older = self.history[-order:-1][::-1]
        ratios = [math.log(now / sigma) / h for sigma, _ in older]
        differences = [(data - newest) / ratio for ratio, (_, data) in zip(ratios, older, strict=True)]
        if data_after is not None:
            ratios, differences = [*ratios, 1.0], [*differences, data_after - newest]
        moved = (after / now) * start - math.expm1(-h) * newest
        for weight, difference in zip(self._weights(ratios, h), differences, strict=True):
            moved = moved - weight * difference
        return moved

    @staticmethod
    def _weights(ratios: list[float], h: float) -> list[float]:
        """a_m with sum_m a_m * r_m^(k-1) = k! * z * phi_(k+1)(z) for k = 1.., z = -h, phi as in the paper. One term of a predictor, and of
        a corrector without older estimates, is fixed at half of B(h)."""
        z = -h
        if not ratios:
            return []
        if len(ratios) == 1:
            return [0.5 * z]
        phi = math.expm1(z) / z
        right = []
        for k in range(1, len(ratios) + 1):
            phi = (phi - 1 / math.factorial(k)) / z
            right.append(math.factorial(k) * z * phi)
        powers = torch.tensor([[ratio**k for ratio in ratios] for k in range(len(ratios))], dtype=torch.float64)
        weights: list[float] = torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64)).tolist()
        return weights
