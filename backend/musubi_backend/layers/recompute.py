"""Gradient checkpointing (arXiv 1604.06174): keep a block's input, run the block again when backward needs its activations.

PyTorch's `torch.utils.checkpoint` does the same, but loads PyTorch's compiler (over a second) into every training. What is
saved for backward is replaced by its number; the first number asked for runs the function again and collects the tensors
up to the last one needed, then stops. What is run through `once` may be left out of that.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .offloaded import Offloaded, Resident, Waiting
from .random_states import RandomStates


class Tier(Enum):
    """Where the result of `once` is between forward and backward."""

    RECOMPUTED = "recomputed"
    ON_DEVICE = "on the device"
    IN_RAM = "in system RAM"


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, offload: bool = False, tier: Tier = Tier.RECOMPUTED) -> Tensor:
    """function(x), whose activations are computed again in backward, with the same random numbers.

    x is the only input kept; whatever else `function` uses must still be there, unchanged, in backward. offload: x waits in
    (on CUDA: pinned) host memory. tier: what becomes of the results of `once`. Backward can run once.
    """
    recording = _Recording(function, x, offload, tier)
    with saved_tensors_hooks(recording.number, recording.tensor), _into(recording):
        return function(x)


def once(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), which draws no random numbers. Inside of `recomputed` its result, and what autograd saved for it besides the
    inputs, wait for backward as the tier says, so that it is not computed twice; not where that is much more than the result."""
    if torch.compiler.is_compiling():
        return function(*inputs)
    recording: _Recording | None = getattr(_local, "recording", None)
    return function(*inputs) if recording is None else recording.once(function, inputs)


def outputs_once(run: Callable[[], tuple[Tensor, ...]], number: int) -> tuple[Tensor, ...]:
    """run(), as `once`, for an operator that compilers and autograd do not look into: of its outputs the first waits for backward as
    the tier says, the others where they are. number: which of those of a block that need not wait for each other, as a compiler may
    change their order."""
    recording: _Recording | None = getattr(_local, "recording", None)
    return run() if recording is None else recording.outputs_once(run, number)


def latest() -> Recorded:
    """The last call of `recomputed`, for `come_back`."""
    return _last


def come_back(order: Sequence[Recorded]) -> None:
    """Backward will run these again in this order, which otherwise is the reverse of forward's: what waits in system RAM is asked for one
    ahead."""
    for one, following in itertools.pairwise(order):
        recording = None if one is None else one()
        if recording is not None:
            recording.before = following


class _AllSaved(Exception):
    """Ends a recomputation once it has made everything that backward needs."""


