"""Seeds: every random number of micro-step n in process r is a function of (seed, n, r), so resuming needs no random state."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *place: int | str) -> int:
    """A seed for one place of a run, such as (micro-step, process). Independent for different places and seeds."""
    text = "/".join(str(part) for part in (seed, *place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class StepRandomness:
    """The generators of one process, set anew for each micro-step.

    host draws timesteps on the CPU; device draws noise where the latents are; torch's global generators (dropout) follow too.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self._seed = seed
        self._rank = rank
        self.host = torch.Generator()
        self.device = torch.Generator(device)

    def start(self, micro_step: int) -> None:
        """Set all generators for `micro_step`."""
        self.host.manual_seed(derived_seed(self._seed, "timesteps", micro_step, self._rank))
        self.device.manual_seed(derived_seed(self._seed, "noise", micro_step, self._rank))
        torch.manual_seed(derived_seed(self._seed, "dropout", micro_step, self._rank))
