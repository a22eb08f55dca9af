"""Decoding ahead of the encoder in background threads, bounded in memory."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from .clips import share_processors
from .decoding import DecodedEntry, decode_foreseen, held_bytes
from .items import MediaItem
from .probe import foresee
from .problems import Note, Problem, gathered

if TYPE_CHECKING:
    from ..architectures.card import Card

    Result: TypeAlias = "list[DecodedEntry] | Problem"

logger = logging.getLogger(__name__)

IN_FLIGHT = 2**30
"""Bytes of pixels that may be in the making or waiting at a time; a single item may need more."""


class _Stopped(Exception):
    """Nobody waits for the pixels any more."""


def decoded(items: Iterable[MediaItem], card: Card, workers: int = 1, in_flight: int = IN_FLIGHT) -> Iterator[tuple[MediaItem, Result]]:
    """Every item with its entries or the reason why there are none, in the order of `items`.

    At most `workers` + 1 items and about `in_flight` bytes are decoded or waiting at a time, so memory stays bounded however long the
    data set and its clips are.
    """
    pending: deque[tuple[int, MediaItem, Future[Result]]] = deque()
    gate, notes = _Gate(in_flight), list[Note]()

    def work(number: int, item: MediaItem) -> Result:
        try:
            foreseen = foresee(item, card)
            if isinstance(foreseen, Problem):
                return foreseen
            notes.extend(Note(item.path, text) for text in foreseen.facts.notes)
            gate.enter(number, held_bytes(foreseen))
            return decode_foreseen(foreseen, card)
        except _Stopped:
            return Problem(item.path, "not decoded")
        finally:
            gate.skip(number)

    with ThreadPoolExecutor(max(1, workers), "decode", share_processors, (workers,)) as pool:
        try:
            for number, item in enumerate(items):
                pending.append((number, item, pool.submit(work, number, item)))
                if len(pending) > max(1, workers):
                    yield from _first(pending, gate)
            while pending:
                yield from _first(pending, gate)
            for line in gathered(notes):
                logger.warning(line)
        finally:
            gate.close()
            pool.shutdown(wait=False, cancel_futures=True)


def _first(pending: deque[tuple[int, MediaItem, Future[Result]]], gate: _Gate) -> Iterator[tuple[MediaItem, Result]]:
    number, item, future = pending.popleft()
    yield item, future.result()
    gate.leave(number)


class _Gate:
    """Lets items in one after the other, in the order of their numbers, while there is room: so the item that is waited for always
    gets in before those behind it."""

    def __init__(self, room: int) -> None:
        self._room, self._inside, self._turn, self._open = room, dict[int, int](), 0, True
        self._passed: set[int] = set()
        self._changed = threading.Condition()

    def enter(self, number: int, size: int) -> None:
        """Wait for this item's turn and for room of `size` bytes. _Stopped when the gate was closed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or (self._turn == number and self._has_room(size)))
            if not self._open:
                raise _Stopped
            self._inside[number] = size
            self._pass(number)

    def skip(self, number: int) -> None:
        """The item does not want in, or has been in."""
        with self._changed:
            if number >= self._turn:
                self._pass(number)

    def leave(self, number: int) -> None:
        with self._changed:
            self._inside.pop(number, None)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._inside or sum(self._inside.values()) + size <= self._room

    def _pass(self, number: int) -> None:
        self._passed.add(number)
        while self._turn in self._passed:
            self._passed.remove(self._turn)
            self._turn += 1
        self._changed.notify_all()
