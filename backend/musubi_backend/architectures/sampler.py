"""What a sampler of the diffusion process is; those there are lie in `inference.samplers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TRAINING_TIMESTEPS = 1000


class Sampler(ABC):
    """A run over given sigmas; `step` must be called once per timestep, in order.

    sigmas      decreasing, from at most 1 (pure noise) to 0 (data), one more than there are steps
    timesteps   what the model is given at each step; 1000 * sigma unless given
    """

    def __init__(self, sigmas: Sequence[float], timesteps: Sequence[float] | None = None) -> None:
        self.sigmas = list(sigmas)
        self.timesteps = list(timesteps) if timesteps is not None else [s * TRAINING_TIMESTEPS for s in self.sigmas[:-1]]
        self.index = 0

    def step(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """velocity: the model's prediction for `sample` at the current timestep. Returns the sample at the next one."""
        after = self._advance(velocity, sample)
        self.index += 1
        return after

    @abstractmethod
    def _advance(self, velocity: Tensor, sample: Tensor) -> Tensor:
        """The sample at the next sigma."""
