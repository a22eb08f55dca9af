"""Tells open pages what changes: one thread, at most two messages a second, and none while nothing does or nobody looks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..jobs import durations
from ..jobs.index import Index

logger = logging.getLogger(__name__)

EVENT = "musubi_tuner.jobs"


class Messages:
    """Looks at the index and sends what is new since the last look."""

    def __init__(self, index: Index, queue: Callable[[], dict[str, Any]], send: Callable[[str, dict[str, Any]], object]) -> None:
        self._index, self._queue, self._send = index, queue, send
        self._seen: dict[str, int] | None = None
        self._queue_seen: dict[str, Any] = {}

    def look(self) -> None:
        """Send what changed; at the first look nothing did, as a page asks for the list itself."""
        jobs, queue = {job["id"]: job for job in self._index.jobs()}, self._queue()
        before, self._seen = self._seen, {name: job["version"] for name, job in jobs.items()}
        queue_before, self._queue_seen = self._queue_seen, queue
        if before is None:
            return
        changed = [job for name, job in jobs.items() if before.get(name) != job["version"]]
        removed = sorted(before.keys() - jobs.keys())
        if changed or removed or queue != queue_before:
            self._send(EVENT, {"jobs": changed, "removed": removed, "queue": queue})

    def start(self, somebody_looks: Callable[[], bool], *, always: Callable[[], object] = lambda: None) -> None:
        """Look from a thread of its own until the program ends. always: done every few seconds, also when nobody looks."""
        threading.Thread(target=self._run, args=(somebody_looks, always), name="musubituner-messages", daemon=True).start()

    def _run(self, somebody_looks: Callable[[], bool], always: Callable[[], object]) -> None:
        pause, round_ = threading.Event(), 0
        while not pause.wait(durations.MESSAGE):
            try:
                if round_ % durations.MESSAGES_PER_ROUND == 0:
                    always()
                if somebody_looks():
                    self.look()
                else:
                    self._seen = None
            except Exception:  # whatever a disk does, the next look is another one
                logger.exception("the list of trainings could not be brought up to date")
                pause.wait(durations.AFTER_A_PROBLEM)
            round_ += 1
