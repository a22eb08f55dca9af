"""The measurements' own process, and what watches it: a process that hangs, crashes or is killed costs the row it was at.

After an error such as an illegal memory access a process can use its GPU no more, a kernel that hangs ends never, and the system ends a
process for which it has no RAM. So one process measures and tells each row as it comes, another one writes them, ends the first when
a row takes too long, and starts it again behind that row.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from .gpu_results import Clock, Results, Row, Table

_AFTER = 15.0
"""Seconds by which a part may overrun: a row that is nearly done."""
_WORTH = 5.0
"""Seconds that have to be left to start the process again."""
_STARTING = 120.0
"""Seconds within which a process has to tell something first: it imports PyTorch and starts the driver."""


class Told(Results):
    """In the process that measures: tells the other one."""

    def __init__(self, to: Connection, found: Results) -> None:
        super().__init__(found.folder, dict(found.facts), list(found.checks), list(found.steps), list(found.left_out), set(found.begun))
        self.to = to

    def begin(self, table: Table, row: Row, seconds: float) -> bool:
        new = super().begin(table, row, seconds)
        if new:
            self.to.send(("begin", table, row, seconds))
        return new

    def further(self, table: Table, row: Row, seconds: float) -> None:
        self.to.send(("further", table, row, seconds))

    def add(self, table: Table, row: Row) -> None:
        rows: list[Row] = getattr(self, table)
        rows.append(row)
        self.to.send(("add", table, row))

    def leave_out(self, what: str) -> None:
        self.to.send(("leave_out", what))

    def fact(self, name: str, value: object) -> None:
        self.facts[name] = value
        self.to.send(("fact", name, value))

    def write(self) -> None:
        """The other process does."""


@dataclass(frozen=True)
class Part:
    """share: of the time that is left when it begins."""

    name: str
    share: float


Prepare = Callable[[Results, Any], Mapping[str, Callable[[Clock], object]]]
"""(results, what else it is given) -> the parts by name, each for the time of a clock. In the process that measures."""


@dataclass
class Watched:
    """Runs parts, each within its time, in a process that may die. prepare: a function of a module, which the other process imports.

    ends: of parts that have begun, when their time is up. under_way: a row, as far as it is known, and its end. at: the part.
    """

    results: Results
    clock: Clock
    prepare: Prepare
    given: Any
    after: float = _AFTER
    worth: float = _WORTH
    ends: dict[str, float] = field(default_factory=dict)
    under_way: tuple[Table, Row, float] | None = None
    at: str = ""
    done: bool = False

    def run(self, parts: list[Part]) -> None:
        """All of them. What is found is written as it comes; an exception here, as of a signal, ends the other process too."""
        while parts and self.clock.left >= self.worth:
            parts = self._once(parts)
        for part in parts:
            self.results.leave_out(f"{part.name}: no time")

    def _once(self, parts: list[Part]) -> list[Part]:
        """The parts that are still to be done, once the process has ended."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        told = Told(theirs, self.results)
        process = context.Process(target=_work, args=(told, parts, dict(self.ends), self.clock, self.prepare, self.given), daemon=True)
        self.at, self.done = parts[0].name, False
        why, on = "was stopped", False
        try:
            with _in_one_piece():
                process.start()
                theirs.close()  # so that its end is seen
            why = self._listen(ours) or self._ended(process)
        finally:
            with _in_one_piece():
                process.kill()
                process.join()
                on = self._last_words(ours, why)
        return [] if self.done else self._left(parts, why, on)

    def _last_words(self, ours: Connection, why: str) -> bool:
        """What it said before it ended. True where it had come to another row, which gets `why`."""
        before = len(self.results.checks) + len(self.results.steps)
        with contextlib.suppress(EOFError):
            while ours.poll():
                self._heard(*ours.recv())
        ours.close()
        on = len(self.results.checks) + len(self.results.steps) > before
        if self.under_way is not None:
            table, row, _ = self.under_way
            self.under_way, on = None, True
            self.results.add(table, {**row, **({"right": "NO"} if table == "checks" else {}), "error": why})
        return on

    def _listen(self, ours: Connection) -> str:
        """Until it is done (""), its end ("") or it takes too long."""
        until = time.monotonic() + _STARTING
        while not self.done:
            until = min(until, self.clock.end + self.after)
            if self.at in self.ends:
                until = min(until, self.ends[self.at] + self.after)
            if self.under_way is not None:
                until = min(until, self.under_way[2])
            if not ours.poll(max(0.0, until - time.monotonic())):
                return "took too long" if self.clock.left > 0 else "the time was up"
            try:
                with _in_one_piece():  # what is heard is written, too
                    self._heard(*ours.recv())
            except EOFError:
                return ""
            until = float("inf")
        return ""

    @staticmethod
    def _ended(process: Any) -> str:
        process.join(10)
        return f"its process ended with {process.exitcode}"

    def _heard(self, what: str, *told: Any) -> None:
        if what in ("begin", "further"):
            table, row, seconds = told
            if what == "begin":
                self.results.begin(table, row, seconds)
            self.under_way = table, row, time.monotonic() + seconds
        elif what == "add":
            self.under_way = None
            self.results.add(*told)
        elif what == "leave_out":
            self.results.leave_out(*told)
        elif what == "fact":
            self.results.fact(*told)
        elif what == "part":
            self.at, self.ends[told[0]] = told
        else:
            self.done = True

    def _left(self, parts: list[Part], why: str, on: bool) -> list[Part]:
        """What is to be done when the process ended before its time. on: has it come to another row?"""
        rest = parts[[part.name for part in parts].index(self.at) :]
        over = self.at in self.ends and self.ends[self.at] - time.monotonic() < self.worth
        if not on:  # it would end there again
            self.results.leave_out(f"{self.at}: {why}")
        return rest[1:] if over or not on else rest


def _work(told: Told, parts: list[Part], ends: dict[str, float], clock: Clock, prepare: Prepare, given: Any) -> None:
    """In the process that measures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which sends it to both; the other one ends us
    known = prepare(told, given)
    for part in parts:
        own = Clock(0)
        own.end = ends.get(part.name, time.monotonic() + part.share * clock.left)
        told.to.send(("part", part.name, own.end))
        known[part.name](own)
    told.to.send(("done",))


class Stopped(SystemExit):
    """By a signal."""


class _Signals:
    """held: a signal waits until what is done now is whole. waiting: its number."""

    held = False
    waiting: int | None = None


@contextlib.contextmanager
def _in_one_piece() -> Iterator[None]:
    """A signal to stop raises `Stopped` behind this."""
    _Signals.held = True
    try:
        yield
    finally:
        _Signals.held = False
        if (number := _Signals.waiting) is not None:
            _Signals.waiting = None
            raise Stopped(128 + number)


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise `Stopped`, so that everything ends in order."""

    def stop(number: int, _: FrameType | None) -> None:
        if not _Signals.held:
            raise Stopped(128 + number)
        _Signals.waiting = number

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
