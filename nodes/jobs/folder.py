"""The job folder: `<home>/jobs/<time>-<tool>-<id>/` with command.json, log.txt, metrics.jsonl and status.json."""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import events, process_names
from ...backend.musubi_backend.atomic import patiently, write_text
from ...backend.musubi_backend.documents import json_text, read_json
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import reason
from . import durations, notes

logger = logging.getLogger(__name__)

QUEUED, STARTING, RUNNING, SAVING, SAMPLING = "queued", "starting", "running", "saving", "sampling"
STOPPING, ENDED = "stopping", "ended"
"""The life of a job. QUEUED is for the background only; SAVING and SAMPLING come and go; STOPPING goes over into ENDED alone."""
LOST, REMOVED = "lost", "removed"
"""How a job ended that nobody saw end, as its runner was gone, and one that was taken out of the queue. The other outcomes are
`events.FINISHED`, STOPPED and FAILED."""
JOBS, RUNS = "jobs", "runs"
_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9_]{1,60}-[0-9a-f]{6}")
_REQUESTS = "requests.txt"


def is_id(text: str) -> bool:
    """Whether a job's folder may be called so."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class JobFolder:
    path: Path
    _unwritten: set[str] = field(default_factory=set, compare=False)  # names of which it was said

    @classmethod
    def create(cls, home: Path, tool: str) -> JobFolder:
        """Make a fresh folder for one run of `tool`. UserError where that cannot be."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^a-z0-9_]', '_', tool.lower())[:60]}-{secrets.token_hex(3)}"
        path = home / JOBS / name
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"the job's folder {path} cannot be made: {reason(error)}") from error
        return cls(path)

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def id(self) -> str:
        return self.path.name

    def ask(self, request: str) -> None:
        """Leave a request for whoever runs the job, which looks for it several times a second. OSError where that cannot be written."""
        with (self.path / _REQUESTS).open("a", encoding="utf-8") as file:
            file.write(f"{request}\n")

    def asked(self, position: int) -> tuple[list[str], int]:
        """The requests that were left behind a place in the file, and the place behind them."""
        try:
            with (self.path / _REQUESTS).open("rb") as file:
                file.seek(position)
                lines, end, _ = file.read(4096).rpartition(b"\n")
        except OSError:  # nobody has asked for anything
            return [], position
        return lines.decode("utf-8", "replace").split("\n") if end else [], position + len(lines) + len(end)

    def tell(self, event: events.Event) -> None:
        """Add to what the job has said: what others found out about it later. OSError where that cannot be written."""
        line = events.line_of(event, time=time.time(), clock=time.monotonic(), rank=0)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line)

    def rotate_log(self, most: int, kept: int) -> bool:
        """Once the log has more than `most` bytes, its last `kept` ones become `log.old.txt` and it begins anew, as the job appends to it.
        True when that was done; never on Windows, where a job continues at its old place."""
        if os.name == "nt" or self.log.stat().st_size <= most:
            return False
        with self.log.open("rb+") as log:
            log.seek(-kept, os.SEEK_END)
            (self.path / "log.old.txt").write_bytes(log.read(kept))
            log.truncate(0)
        return True

    @property
    def metrics(self) -> Path:
        return self.path / events.FILE_NAME

    def write_command(self, **values: Any) -> None:
        self._note("command.json", values)

    def write_status(self, state: str, **values: Any) -> None:
        """Note the life of the job, which only its runner does; the time of the last note is its heartbeat. state: STARTING to ENDED."""
        self._note("status.json", {"state": state, "time": round(time.time(), 3), **values})

    def status(self) -> dict[str, Any]:
        """What `write_status` noted last; empty where nothing is, or what is there is damaged. A job whose process is no more has ended,
        also where nobody was there to note it (`outcome` is LOST then); where its runner is there, it is about to note how."""
        try:
            status = notes.of_status(patiently(lambda: read_json(self.path / "status.json", dict, paths=True)))
        except (OSError, ValueError):
            return {}
        if status.get("state") in (ENDED, QUEUED) or process_names.runs(status):
            return status
        if process_names.runs(status.get("runner", {})) and time.time() - status.get("time", 0) < durations.NOTED:
            return status
        return {**status, "state": ENDED, "outcome": LOST}

    def write_task(self, values: dict[str, Any]) -> None:
        """Note what is to be done (`task.Task`)."""
        self._note("task.json", values)

    def write_workflow(self, values: dict[str, Any]) -> None:
        """Keep the workflow that made the job, and its prompt."""
        self._note("workflow.json", values)

    def task(self) -> dict[str, Any]:
        """What `write_task` noted; empty where nothing is, or what is there is damaged."""
        try:
            return notes.of_task(patiently(lambda: read_json(self.path / "task.json", dict, paths=True)))
        except (OSError, ValueError):
            return {}

    def _note(self, name: str, values: dict[str, Any]) -> None:
        try:
            write_text(self.path / name, json_text(values, indent=1) + "\n")
        except OSError as error:  # it informs; a full disk ends no job because of it
            if name not in self._unwritten:
                self._unwritten.add(name)
                logger.warning("%s could not be written: %s", self.path / name, error)
