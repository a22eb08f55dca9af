"""Decoding ahead of the encoder in background threads, bounded in memory."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from .clips import share_processors
from .decoding import DecodedEntry, decode_foreseen, held_bytes, parts_of
from .items import MediaItem
from .probe import foresee
from .problems import Note, Problem, gathered

if TYPE_CHECKING:
    from ..architectures.card import Card

    Result: TypeAlias = "list[DecodedEntry] | Problem"
    Pending: TypeAlias = "deque[tuple[int, MediaItem, SimpleQueue[Result | None], Future[None]]]"

logger = logging.getLogger(__name__)

IN_FLIGHT = 2**30
"""Bytes of pixels that may be in the making or waiting at a time; a single window may need more."""


class _Stopped(Exception):
    """Nobody waits for the pixels any more."""


def decoded(items: Iterable[MediaItem], card: Card, workers: int = 1, in_flight: int = IN_FLIGHT) -> Iterator[tuple[MediaItem, Result]]:
    """Every item with its entries or the reason why there are none, in the order of `items`. A clip of many windows comes several times,
    with a part of its entries each, until the one that `is_last`, or a Problem.

    At most `workers` + 1 items and about `in_flight` bytes are decoded or waiting at a time, so memory stays bounded however long the
    data set and its clips are.
    """
    pending: Pending = deque()
    gate, notes = _Gate(in_flight), list[Note]()

    def work(number: int, item: MediaItem, results: SimpleQueue[Result | None]) -> None:
        try:
            for result in parts(number, item):
                results.put(result)
        except _Stopped:
            logger.debug("%s: not decoded", item.path)
        finally:
            gate.skip(number)
            results.put(None)

    def parts(number: int, item: MediaItem) -> Iterator[Result]:
        foreseen = foresee(item, card)
        found = foreseen if isinstance(foreseen, Problem) else parts_of(foreseen, card, in_flight // 2)
        if isinstance(found, Problem):
            yield found
            return
        notes.extend(Note(item.path, text) for text in found[0].facts.notes)
        for part in found:
            gate.enter(number, held_bytes(part), part.is_last)
            result = decode_foreseen(part, card)
            yield result
            if isinstance(result, Problem):
                return

    with ThreadPoolExecutor(max(1, workers), "decode", share_processors, (workers,)) as pool:
        try:
            for number, item in enumerate(items):
                results: SimpleQueue[Result | None] = SimpleQueue()
                pending.append((number, item, results, pool.submit(work, number, item, results)))
                if len(pending) > max(1, workers):
                    yield from _first(pending, gate)
            while pending:
                yield from _first(pending, gate)
            for line in gathered(notes):
                logger.warning(line)
        finally:
            gate.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _first(pending: Pending, gate: _Gate) -> Iterator[tuple[MediaItem, Result]]:
    number, item, results, future = pending.popleft()
    while (result := results.get()) is not None:
        yield item, result
        del result  # its bytes leave
        gate.leave(number)
    future.result()


class _Gate:
    """Lets items in one after the other, in the order of their numbers and each with all its parts, while there is room: so what is waited
    for always gets in before what comes behind it."""

    def __init__(self, room: int) -> None:
        self._room, self._turn, self._open = room, 0, True
        self._inside: defaultdict[int, deque[int]] = defaultdict(deque)
        self._passed: set[int] = set()
        self._changed = threading.Condition()

    def enter(self, number: int, size: int, is_last: bool) -> None:
        """Wait for this item's turn and for room of `size` bytes. is_last: no part of it follows. _Stopped when the gate was closed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or (self._turn == number and self._has_room(size)))
            if not self._open:
                raise _Stopped
            self._inside[number].append(size)
            if is_last:
                self._pass(number)

    def skip(self, number: int) -> None:
        """The item does not want in, or has been in."""
        with self._changed:
            if number >= self._turn:
                self._pass(number)

    def leave(self, number: int) -> None:
        """The first part of this item that is inside has been used."""
        with self._changed:
            sizes = self._inside[number]
            if sizes:
                sizes.popleft()
            if not sizes:
                del self._inside[number]
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._inside or sum(map(sum, self._inside.values())) + size <= self._room

    def _pass(self, number: int) -> None:
        self._passed.add(number)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()
