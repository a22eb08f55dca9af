"""In which order a GPU may do what it was asked for: vector clocks over streams, events and the host's threads.

What one stream is asked for happens in that order; what two are asked for happens in any order that events do not forbid. An access to
memory is a race when it may happen before the one it needs to come after: a read before the write, a write before reads and writes of what
was there. Memory that is freed belongs to the stream it was allocated on, which may use it for something else at once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

Clock = dict[str, int]
"""How far each stream is known to be, by whoever has the clock."""


def join(clock: Clock, other: Clock) -> None:
    """From now on `clock` knows what `other` knows."""
    for name, time in other.items():
        clock[name] = max(clock.get(name, 0), time)


@dataclass
class Memory:
    """One allocation. wrote: the last write, a stream and its time. read: the last read of each stream since then. home: the stream that
    it belongs to; None for system RAM."""

    name: str
    home: str | None
    wrote: tuple[str, int] | None = None
    read: Clock = field(default_factory=dict)
    used: Clock = field(default_factory=dict)
    kept: bool = False


@dataclass
class Freed:
    """Memory that its stream may use again. used: what other streams were still asked to do with it."""

    name: str
    home: str
    used: Clock


@dataclass
class Order:
    """clocks: of streams, by name. hosts: of threads: what they have waited for. shared: memory that other streams used than its own.
    races: what was found, in words."""

    clocks: dict[str, Clock] = field(default_factory=dict)
    hosts: dict[str, Clock] = field(default_factory=dict)
    memory: dict[Hashable, Memory] = field(default_factory=dict)
    shared: set[Hashable] = field(default_factory=set)
    freed: list[Freed] = field(default_factory=list)
    races: list[str] = field(default_factory=list)

    def clock(self, stream: str) -> Clock:
        return self.clocks.setdefault(stream, {})

    def host(self, thread: str) -> Clock:
        return self.hosts.setdefault(thread, {})

    def allocate(self, key: Hashable, name: str, stream: str | None, thread: str = "main") -> None:
        """New memory of a stream; system RAM without one. It may be any that was freed there."""
        self.memory[key] = Memory(name, stream)
        if stream is None:
            return
        known = {**self.clock(stream)}
        join(known, self.host(thread))
        for old in [old for old in self.freed if old.home == stream]:
            late = [other for other, time in old.used.items() if known.get(other, 0) < time]
            if late:
                self.races.append(f"{old.name} was freed and its memory is used again by {stream} while {', '.join(late)} may still use it")
            self.freed.remove(old)

    def free(self, key: Hashable) -> None:
        """Nothing refers to it any more."""
        memory = self.memory.pop(key)
        self.shared.discard(key)
        if memory.home is None or memory.kept:
            return  # PyTorch keeps pinned memory, and what `record_stream` told it of, until copies from it are done
        others = {stream: time for stream, time in memory.used.items() if stream != memory.home}
        if others:
            self.freed.append(Freed(memory.name, memory.home, others))

    def keep(self, key: Hashable) -> None:
        """`Tensor.record_stream`: what is freed is used again only when the streams that used it are done."""
        self.memory[key].kept = True

    def launch(self, stream: str, reads: list[Hashable], writes: list[Hashable], what: str, thread: str = "main") -> None:
        """A stream is asked for something that reads and writes memory."""
        clock = self.clock(stream)
        join(clock, self.host(thread))
        clock[stream] = clock.get(stream, 0) + 1
        for key in reads:
            self._read(self.memory[key], stream, clock, what)
        for key in writes:
            self._write(self.memory[key], stream, clock, what)
        self.shared.update(key for key in (*reads, *writes) if self.memory[key].home not in (None, stream))

    def touch(self, thread: str, key: Hashable, writing: bool, what: str) -> None:
        """A thread of the host reads or writes system RAM, at once."""
        memory, known = self.memory[key], self.host(thread)
        if memory.wrote is not None and known.get(memory.wrote[0], 0) < memory.wrote[1]:
            self.races.append(f"{what} uses {memory.name}, which {memory.wrote[0]} may still write")
        if writing:
            self._after_reads(memory, known, what)
            memory.wrote, memory.read = None, {}

    def record(self, stream: str) -> Clock:
        """An event: how far the stream is by what it was asked for."""
        return {**self.clock(stream)}

    def wait(self, stream: str, event: Clock) -> None:
        """What the stream is asked for from now on comes after the event."""
        join(self.clock(stream), event)

    def synchronize(self, thread: str, event: Clock) -> None:
        """A thread waits for an event; what it asks for from now on comes after that."""
        join(self.host(thread), event)

    def _read(self, memory: Memory, stream: str, clock: Clock, what: str) -> None:
        if memory.wrote is not None and clock.get(memory.wrote[0], 0) < memory.wrote[1]:
            self.races.append(f"{what} on {stream} reads {memory.name}, which {memory.wrote[0]} may not have written yet")
        memory.read[stream] = memory.used[stream] = clock[stream]

    def _write(self, memory: Memory, stream: str, clock: Clock, what: str) -> None:
        if memory.wrote is not None and clock.get(memory.wrote[0], 0) < memory.wrote[1]:
            self.races.append(f"{what} on {stream} overwrites {memory.name}, which {memory.wrote[0]} may still write")
        self._after_reads(memory, {**clock, stream: clock[stream]}, what)
        memory.wrote, memory.read = (stream, clock[stream]), {}
        memory.used[stream] = clock[stream]

    def _after_reads(self, memory: Memory, known: Clock, what: str) -> None:
        late = [other for other, time in memory.read.items() if known.get(other, 0) < time]
        if late:
            self.races.append(f"{what} overwrites {memory.name}, which {', '.join(late)} may still read")
