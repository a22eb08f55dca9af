"""The processes of a training: one, or several started by `accelerate launch`.

Each process trains on its share of every epoch's batches; gradients are averaged before each optimizer step. accelerate sets up the
process group and picks the device; with one process it is not imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from .. import durations
from ..errors import EXIT_USER_ERROR

T = TypeVar("T")

_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout", "Connection refused")
"""In what gloo says of it."""


class Processes(Protocol):
    """What the loop asks of its process group."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool: ...

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace every gradient by its mean over the processes."""
        ...

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise mean over the processes."""
        ...

    def agreed(self, number: int) -> int:
        """The main process' number, in every process."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        ...

    def union(self, words: list[str], known: Sequence[str]) -> list[str]:
        """What any process has of `known`: of several in that order, of one as they are."""
        ...

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """values, on the CPU and of one shape everywhere -> [processes, ...], those of every process."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...

    def main_does(self, work: Callable[[], object]) -> None:
        """Have the main process do `work` while the others wait, however long it takes. When it fails there, all leave: the main process
        with its error, the others silently."""
        ...

    def part(self) -> None:
        """Another process may be gone: from now on this one waits for none, and only the main one does what the main one does."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class OneProcess:
    """No group: nothing to average, nobody to wait for."""

    rank, count, is_main = 0, 1, True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Already the mean."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def agreed(self, number: int) -> int:
        return number

    def any(self, flag: bool) -> bool:
        return flag

    def union(self, words: list[str], known: Sequence[str]) -> list[str]:
        return words

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        return values[None]

    def wait(self) -> None:
        """Nobody to wait for."""

    def main_does(self, work: Callable[[], object]) -> None:
        work()

    def part(self) -> None:
        """Alone already."""

    def close(self) -> None:
        """No group to leave."""


class ManyProcesses:
    """A group set up by accelerate from the environment that its launcher made."""

    def __init__(self, timeout_minutes: int | None) -> None:
        from datetime import timedelta

        from accelerate import PartialState

        options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)} if timeout_minutes else {}
        if torch.cuda.is_available() and not torch.distributed.is_nccl_available():
            options["backend"] = "gloo"  # accelerate would ask for NCCL, which PyTorch has not on Windows
        if sys.platform == "win32":
            os.environ.setdefault("USE_LIBUV", "0")  # the store that PyTorch prefers is not in its builds for Windows
        self._state = PartialState(cpu=not torch.cuda.is_available(), **options)
        # For waiting: the group for gradients gives up after minutes, and the main process may save or sample for longer.
        self._patient = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=durations.WITHIN_GROUP))
        self._parted = False
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self.device = self._state.device

    @property
    def is_main(self) -> bool:
        return bool(self.rank == 0)

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        every = list(parameters)
        # One message instead of hundreds. A parameter that had no part in this process' loss (module_dropout, the LoRA of the expert at
        # rest) counts as zero; one that had no part in any process' loss stays without a gradient, so that no optimizer moves it.
        used = every[0].new_tensor([one.grad is not None for one in every])
        flat = torch.cat([used, *((torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in every)])
        averaged = self.mean(flat)
        shares, start = averaged[: len(every)].tolist(), len(every)
        for one, share in zip(every, shares, strict=True):
            one.grad = averaged[start : start + one.numel()].view_as(one) if share > 0 else None
            start += one.numel()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        result = values.clone()
        torch.distributed.all_reduce(result)
        mean: torch.Tensor = result / self.count
        return mean

    def agreed(self, number: int) -> int:
        shared = torch.tensor(number, dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return int(shared.item())

    def any(self, flag: bool) -> bool:
        if self._parted:
            return flag
        flags = torch.tensor(int(flag))
        torch.distributed.all_reduce(flags, group=self._patient)
        return bool(flags.item())

    def union(self, words: list[str], known: Sequence[str]) -> list[str]:
        flags = torch.tensor([int(word in words) for word in known])
        torch.distributed.all_reduce(flags, group=self._patient)
        return [word for word, flag in zip(known, flags.tolist(), strict=True) if flag]

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        every = [torch.empty_like(values) for _ in range(self.count)]
        torch.distributed.all_gather(every, values, group=self._patient)
        return torch.stack(every)

    def wait(self) -> None:
        self.any(False)

    def main_does(self, work: Callable[[], object]) -> None:
        self.wait()
        error: BaseException | None = None
        if self.is_main:
            try:
                work()
            except BaseException as raised:  # the others must know before it continues
                error = raised
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise SystemExit(EXIT_USER_ERROR)

    def part(self) -> None:
        self._parted = True

    def close(self) -> None:
        if not self._parted:  # with partners that are gone it would not end
            self._state.destroy_process_group()


def start(timeout_minutes: int | None) -> Processes:
    """The process group this process belongs to. timeout_minutes: how long they wait for each other; None is accelerate's own time."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ManyProcesses(timeout_minutes)
    return OneProcess(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def lost_another(error: BaseException) -> bool:
    """Did an exchange fail because another process is gone?"""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GONE)


def share(items: Sequence[T], rank: int, count: int, done: int = 0) -> list[T]:
    """This process' part of `items` without the first `done`: every count-th. The first items come again where they do not divide
    evenly, so that all processes do the same number of steps."""
    left = max(len(items) - done, 0)
    padded = [*items[done:], *(items[index % len(items)] for index in range(-left % count))]
    return padded[rank::count]