class _View(NamedTuple):
    """A view of the memory of an input, whose storage is `storage_offset` elements in."""

    number: int
    shape: torch.Size
    strides: tuple[int, ...]
    start: int

    def of(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[self.number].detach().as_strided(self.shape, self.strides, self.start)


class _Kept(NamedTuple):
    """A call of `once` that is not to be run again. saved: what autograd saved for it, in order; None stands for the result."""

    result: Waiting
    requires_grad: bool
    saved: list[_View | Tensor | None]

    def fetch(self) -> None:
        self.result.fetch()


class _Outputs(NamedTuple):
    """A call of `outputs_once` that is not to be run again."""

    number: int
    first: Waiting
    others: list[Tensor]

    def fetch(self) -> None:
        self.first.fetch()


_local = threading.local()
Recorded: TypeAlias = "weakref.ref[_Recording] | None"
_last: Recorded = None


class _Recording:
    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, offload: bool, tier: Tier) -> None:
        global _last
        self.function = function
        self.device = x.device
        self.requires_grad = x.requires_grad
        self.x: Waiting = Offloaded(x.detach()) if offload else Resident(x.detach())
        self.tier = tier
        self.kept: list[_Kept | None] = []
        self.outputs: list[_Outputs] = []
        self.random = RandomStates.now(x.device)
        self.count = 0
        self.saved: dict[int, Tensor] = {}
        self.ran = False
        self.before = _last
        _last = weakref.ref(self)

    def number(self, _: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def tensor(self, number: int) -> Tensor:
        if not self.ran:
            self._run_again()
        if number not in self.saved:
            raise RuntimeError("a recomputed block was asked for the same activation twice: backward can run through it only once")
        return self.saved.pop(number)

    def once(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        if self.tier is Tier.RECOMPUTED:
            return function(*inputs)
        if not self.ran:
            return self._first(function, inputs)
        kept = self.kept.pop(0)
        if kept is None:
            return function(*inputs)
        result = kept.result.tensor()
        for saved in kept.saved:
            self._collect(result if saved is None else saved.of(inputs) if isinstance(saved, _View) else saved)
        return result.requires_grad_(kept.requires_grad)

    def outputs_once(self, run: Callable[[], tuple[Tensor, ...]], number: int) -> tuple[Tensor, ...]:
        if self.tier is Tier.RECOMPUTED:
            return run()
        if self.ran:
            kept = next(one for one in self.outputs if one.number == number)
            self.outputs.remove(kept)
            return kept.first.tensor(), *kept.others
        first, *others = run()
        self.outputs.append(_Outputs(number, self._waiting(first), [one.detach() for one in others]))
        return first, *others

    def _waiting(self, result: Tensor) -> Waiting:
        return Offloaded(result.detach()) if self.tier is Tier.IN_RAM else Resident(result.detach())

    def _first(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> int:
            packed.append(tensor.detach())
            return self.number(tensor)

        with saved_tensors_hooks(pack, self.tensor):
            result = function(*inputs)
        saved = [_as_kept(tensor, inputs, result) for tensor in packed]
        packed.clear()  # the hooks live as long as the graph
        own = sum(one.nbytes for one in saved if isinstance(one, Tensor))
        if own > result.nbytes:
            self.kept.append(None)
        else:
            self.kept.append(_Kept(self._waiting(result), result.requires_grad, saved))
        return result

    def fetch(self) -> None:
        """Backward will come here soon."""
        if not self.ran:
            self.x.fetch()
            for kept in (*self.kept, *self.outputs):
                if kept is not None:
                    kept.fetch()

    def _run_again(self) -> None:
        self.fetch()
        self.ran = True
        x = self.x.tensor().requires_grad_(self.requires_grad)
        previous = None if self.before is None else self.before()
        if previous is not None and previous.device == self.device:  # else that of a step that failed, as less memory is planned for it
            previous.fetch()
        with (
            torch.enable_grad(),
            self.random.again(),
            contextlib.suppress(_AllSaved),
            saved_tensors_hooks(self._collect, _never),
            _into(self),
        ):
            self.function(x)
        if len(self.saved) != self.count:
            raise RuntimeError(f"a block saved {self.count} tensors and {len(self.saved)} when it ran again; it must do the same each time")
        self.kept.clear()
        self.outputs.clear()
        del self.x

    def _collect(self, tensor: Tensor) -> None:
        self.saved[len(self.saved)] = tensor.detach()
        if len(self.saved) == self.count:
            raise _AllSaved


def _as_kept(saved: Tensor, inputs: tuple[Tensor, ...], result: Tensor) -> _View | Tensor | None:
    """What is to be kept of a tensor that autograd saved: nothing of those that are there again by then."""
    memory = saved.untyped_storage()._cdata
    if memory == result.untyped_storage()._cdata and _layout(saved) == _layout(result):
        return None
    for number, one in enumerate(inputs):
        if memory == one.untyped_storage()._cdata:
            return _View(number, *_layout(saved))
    return saved


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


@contextlib.contextmanager
def _into(recording: _Recording) -> Iterator[None]:
    """Let `once` find the recording."""
    before = getattr(_local, "recording", None)
    _local.recording = recording
    try:
        yield
    finally:
        _local.recording = before


def _never(_: None) -> Tensor:
    raise AssertionError("nothing runs backward through a recomputation")
