"""The job this process runs for, when our runner started it: its folder, its stop request, its events.

The runner sets `MUSUBITUNER_JOB_DIR` and keeps our stdin open: the line "stop" asks for a graceful end, end of file means
that the runner died. Started by hand (no such variable), nothing here reads stdin or writes files.

A request is answered at once, by a thread, with "stopping" events that continue until the end: what is being written, and how much of it.
Before, "keep" events say what an end by force would lose; the runner waits as long as there is something.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import StopRequested

logger = logging.getLogger(__name__)

JOB_DIR_VARIABLE = "MUSUBITUNER_JOB_DIR"
BEAT_SECONDS = 1.0

_stop = threading.Event()
_answering = threading.Lock()
_writing: list[tuple[str, Path]] = []  # names of what is being written, and where; what began last at the end
_held: list[None] = []  # one for every block that must not be left
_lost: list[None] = []  # one once it was said that events are lost
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
def writing(name: str, path: Path) -> Iterator[None]:
    """While what people know as `name` is written to the file or folder `path`: `interrupt` waits, and so does the runner."""
    entry = (name, path)
    _writing.append(entry)
    try:
        yield
    finally:
        _writing.remove(entry)
    if _ending and not _writing:
        _ending.clear()
        raise KeyboardInterrupt


def keep(what: str) -> None:
    """Say what an end by force would lose from now on, e.g. "the steps since the last state"; "" for nothing."""
    event("keep", what=what)


def event(kind: str, **values: Any) -> None:
    """Append one JSON line to `metrics.jsonl`; non-finite floats become null. Events inform: a full disk, or a job folder that was deleted,
    ends no work because of them, and is said once."""
    job = folder()
    if job is None:
        return
    record = {"event": kind, "time": round(time.time(), 3), **{k: _finite(v) for k, v in values.items()}}
    line = json.dumps(record, ensure_ascii=False) + "\n"
    try:
        with (job / "metrics.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:  # a lone surrogate as JSON has it
            file.write(line)
    except OSError as error:
        if not _lost:
            _lost.append(None)
            logger.warning("progress cannot be written to %s: %s; the work continues", job, error.strerror or error)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listen() -> None:
    """Wait for "stop" or end of file on stdin; if the work does not end by itself after end of file, it still may save."""
    for line in sys.stdin:
        if line.strip() == "stop":
            break
    request_stop()


def _answer() -> None:
    """Tell the runner that it was heard, and what is going on, until the process ends."""
    while True:
        files = list(_writing)
        event("stopping", file=files[0][0] if files else "", bytes=_bytes(files[-1][1]) if files else 0)
        time.sleep(BEAT_SECONDS)


def _bytes(path: Path) -> int:
    """How much of a file or folder is there already."""
    with contextlib.suppress(OSError):
        return sum(part.stat().st_size for part in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0
