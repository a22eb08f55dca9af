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

from ...backend.musubi_backend import events
from ...backend.musubi_backend.atomic import write_text
from ...backend.musubi_backend.documents import json_text, read_json
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import reason
from . import process_tree

logger = logging.getLogger(__name__)

STARTING, RUNNING, SAVING, SAMPLING, STOPPING, ENDED = "starting", "running", "saving", "sampling", "stopping", "ended"
"""The life of a job. SAVING and SAMPLING come and go; STOPPING goes over into ENDED alone."""
LOST = "lost"
"""How a job ended that nobody saw end: its runner was gone. The other outcomes are `events.FINISHED`, STOPPED and FAILED."""


@dataclass(frozen=True)
class JobFolder:
    path: Path
    _unwritten: set[str] = field(default_factory=set, compare=False)  # names of which it was said

    @classmethod
    def create(cls, home: Path, tool: str) -> JobFolder:
        """Make a fresh folder for one run of `tool`. UserError where that cannot be."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[^a-z0-9_]', '_', tool.lower())[:60]}-{secrets.token_hex(3)}"
        path = home / "jobs" / name
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"the job's folder {path} cannot be made: {reason(error)}") from error
        return cls(path)

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

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
        also where nobody was there to note it (`outcome` is LOST then)."""
        try:
            status = read_json(self.path / "status.json", dict, paths=True)
        except (OSError, ValueError):
            return {}
        if status.get("state") != ENDED and not process_tree.is_alive(status.get("pid"), status.get("created")):
            return {**status, "state": ENDED, "outcome": LOST}
        return status

    def _note(self, name: str, values: dict[str, Any]) -> None:
        try:
            write_text(self.path / name, json_text(values, indent=1) + "\n")
        except OSError as error:  # it informs; a full disk ends no job because of it
            if name not in self._unwritten:
                self._unwritten.add(name)
                logger.warning("%s could not be written: %s", self.path / name, error)
