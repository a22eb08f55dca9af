"""The processes of a training: one, or several started by `accelerate launch`.

Each process trains on its share of every epoch's batches; gradients are averaged before each optimizer step. accelerate sets up the
process group and picks the device; with one process it is not imported.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from .. import durations
from ..errors import EXIT_USER_ERROR, UserError
from .roll_call import RollCall

T = TypeVar("T")

_GONE = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout", "Connection refused", "Timed out waiting",
)  # fmt: skip
"""In what gloo says of it."""

_KILLED = (
    "is gone: its own output says why; if it does not, it was killed, as systems do when the RAM is full, or its machine or the network is "
    "off"
)


class AnotherIsGone(RuntimeError):
    """Another process ended without a word to this one, or hangs. state: what this one saved then."""

    def __init__(self, text: str, state: Path | None = None) -> None:
        super().__init__(text)
        self.state = state


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
        """Whether `flag` is true in any process. AnotherIsGone when one does not come to say so within `--ddp_timeout`."""
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

    def outlive(self) -> None:
        """As `part`, when another one is gone: if that is the main one, the first that is left does what it does."""
        ...

    def news(self) -> str:
        """After `outlive`: who is gone and why; empty where another process on this machine says it."""
        ...

    def failed_elsewhere(self) -> BaseException:
        """What to raise where another process failed, which all know: with its reason, unless that stands in this machine's output."""
        ...

    def close(self, error: BaseException | None = None) -> None:
        """Leave the group. error: why this process ends."""
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

    def outlive(self) -> None:
        """Nobody to outlive."""

    def news(self) -> str:
        return ""

    def failed_elsewhere(self) -> BaseException:
        return SystemExit(EXIT_USER_ERROR)

    def close(self, error: BaseException | None = None) -> None:
        """No group to leave."""


