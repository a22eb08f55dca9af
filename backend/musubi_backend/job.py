"""The job this process runs for, when our runner started it: its folder, its stop request, its events.

The runner sets `MUSUBITUNER_JOB_DIR` and keeps our stdin open: the line "stop" asks for a graceful end, end of file means
that the runner died. Started by hand (no such variable), nothing here reads stdin or writes files.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

JOB_DIR_VARIABLE = "MUSUBITUNER_JOB_DIR"

_stop = threading.Event()


def folder() -> Path | None:
    """The job folder given by the runner, or None."""
    value = os.environ.get(JOB_DIR_VARIABLE)
    return Path(value) if value else None


def watch_for_stop() -> None:
    """Start listening on stdin for the stop request. Called once by `__main__`."""
    if folder() is not None:
        threading.Thread(target=_listen, name="stop-listener", daemon=True).start()


def stop_requested() -> bool:
    """True once a graceful stop was asked for. Loops check it where their work is in a state worth keeping."""
    return _stop.is_set()


def request_stop() -> None:
    """Ask this process to stop gracefully (also used by the SIGINT and SIGTERM handlers of long verbs)."""
    _stop.set()


def event(kind: str, **values: Any) -> None:
    """Append one JSON line to `metrics.jsonl`; non-finite floats become null."""
    job = folder()
    if job is None:
        return
    record = {"event": kind, "time": round(time.time(), 3), **{k: _finite(v) for k, v in values.items()}}
    with (job / "metrics.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:  # a lone surrogate as JSON has it
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listen() -> None:
    """Wait for "stop" or end of file on stdin; if the work does not end by itself after end of file, it still may save."""
    for line in sys.stdin:
        if line.strip() == "stop":
            break
    _stop.set()
