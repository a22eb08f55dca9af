"""Seeds: every random number of micro-step n in process r is a function of (seed, n, r), so resuming needs no random state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..seeds import derived_seed
from .settings import TimestepSampling
from .timesteps import noise_levels


class StepRandomness:
    """What one process draws, from generators that are set anew for each micro-step: noise levels on the CPU, noise where the latents are.
    torch's global generators (dropout) follow too."""

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self._seed = seed
        self._rank = rank
        self._host = torch.Generator()
        self._device = torch.Generator(device)

    def start(self, micro_step: int) -> None:
        """Set all generators for `micro_step`."""
        self._host.manual_seed(derived_seed(self._seed, "timesteps", micro_step, self._rank))
        self._device.manual_seed(derived_seed(self._seed, "noise", micro_step, self._rank))
        torch.manual_seed(derived_seed(self._seed, "dropout", micro_step, self._rank))

    def noise(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, float32 on the device."""
        return torch.randn(shape, generator=self._device, device=self._device.device)

    def levels(
        self, sampling: TimestepSampling, shape: Sequence[int], u: Sequence[float] | None, boundary: float | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """As `timesteps.noise_levels`; with `--steps_per_expert` all of a group of optimizer steps on one side of the boundary, the same in
        all processes. The first draw of the group says which, so that each expert keeps its share. step: the one the batch is of."""
        first = None
        if boundary is not None and sampling.steps_per_expert > 1:
            group = torch.Generator().manual_seed(derived_seed(self._seed, "expert", step // sampling.steps_per_expert))
            first = noise_levels(sampling, (1, *shape[1:]), group)
        return noise_levels(sampling, shape, self._host, u, boundary, first)
