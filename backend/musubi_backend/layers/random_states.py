"""The states of PyTorch's global random generators, from which dropout draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class RandomStates(NamedTuple):
    """Of the CPU's generator, and of that of a CUDA device."""

    cpu: Tensor
    device: torch.device | None = None
    cuda: Tensor | None = None

    @classmethod
    def now(cls, device: torch.device) -> RandomStates:
        """device: where is computed."""
        if device.type == "cuda":
            return cls(torch.get_rng_state(), device, torch.cuda.get_rng_state(device))
        return cls(torch.get_rng_state())

    def restore(self) -> None:
        """What is drawn next is what was drawn after these states."""
        torch.set_rng_state(self.cpu)
        if self.device is not None and self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, draw from these states; afterwards it is as if nothing had been drawn."""
        now = RandomStates.now(self.device or torch.device("cpu"))
        self.restore()
        try:
            yield
        finally:
            now.restore()
