"""Tensors that wait for backward: on the device, or in (pinned) system RAM, to and from which they are copied in a stream of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from .pinned import Pinned, Pool


class Waiting(Protocol):
    """A tensor that is needed again in backward."""

    def fetch(self) -> None:
        """It will be needed soon."""

    def tensor(self) -> Tensor:
        """The tensor, for what is asked of the device from now on. Called once."""


class Resident:
    """One that stays where it is."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def fetch(self) -> None:
        pass

    def tensor(self) -> Tensor:
        return self._tensor


class Offloaded:
    """One that waits in system RAM. The device goes on meanwhile, in both directions; the copies of all of them come in the order
    they were asked for, so memory that one was copied from may at once be copied into."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self.back: Tensor | None = None
        self.home: Pinned | None = None
        self.arrived: Any = None
        if not tensor.is_cuda:
            self.host = tensor.clone()
            return
        self.host, self.home = _pool.take(tensor)
        stream = _copies(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.host.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # it may be freed now, and is used again after the copy

    def fetch(self) -> None:
        if self.home is None or self.back is not None:
            return
        stream, computing = _copies(self.device), torch.cuda.current_stream(self.device)
        self.back = torch.empty_like(self.host, device=self.device)
        stream.wait_stream(computing)  # which may still use what this memory was before
        with torch.cuda.stream(stream):
            self.back.copy_(self.host, non_blocking=True)
            self.arrived = stream.record_event()
        _pool.give_back(self.home)

    def tensor(self) -> Tensor:
        self.fetch()
        if self.back is None:  # of a CPU
            return self.host
        torch.cuda.current_stream(self.device).wait_event(self.arrived)
        back, self.back = self.back, None
        return back

    def __del__(self) -> None:
        """Backward may be given up when this one is on its way: its memory is used again only after the copy."""
        if self.back is not None:
            self.back.record_stream(_copies(self.device))


def unpin() -> None:
    """Give back the pinned memory that is kept for the next step: of a training that ends, or is made anew with other settings. Another
    one would have to unpin it piece by piece in its first step, and waits for the device each time."""
    _pool.empty()


_pool = Pool()


@lru_cache(maxsize=16)
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
