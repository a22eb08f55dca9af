"""The job this process runs for, when our runner started it: its folder, what is asked of it, what it tells.

The runner sets `MUSUBITUNER_JOB_DIR` and keeps our stdin open: the line "stop" asks for a graceful end, end of file means
that the runner died, other lines are requests to a training (`events.REQUESTS`). Started by hand (no such variable), nothing here reads
stdin or writes files.

A stop is answered at once, by a thread, with "stopping" events that continue until the end: what is being written, and how much of it.
Before, "keep" events say what an end by force would lose; the runner waits as long as there is something.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from . import durations, events
from .errors import StopRequested

logger = logging.getLogger(__name__)

JOB_DIR_VARIABLE = "MUSUBITUNER_JOB_DIR"


class _Writing(NamedTuple):
    name: str
    path: Path | None
    content: str
    total: int


_stop = threading.Event()
_answering = threading.Lock()
_requests: deque[str] = deque()  # known ones that nobody has taken yet
_writing: list[_Writing] = []  # what is being written; what began last at the end
_held: list[None] = []  # one for every block that must not be left
_phase = ""  # what is being done
_unsaid: list[None] = []  # one for every block whose phases are not told
_lost = threading.Event()  # it was said that events are lost
_ending: list[None] = []  # a second Ctrl-C that came while a file was written


def folder() -> Path | None:
    """The job folder given by the runner, or None."""
    value = os.environ.get(JOB_DIR_VARIABLE)
    return Path(value) if value else None


def watch_for_stop() -> None:
    """Start listening on stdin for the stop request. Called once by `__main__`."""
    if folder() is not None:
        threading.Thread(target=_listen, name="stop-listener", daemon=True).start()


def stop_requested() -> bool:
    """True once a graceful stop was asked for."""
    return _stop.is_set()


def leave_if_asked(message: str = "stopped") -> None:
    """Raise StopRequested once a stop was asked for. Called between the pieces of long work (blocks of a transformer, layers of a VAE,
    tensors of a file); does nothing inside `held`."""
    if stop_requested() and not _held:
        raise StopRequested(message)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """For the block, `leave_if_asked` lets work continue: other processes wait for its end."""
    _held.append(None)
    try:
        yield
    finally:
        _held.pop()


def request_stop() -> None:
    """Ask this process to stop gracefully: what the listener, the signal handlers of long verbs and other processes of the group do."""
    _stop.set()
    if folder() is not None and _answering.acquire(blocking=False):
        threading.Thread(target=_answer, name="stop-answer", daemon=True).start()


def interrupt() -> None:
    """End now, by KeyboardInterrupt; while a file is being written, as soon as it is whole."""
    if _writing:
        _ending.append(None)
    else:
        raise KeyboardInterrupt


@contextlib.contextmanager
def writing(name: str, path: Path | None, content: str = "", total: int = 0) -> Iterator[None]:
    """While what people know as `name` is written to the file or folder `path`: `interrupt` waits, and so does the runner. path: None where
    blocks in this one say it; content: what it is, "the state"; total: bytes that it will have, 0 if unknown."""
    entry = _Writing(name, path, content, total)
    _writing.append(entry)
    try:
        yield
    finally:
        _writing.remove(entry)
    if _ending and not _writing:
        _ending.clear()
        raise KeyboardInterrupt


@contextlib.contextmanager
def saving(path: Path, content: str, total: int) -> Iterator[None]:
    """As `writing`, for what is reported as an event too; who knows more of it says `events.Saved` at its end."""
    emit(events.Saving(str(path), content, total))
    with writing(path.name, None, content, total):
        yield


def keep(what: str) -> None:
    """Say what an end by force would lose from now on, e.g. "the steps since the last state"; "" for nothing."""
    emit(events.Keep(what))


def phase(text: str) -> None:
    """Say what is done from now on, e.g. "loading the VAE"."""
    global _phase
    if not _unsaid:
        _phase = text
        emit(events.Phase(text))


def phase_is_at(place: str) -> None:
    """Say how far what is done has come, e.g. "3.4 of 11.4 GB"."""
    if not _unsaid:
        emit(events.Phase(f"{_phase}: {place}" if _phase else place))


@contextlib.contextmanager
def phases_unsaid() -> Iterator[None]:
    """For the block, phases are not told: a plan goes through what loading does, and loads nothing."""
    _unsaid.append(None)
    try:
        yield
    finally:
        _unsaid.pop()


def take_requests(of: Collection[str] = events.REQUESTS) -> list[str]:
    """What of these was asked for since the last call, in that order. Who takes a request answers it."""
    taken = [name for name in list(_requests) if name in of]
    for name in taken:
        _requests.remove(name)
    return taken


def answer(name: str, answer: str, step: int = 0, text: str = "") -> None:
    """Say what became of a request."""
    emit(events.Request(name, answer, step, text))


def ended(outcome: str, text: str = "") -> None:
    """The last words of this process. Requests that nobody took are answered."""
    for name in take_requests():
        answer(name, events.IGNORED, text="it came too late, or this tool does nothing of the kind")
    emit(events.Ended(outcome, text))


def emit(event: events.Event) -> None:
    """Append an event to the log of the job. Events inform: a full disk, or a job folder that was deleted, ends no work because of them,
    and is said once."""
    job = folder()
    if job is None:
        return
    line = events.line_of(event, time=time.time(), clock=time.monotonic(), rank=_rank())
    try:
        with (job / events.FILE_NAME).open("a", encoding="utf-8", errors="backslashreplace") as file:  # a lone surrogate as JSON has it
            file.write(line)
    except OSError as error:
        if not _lost.is_set():
            _lost.set()
            logger.warning("progress cannot be written to %s: %s; the work continues", job, error.strerror or error)


def _rank() -> int:
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def _listen() -> None:
    """Take requests from stdin until "stop" or end of file; if the work does not end by itself after end of file, it still may save."""
    for line in sys.stdin:
        word = line.strip()
        if word == events.STOP:
            break
        _hear(word)
    request_stop()


def _hear(word: str) -> None:
    if word in events.REQUESTS:
        _requests.append(word)
        answer(word, events.HEARD)
    elif word:
        answer(word[:80], events.IGNORED, text=f"unknown; known are {', '.join(events.REQUESTS)}")


def _answer() -> None:
    """Tell the runner that it was heard, and what is going on, until the process ends."""
    while True:
        parts = list(_writing)
        emit(
            events.Stopping(
                file=parts[0].name if parts else "",
                content=parts[0].content if parts else "",
                bytes=max((_bytes(part.path) for part in parts if part.path is not None), default=0),
                total=parts[0].total if parts else 0,
            )
        )
        time.sleep(durations.BEAT)


def _bytes(path: Path) -> int:
    """How much of a file or folder is there already."""
    with contextlib.suppress(OSError):
        return sum(part.stat().st_size for part in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0
