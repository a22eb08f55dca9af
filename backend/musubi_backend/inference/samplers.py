"""Samplers for flow matching: from noise to latents by following the predicted velocity.

A flow-matching model sees x = (1 - sigma) * data + sigma * noise and predicts the velocity v = noise - data
(arXiv 2210.02747), so data = x - sigma * v. Written as a diffusion process, alpha = 1 - sigma and the half log signal to
noise ratio is lambda = log(alpha / sigma); that is all DPM-Solver++ (arXiv 2211.01095) and UniPC (arXiv 2302.04867) need.
A sampler knows nothing but its list of sigmas; the schedules below are those of Wan (github.com/Wan-Video/Wan2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..architectures.sampler import TRAINING_TIMESTEPS, Sampler
from ..errors import UserError

SAMPLERS = ("unipc", "dpm++", "vanilla")


def shifted(sigmas: Sequence[float], shift: float) -> list[float]:
    """Sigmas moved towards noise by `shift` (1 leaves them): shift * s / (1 + (shift - 1) * s)."""
    return [shift * s / (1 + (shift - 1) * s) for s in sigmas]


def wan_sigmas(sampler: str, steps: int, flow_shift: float) -> list[float]:
    """The `steps` + 1 sigmas of one Wan sampling run, ending with 0. UniPC starts one training step below pure noise."""
    start = 1 - 1 / TRAINING_TIMESTEPS if sampler == "unipc" else 1.0
    return [*shifted([start * (1 - i / steps) for i in range(steps)], flow_shift), 0.0]


def wan_sampler(name: str, steps: int, flow_shift: float) -> Sampler:
    """A fresh sampler for one sampling run of Wan. UniPC and DPM++ show the model whole timesteps, Euler exact ones."""
    sigmas = wan_sigmas(name, steps, flow_shift)
    if name == "unipc":
        return UniPC(sigmas, [float(int(s * TRAINING_TIMESTEPS)) for s in sigmas[:-1]])
    if name == "dpm++":
        return DPMSolverPlusPlus(sigmas, [float(int(s * TRAINING_TIMESTEPS)) for s in sigmas[:-1]])
    if name == "vanilla":
        return Euler(sigmas)
    raise UserError(f"--sample_solver {name}: unknown; choose one of {', '.join(SAMPLERS)}")


class Euler(Sampler):
    """First order: a straight line along the velocity."""

    def _advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        return sample + (self.sigmas[self.index + 1] - self.sigmas[self.index]) * velocity


class DPMSolverPlusPlus(Sampler):
    """DPM-Solver++ 2M, midpoint form (arXiv 2211.01095, algorithm 2): the last step falls back to first order."""

    def __init__(self, sigmas: Sequence[float], timesteps: Sequence[float] | None = None) -> None:
        super().__init__(sigmas, timesteps)
        self.previous: Tensor | None = None

    def _advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        now, after = self.sigmas[self.index], self.sigmas[self.index + 1]
        data = sample - now * velocity
        estimate = data
        if self.previous is not None and after > 0:
            ratio = (_lambda(now) - _lambda(self.sigmas[self.index - 1])) / (_lambda(after) - _lambda(now))
            estimate = data + (data - self.previous) / (2 * ratio)
        self.previous = data
        return _towards(sample, estimate, now, after)


class UniPC(Sampler):
    """UniPC with B(h) = e^h - 1 ("bh2"), predicting data; each model output first corrects the sample it was made for.

    order   order of the predictor; the corrector adds one. The first steps and the last one use what they have.
    """

    def __init__(self, sigmas: Sequence[float], timesteps: Sequence[float] | None = None, order: int = 2) -> None:
        super().__init__(sigmas, timesteps)
        self.order = order
        self.history: list[tuple[float, Tensor]] = []  # (lambda, data estimate), newest last
        self.corrected: Tensor | None = None  # the sample of the previous step
        self.used_order = 0

    def _advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        now, after = self.sigmas[self.index], self.sigmas[self.index + 1]
        data = sample - now * velocity
        if self.corrected is not None:
            sample = self._correct(data, self.corrected)
        self.history = [*self.history, (_lambda(now), data)][-self.order :]
        self.used_order = min(self.order, len(self.sigmas) - 1 - self.index, len(self.history))
        self.corrected = sample
        return self._predict(sample, now, after)

    def _predict(self, sample: Tensor, now: float, after: float) -> Tensor:
        """UniP (equation 3): the first-order step plus differences of the last data estimates."""
        plain = _towards(sample, self.history[-1][1], now, after)
        if self.used_order == 1:
            return plain
        h = _lambda(after) - self.history[-1][0]
        ratios, differences = self._differences(h)
        weights = [0.5] if self.used_order == 2 else _weights(ratios, h)  # for order 2 the paper fixes 1/2
        return plain + (1 - after) * -math.expm1(-h) * _weighted(weights, differences)

    def _correct(self, data: Tensor, start: Tensor) -> Tensor:
        """UniC (equation 5): repeats the previous step from its start, now knowing the data estimate at its end."""
        before, now = self.sigmas[self.index - 1], self.sigmas[self.index]
        h = _lambda(now) - self.history[-1][0]
        ratios, differences = self._differences(h)
        weights = [0.5] if self.used_order == 1 else _weights([*ratios, 1.0], h)
        differences = [*differences, data - self.history[-1][1]]
        return _towards(start, self.history[-1][1], before, now) + (1 - now) * -math.expm1(-h) * _weighted(weights, differences)

    def _differences(self, h: float) -> tuple[list[float], list[Tensor]]:
        """r_m = (lambda_m - lambda_0) / h and D_m / r_m for the older estimates in use, newest of them first."""
        newest_lambda, newest = self.history[-1]
        older = self.history[-self.used_order : -1][::-1]
        ratios = [(value - newest_lambda) / h for value, _ in older]
        return ratios, [(data - newest) / ratio for ratio, (_, data) in zip(ratios, older, strict=True)]


def _lambda(sigma: float) -> float:
    """Half the log signal to noise ratio: -inf at pure noise, inf at data."""
    if sigma >= 1:
        return -math.inf
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


def _towards(sample: Tensor, data: Tensor, now: float, after: float) -> Tensor:
    """The exact solution between two sigmas if the data estimate were constant (equation 9 of DPM-Solver++)."""
    shrink = after / now
    return shrink * sample + ((1 - after) - shrink * (1 - now)) * data


def _weights(ratios: list[float], h: float) -> list[float]:
    """The a_m that match the solution's Taylor series (UniPC, theorem 3.1), with z = -h:

    sum_m a_m * r_m^(k-1) = k! * phi_(k+1)(z) * z / (e^z - 1) for k = 1..n, where phi_1(z) = (e^z - 1) / z and
    phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z.
    """
    z = -h
    phi = math.expm1(z) / z
    right = []
    for k in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(k)) / z
        right.append(math.factorial(k) * phi * z / math.expm1(z))
    powers = torch.tensor([[r**k for r in ratios] for k in range(len(ratios))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64)).tolist()
    return weights


def _weighted(weights: list[float], tensors: list[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * tensor
    return total