class ManyProcesses:
    """A group set up by accelerate from the environment that its launcher made."""

    def __init__(self, timeout_minutes: int | None) -> None:
        from accelerate import PartialState

        options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)} if timeout_minutes else {}
        if torch.cuda.is_available() and not torch.distributed.is_nccl_available():
            options["backend"] = "gloo"  # accelerate would ask for NCCL, which PyTorch has not on Windows
        if sys.platform == "win32":
            os.environ.setdefault("USE_LIBUV", "0")  # the store that PyTorch prefers is not in its builds for Windows
        try:
            self._state = PartialState(cpu=not torch.cuda.is_available(), **options)
        except torch.distributed.DistError as error:
            raise UserError(_apart(error)) from error
        # For waiting: the group for gradients gives up after minutes, and the main process may save or sample for longer.
        self._patient = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=durations.WITHIN_GROUP))
        self._limit = timeout_minutes * 60 if timeout_minutes else durations.WITHIN_STEPS
        self._parted = self._waiting = False
        self._main, self._hangs = 0, ""
        self._gone: dict[int, str] = {}
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        self.device = self._state.device
        self._roll = RollCall(self.rank, self.gathered)

    @property
    def is_main(self) -> bool:
        return bool(self.rank == self._main)

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
        work = torch.distributed.all_reduce(result, async_op=True)
        if self.device.type == "cpu":  # NCCL has a limit of its own
            self._await(work)
        else:
            work.wait()
        mean: torch.Tensor = result / self.count
        return mean

    def agreed(self, number: int) -> int:
        shared = torch.tensor(number, dtype=torch.int64)
        self._await(torch.distributed.broadcast(shared, src=0, group=self._patient, async_op=True), patient=True)
        return int(shared.item())

    def any(self, flag: bool) -> bool:
        return self._any(flag)

    def _any(self, flag: bool, *, patient: bool = False) -> bool:
        if self._parted:
            return flag
        flags = torch.tensor(int(flag))
        self._await(torch.distributed.all_reduce(flags, group=self._patient, async_op=True), patient=patient)
        return bool(flags.item())

    def _await(self, work: torch.distributed.Work, *, patient: bool = False) -> None:
        """The end of an exchange. patient: however long the others take, while they give signs of life."""
        since = time.monotonic()
        while True:
            try:
                work.wait(timedelta(seconds=durations.BETWEEN_CALLS))
                return
            except RuntimeError:
                if work.is_completed():
                    raise
            waited = time.monotonic() - since
            if silent := self._roll.silent(durations.SILENCE):
                self._give_up(f"{self._roll.in_words(silent)} gave no sign of life for {durations.SILENCE:.0f} seconds")
            if not patient and waited > self._limit:
                self._give_up(f"another process did not come to the end of its step for {waited:.0f} seconds, see --ddp_timeout")

    def _give_up(self, why: str) -> NoReturn:
        self._waiting, self._hangs = True, why
        raise AnotherIsGone(why)

    def union(self, words: list[str], known: Sequence[str]) -> list[str]:
        flags = torch.tensor([int(word in words) for word in known])
        self._await(torch.distributed.all_reduce(flags, group=self._patient, async_op=True))
        return [word for word, flag in zip(known, flags.tolist(), strict=True) if flag]

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        every = [torch.empty_like(values) for _ in range(self.count)]
        torch.distributed.all_gather(every, values, group=self._patient)  # at the start only, so that none is waited for
        return torch.stack(every)

    def wait(self) -> None:
        self._any(False, patient=True)

    def main_does(self, work: Callable[[], object]) -> None:
        self.wait()
        error: BaseException | None = None
        if self.is_main:
            try:
                work()
            except BaseException as raised:  # the others must know before it continues
                error = raised
        failed = self._any(error is not None, patient=True)
        if error is not None:
            raise error
        if failed:
            raise self.failed_elsewhere()

    def part(self) -> None:
        self._parted = True

    def outlive(self) -> None:
        self._parted = True
        if self.rank == 0:
            return  # it has what to save, and finds out later
        self._find_out()
        left = [rank for rank in range(self.count) if rank not in self._gone]
        self._main = min(left, default=self.rank)

    def _find_out(self) -> None:
        if not self._gone:
            self._gone = self._roll.gone()

    def news(self) -> str:
        self._find_out()
        if not self._roll.speaks(list(self._gone)):
            return ""
        if self._hangs:
            return f"{self._hangs}: it, its machine or the network between them hangs"
        said = [f"{self._roll.in_words([rank])} {f'has ended: {why}' if why else _KILLED}" for rank, why in self._gone.items()]
        return "; ".join(said) or "another process of this training has ended; its output, on its machine, says why"

    def failed_elsewhere(self) -> BaseException:
        said = self._roll.from_elsewhere()
        return UserError(said) if said else SystemExit(EXIT_USER_ERROR)

    def close(self, error: BaseException | None = None) -> None:
        self._roll.leave(str(error) if isinstance(error, Exception) else "")
        if self._waiting:  # an exchange is under way that never ends, and Python waits for it
            atexit.register(os._exit, EXIT_USER_ERROR)
        if not self._parted:  # with partners that are gone it would not end
            self._state.destroy_process_group()


def _apart(error: Exception) -> str:
    """Why the processes did not come together, in the first words of PyTorch, whose rest is a trace."""
    where, reason = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}", str(error).strip().splitlines()[0].rstrip(".")
    return (
        f"the processes of this training did not meet at {where} ({reason}). Is that the address of the main one (--main_process_ip of "
        "accelerate launch), is its port (--main_process_port) free there and open in its firewall, and does each have a rank of its own?"
    )


def start(timeout_minutes: int | None) -> Processes:
    """The process group this process belongs to. timeout_minutes: how long they wait for each other; None is accelerate's own time."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ManyProcesses(timeout_minutes)
    return OneProcess(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def lost_another(error: BaseException) -> bool:
    """Did an exchange fail because another process is gone?"""
    return isinstance(error, AnotherIsGone) or (isinstance(error, RuntimeError) and any(words in str(error) for words in _GONE))


def share(items: Sequence[T], rank: int, count: int, done: int = 0) -> list[T]:
    """This process' part of `items` without the first `done`: every count-th. The first items come again where they do not divide
    evenly, so that all processes do the same number of steps."""
    left = max(len(items) - done, 0)
    padded = [*items[done:], *(items[index % len(items)] for index in range(-left % count))]
    return padded[rank::count]
