"""Which processes of a training are there: each notes every second that it is, and why when it leaves, in the store where they met.

An exchange that fails says that some process is gone, not which; one that hangs says nothing at all. Here the others find out.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch

from .. import durations

_NAME = 100  # bytes of a machine's name


class RollCall:
    """Of one process. names: of the machines of all, by rank."""

    def __init__(self, rank: int, gathered: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._rank = rank
        name = socket.gethostname().encode("utf-8", errors="replace")[:_NAME].ljust(_NAME)
        every = gathered(torch.frombuffer(bytearray(name), dtype=torch.uint8))
        self.names = [bytes(row.tolist()).decode("utf-8", errors="replace").rstrip() for row in every]
        self._left = threading.Event()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._store = _store()
        threading.Thread(target=self._beat, name="roll-call", daemon=True).start()

    def leave(self, why: str) -> None:
        """This process ends. why: its own error; empty where it only follows another one."""
        self._left.set()
        with contextlib.suppress(RuntimeError):  # the store went with its process
            self._store.set(_left(self._rank), why)

    def silent(self, seconds: float) -> list[int]:
        """Who gave no sign for so long, of what this process looked at; the main one, where the store is gone."""
        try:
            now = time.monotonic()
            for rank in self._others():
                beat = self._read(_beat(rank))
                if rank not in self._heard or self._heard[rank][0] != beat:
                    self._heard[rank] = (beat, now)
            return [rank for rank, (_, since) in self._heard.items() if now - since >= seconds]
        except RuntimeError:
            return [0]

    def gone(self) -> dict[int, str]:
        """After an exchange failed: who ended or gives no sign, and its last words. Takes seconds."""
        found: dict[int, str] = {}
        try:
            before = {rank: self._read(_beat(rank)) for rank in self._others()}
            time.sleep(durations.SIGNS * durations.BEAT)
            for rank, beat in before.items():
                if self._store.check([_left(rank)]):
                    if said := self._read(_left(rank)).decode("utf-8", errors="replace"):
                        found[rank] = said
                elif self._read(_beat(rank)) == beat:
                    found[rank] = ""
        except RuntimeError:
            return {**found, 0: ""}
        return found

    def in_words(self, ranks: Sequence[int]) -> str:
        """As "process 1 of 2 (on NAME)"."""
        return " and ".join(f"process {rank} of {len(self.names)} (on {self.names[rank]})" for rank in ranks)

    def speaks(self, gone: Sequence[int]) -> bool:
        """Is this process the first on its machine of those that are left? One tells it, not all."""
        here = [rank for rank, name in enumerate(self.names) if name == self.names[self._rank] and rank not in gone]
        return self._rank == min(here)

    def from_elsewhere(self) -> str:
        """Last words of processes on other machines; empty where all are on this one, whose output has them. Takes seconds."""
        own = self.names[self._rank]
        if set(self.names) == {own}:
            return ""
        return "; ".join(
            f"{self.in_words([rank])} has ended: {why}" for rank, why in self.gone().items() if why and self.names[rank] != own
        )

    def _others(self) -> list[int]:
        return [rank for rank in range(len(self.names)) if rank != self._rank]

    def _read(self, key: str) -> bytes:
        return bytes(self._store.get(key)) if self._store.check([key]) else b""

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store went with its process: others notice that themselves
            store = _store()
            for number in itertools.count():
                store.set(_beat(self._rank), str(number))
                if self._left.wait(durations.BEAT):
                    return


def _store() -> Any:
    """A connection of its own to where the group met: the group may be waiting on its."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=durations.STORE)
    group: Any = torch.distributed  # which does not say that it exports them
    return group.PrefixStore("roll call", group.TCPStore(host, port, wait_for_workers=False, timeout=wait))


def _beat(rank: int) -> str:
    return f"beat {rank}"


def _left(rank: int) -> str:
    return f"left {rank}"
