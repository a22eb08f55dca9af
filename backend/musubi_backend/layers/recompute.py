"""Gradient checkpointing (arXiv 1604.06174): keep a block's input, run the block again when backward needs its activations.

PyTorch's `torch.utils.checkpoint` does the same, but loads PyTorch's compiler (over a second) into every training. What is
saved for backward is replaced by its number; the first number asked for runs the function again and collects the tensors
up to the last one needed, then stops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .pinned import Pinned, Pool


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, offload: bool = False) -> Tensor:
    """function(x), whose activations are computed again in backward, with the same random numbers.

    x is the only input kept; whatever else `function` uses must still be there, unchanged, in backward. offload: x waits in
    (on CUDA: pinned) host memory. Backward can run once.
    """
    recording = _Recording(function, x, offload)
    with saved_tensors_hooks(recording.number, recording.tensor):
        return function(x)


class _AllSaved(Exception):
    """Ends a recomputation once it has made everything that backward needs."""


class _Recording:
    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, offload: bool) -> None:
        self.function = function
        self.device = x.device
        self.requires_grad = x.requires_grad
        self.x, self.host = _to_host(x.detach()) if offload else (x.detach(), None)
        self.random = _random_states(x.device)
        self.count = 0
        self.saved: dict[int, Tensor] = {}
        self.ran = False

    def number(self, _: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def tensor(self, number: int) -> Tensor:
        if not self.ran:
            self._run_again()
        if number not in self.saved:
            raise RuntimeError("a recomputed block was asked for the same activation twice: backward can run through it only once")
        return self.saved.pop(number)

    def _run_again(self) -> None:
        self.ran = True
        x = self.x.to(self.device, non_blocking=True).requires_grad_(self.requires_grad)
        if self.host is not None:
            _pool.give_back(self.host)
            self.host = None

        def collect(tensor: Tensor) -> None:
            self.saved[len(self.saved)] = tensor.detach()
            if len(self.saved) == self.count:
                raise _AllSaved

        with (
            torch.enable_grad(),
            _random_states_set(self.random),
            contextlib.suppress(_AllSaved),
            saved_tensors_hooks(collect, _never),
        ):
            self.function(x)
        if len(self.saved) != self.count:
            raise RuntimeError(f"a block saved {self.count} tensors and {len(self.saved)} when it ran again; it must do the same each time")
        del self.x


def _never(_: None) -> Tensor:
    raise AssertionError("nothing runs backward through a recomputation")


_pool = Pool()


def _to_host(x: Tensor) -> tuple[Tensor, Pinned | None]:
    """(a copy in system RAM, its memory in the pool)."""
    if not x.is_cuda:
        return x.clone(), None
    host, memory = _pool.take(x)
    return host.copy_(x, non_blocking=True), memory


_RandomStates = tuple[Tensor, torch.device | None, Tensor | None]


def _random_states(device: torch.device) -> _RandomStates:
    if device.type == "cuda":
        return torch.get_rng_state(), device, torch.cuda.get_rng_state(device)
    return torch.get_rng_state(), None, None


@contextlib.contextmanager
def _random_states_set(states: _RandomStates) -> Iterator[None]:
    """Random numbers as they were then, for the block; afterwards as if nothing had been drawn."""
    now = _random_states(states[1] or torch.device("cpu"))
    _set(states)
    try:
        yield
    finally:
        _set(now)


def _set(states: _RandomStates) -> None:
    cpu, device, cuda = states
    torch.set_rng_state(cpu)
    if device is not None and cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
