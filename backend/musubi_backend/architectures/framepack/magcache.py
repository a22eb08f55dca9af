"""MagCache (arXiv 2506.09045): steps in which the blocks would add almost what they added before reuse it.

What the blocks add to the tokens changes in size by a ratio that depends on the step alone, hardly on the prompt. Ratios are measured once
(calibration) and multiplied up; a step is skipped while their distance from 1, summed over the skipped steps, stays small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from .settings import MagCacheSettings

logger = logging.getLogger(__name__)

MEASURED = (
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974, 1.00984, 1.03028, 1.00681, 1.06614,
    1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742, 1.0093, 1.01869, 1.00815, 1.01461,
    1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947, 1.01711, 0.9904, 1.00258, 1.00878, 0.97039, 0.97686,
    0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
)  # fmt: skip
"""HunyuanVideo's ratios over 50 steps (github.com/Zehong-Ma/MagCache, MagCache4HunyuanVideo)."""


@dataclass
class MagCache:
    """One section's run. Give it to the transformer as `around_blocks`; it counts the predictions.

    ratios      one per step, of the size of what the blocks add to that of the step before
    retention   share of the steps, from the start, that are never skipped; the last one is not either
    threshold   what the summed error of steps skipped in a row may reach
    most        how many steps may be skipped in a row
    """

    ratios: tuple[float, ...]
    retention: float
    threshold: float
    most: int
    step: int = 0
    skipped: list[int] = field(default_factory=list)
    _added: Tensor | None = None
    _ratio: float = 1.0
    _error: float = 0.0
    _in_row: int = 0

    def __call__(self, run: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
        """Tokens [B, S, C] behind the blocks. The first `count` are the image's; the text's are not used again."""
        skip = self._may_skip()
        if skip:
            self.skipped.append(self.step)
        self.step += 1
        if skip and self._added is not None:
            return x + self._added
        out = run(x)
        self._added = out - x
        return out

    def _may_skip(self) -> bool:
        steps = len(self.ratios)
        if not max(int(self.retention * steps), 1) <= self.step < steps - 1:
            return False
        self._ratio *= self.ratios[self.step]
        self._error += abs(1 - self._ratio)
        self._in_row += 1
        if self._error <= self.threshold and self._in_row <= self.most:
            return True
        self._ratio, self._error, self._in_row = 1.0, 0.0, 0
        return False


@dataclass
class Calibration:
    """Skips nothing and measures. Give it to the transformer as `around_blocks`."""

    ratios: list[float] = field(default_factory=lambda: [1.0])
    spreads: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    _added: Tensor | None = None

    def __call__(self, run: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
        """As `MagCache`."""
        out = run(x)
        added = (out - x)[:, :count].float()
        if self._added is not None:
            sizes = added.norm(dim=-1) / self._added.norm(dim=-1)
            self.ratios.append(sizes.mean().item())
            self.spreads.append(sizes.std().item())
            self.distances.append((1 - F.cosine_similarity(added, self._added, dim=-1, eps=1e-8)).mean().item())
        self._added = added
        return out

    def report(self) -> None:
        """Print what `--magcache_mag_ratios` takes."""
        logger.info("MagCache calibration data:")
        for name, values in (("norm_ratio", self.ratios[1:]), ("norm_std", self.spreads), ("cos_dis", self.distances)):
            logger.info("  - %s: %s", name, [round(value, 5) for value in values])
        logger.info("Copy and paste following values to --magcache_mag_ratios argument to use them:")
        print(",".join(f"{ratio:.5f}" for ratio in self.ratios), flush=True)


def wanted(settings: MagCacheSettings, own: Mapping[str, Any], steps: int) -> MagCache | Calibration | None:
    """What goes around the blocks for one section of `steps` predictions; None without MagCache. own: a prompt line's settings."""
    if settings.magcache_calibration:
        return Calibration()
    if settings.magcache_mag_ratios is None:
        return None
    ratios = spread(parse_ratios(settings.magcache_mag_ratios), steps)
    retained = own.get("magcache_retention_ratio", settings.magcache_retention_ratio)
    threshold, most = own.get("magcache_threshold", settings.magcache_threshold), own.get("magcache_k", settings.magcache_k)
    return MagCache(ratios, retained, threshold, most)


def parse_ratios(text: str) -> tuple[float, ...]:
    """`--magcache_mag_ratios`; "0" stands for the measured ones. UserError when they are no numbers above 0."""
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f'--magcache_mag_ratios "{text[:60]}": give numbers separated by commas, or 0 for the usual ones') from None
    if ratios == (0.0,):
        return MEASURED
    if not all(0 < ratio < float("inf") for ratio in ratios):
        raise UserError("--magcache_mag_ratios: every ratio must be above 0")
    return ratios


def spread(ratios: tuple[float, ...], steps: int) -> tuple[float, ...]:
    """The nearest ratio for each of another number of steps."""
    if len(ratios) == steps:
        return ratios
    if steps == 1:
        return ratios[-1:]
    places = torch.arange(steps, dtype=torch.float64) * ((len(ratios) - 1) / (steps - 1))
    return tuple(ratios[int(place)] for place in places.round())
