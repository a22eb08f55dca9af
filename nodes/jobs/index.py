"""Which jobs there are and where each of them is: from their folders alone, read on in as they change.

Of an ended job nothing is read twice; of one that goes on, its status and what is new in its log. The whole log of a job (`history`) is
read when somebody looks at that job, and forgotten again when many others were looked at since.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from ...backend.musubi_backend import events
from ...backend.musubi_backend.options.option import CACHE_LATENTS, CACHE_TEXT, GENERATE, TRAIN
from ...backend.musubi_backend.options.registry import tools
from . import queue
from .errors import last_error, read_tail
from .folder import ENDED, JOBS, LOST, QUEUED, RUNNING, STARTING, STOPPING, JobFolder, is_id
from .history import STEP, History
from .progress import EventFollower, Progress

MOST_POINTS = 4_000_000
"""In all histories that are kept: 50 MB."""
_HEAD, _TAIL, _LONG_TAIL = 1 << 14, 1 << 14, 1 << 20  # bytes of a log that are read for the list; the last where bars fill the tail
TRAINING = "training"
_KINDS = {TRAIN: TRAINING, CACHE_LATENTS: "caching", CACHE_TEXT: "caching", GENERATE: "generation"}
_BUILTIN = "builtin"
_LONGEST_ERROR = 2000  # characters


@dataclass
class _Entry:
    """What is known of a job."""

    folder: JobFolder
    task: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    position: int | None = None
    settled: bool = False  # it has ended and was read to the end
    summary: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.follower = EventFollower(self.progress, keep_losses=False)


class Index:
    """The jobs of a home. All methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._entries: dict[str, _Entry] = {}
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._lock = threading.Lock()

    def ids(self) -> list[str]:
        """All jobs, the newest first."""
        try:
            return sorted((path.name for path in (self.home / JOBS).iterdir() if is_id(path.name)), reverse=True)
        except FileNotFoundError:
            return []

    def jobs(self) -> Iterator[dict[str, Any]]:
        """Their summaries, as they are now (`docs/monitor.md`), the newest first."""
        places = {job: place for place, job in enumerate(queue.waiting(self.home))}
        ids = self.ids()
        with self._lock:
            for gone in self._entries.keys() - set(ids):
                self._forget(gone)
        for job in ids:
            summary = self._summary(job, places)
            if summary is not None:
                yield summary

    def job(self, job: str) -> dict[str, Any] | None:
        """One of them; None where there is no such job."""
        if not is_id(job) or not (self.home / JOBS / job).is_dir():
            return None
        return self._summary(job, {other: place for place, other in enumerate(queue.waiting(self.home))})

    def history(self, job: str) -> History:
        """All that a job which is there has reported."""
        with self._lock:
            entry = self._entry(job)
            history = self._histories.pop(job, None) or History(entry.folder, foreign=_engine(entry) != _BUILTIN)
            self._histories[job] = history  # the newest is the last
        history.read_on()  # may take seconds the first time, which the list of jobs does not wait for
        with self._lock:
            while len(self._histories) > 1 and sum(one.points for one in self._histories.values()) > MOST_POINTS:
                self._histories.popitem(last=False)
        return history

    def _entry(self, job: str) -> _Entry:
        if job not in self._entries:
            self._entries[job] = _Entry(JobFolder(self.home / JOBS / job))
        return self._entries[job]

    def _forget(self, job: str) -> None:
        self._entries.pop(job, None)
        self._histories.pop(job, None)

    def _summary(self, job: str, places: dict[str, int]) -> dict[str, Any] | None:
        with self._lock:
            entry = self._entry(job)
            if not entry.settled:
                _refresh(entry)
                if not entry.status:
                    return None  # it has a folder, and is not started
                now = _summary_of(entry, places.get(job))
                before = entry.summary
                now["version"] = before["version"] if before else 0
                if now != before:
                    now["version"] = max(now["version"] + 1, int(time.time() * 1000))  # also greater than one before a restart
                    entry.summary = now
            return entry.summary


@lru_cache(maxsize=4)
def index_of(home: Path) -> Index:
    """The one index of a home, which all nodes and requests share."""
    return Index(home)


def _refresh(entry: _Entry) -> None:
    entry.task = entry.task or entry.folder.task()
    entry.status = entry.folder.status()
    if _engine(entry) == _BUILTIN:
        _read_on(entry)
    entry.settled = entry.status.get("state") == ENDED


def _read_on(entry: _Entry) -> None:
    """Of a log that is long, what it begins and ends with: where the job is."""
    with suppress(OSError), entry.folder.metrics.open("rb") as file:
        size = file.seek(0, 2)
        if entry.position is None:
            entry.position = 0
            if size > _HEAD + _TAIL:
                file.seek(0)
                entry.follower.feed(file.read(_HEAD).rpartition(b"\n")[0] + b"\n")
                file.seek(max(_HEAD, size - (_TAIL if _has_step(file, size) else _LONG_TAIL)))
                file.readline()  # the rest of one
                entry.position = file.tell()
        file.seek(entry.position)
        while data := file.read(_LONG_TAIL):
            entry.position += len(data)
            entry.follower.feed(data)


def _has_step(file: BinaryIO, size: int) -> bool:
    file.seek(size - _TAIL)
    return STEP in file.read(_TAIL)


def _engine(entry: _Entry) -> str:
    return str(entry.status.get("engine") or _BUILTIN)


def _summary_of(entry: _Entry, place: int | None) -> dict[str, Any]:
    status, progress, folder = entry.status, entry.progress, entry.folder
    training = entry.task.get("training", {})
    name = entry.task.get("tool") or folder.id.split("-", 2)[2].rsplit("-", 1)[0]
    tool = tools().get(name)
    state, outcome = str(status.get("state", STARTING)), status.get("outcome")
    if state not in (ENDED, QUEUED) and outcome is None and progress.version:
        state = _between(state, progress)
    text, error = progress.text, None
    if state == ENDED:
        outcome, text, error = _end(entry)
    elif state == QUEUED:
        text = "waiting for its turn" if not place else f"waiting, {place} before it"
    step, total = (progress.step, progress.total) if progress.version else (status.get("step") or 0, status.get("total"))
    learned, start, pace = progress.learned, progress.start, progress.pace.seconds if progress.training else None
    left = pace * (total - step) if pace is not None and total and state == RUNNING and progress.stepping else None
    kind = _KINDS.get(tool.verb, "tool") if tool else "tool"
    can, cannot = _requests(entry, state, kind)
    return {
        "id": folder.id,
        "tool": name,
        "kind": kind,
        "verb": tool.verb if tool else None,
        "architecture": tool.architecture if tool else None,
        "engine": _engine(entry),
        "name": training.get("name", ""),
        "run": training.get("run"),
        "state": state,
        "paused": progress.paused and state == RUNNING,
        "outcome": outcome,
        "text": text,
        "error": error,
        "phase": progress.phase if progress.version else str(status.get("phase") or ""),
        "step": step,
        "total": total,
        "first_step": start.step if start else 0,
        "epoch": learned.epoch if learned else None,
        "epochs": start.epochs if start else None,
        "loss": progress.loss,
        "average": learned.average if learned else None,
        "lr": learned.lr if learned else None,
        "seconds_per_step": round(pace, 4) if pace is not None else None,
        "seconds_left": round(left, 1) if left is not None else None,
        "created": _created(folder.id),
        "started": status.get("started"),
        "ended": status.get("time") if state == ENDED else None,
        "seen": status.get("time"),
        "pid": status.get("pid") if state not in (ENDED, QUEUED) else None,
        "background": bool(entry.task.get("background")),
        "gpus": status.get("gpus"),
        "place": place if state == QUEUED else None,
        "attempt": entry.task.get("attempt", 1),
        "can": can,
        "cannot": cannot,
    }


def _between(state: str, progress: Progress) -> str:
    """The status is written every few seconds; the log says more by then. (Of one that was started a moment ago and is not noted yet it
    would say that it runs, as no process.)"""
    if state == STOPPING or progress.heard:
        return STOPPING
    return progress.state


def _end(entry: _Entry) -> tuple[str, str, str | None]:
    """Outcome, a line about it, and the error of a job that has ended."""
    status, progress = entry.status, entry.progress
    outcome = status.get("outcome") or LOST
    if outcome == LOST and progress.ended is not None:  # nobody was there to note it, but it said so itself
        outcome = progress.ended.outcome
    step = progress.step if progress.training else None
    if outcome == events.FINISHED:
        return outcome, "finished" if step is None else f"finished at step {step}", None
    if outcome == events.STOPPED:
        return outcome, progress.outcome or status.get("text") or ("stopped" if step is None else f"stopped at step {step}"), None
    if outcome == events.FAILED:
        error = str(status.get("error") or "") or (progress.ended.text if progress.ended else "") or last_error(read_tail(entry.folder.log))
        return outcome, f"failed: {error.splitlines()[0][:200]}" if error else "failed", error[:_LONGEST_ERROR]
    if outcome == LOST:
        killed = "it was killed with what ran it" if step is None else f"it was killed with what ran it at step {step}"
        return outcome, killed + (f"; lost: {progress.keep}" if progress.keep else ""), None
    return str(outcome), str(status.get("text") or "taken out of the queue"), None


def _requests(entry: _Entry, state: str, kind: str) -> tuple[list[str], str]:
    """What can be asked of a job now, and why not more."""
    progress = entry.progress
    if state in (ENDED, QUEUED):
        return (["stop"] if state == QUEUED else []), ""
    if state == STOPPING:
        return ["kill"], "it is being stopped"
    if kind != TRAINING:  # it ends soon after a stop, and loses no more by that than by an end at once
        return ["stop"], ""
    if _engine(entry) != _BUILTIN:
        return ["stop", "kill"], "musubi-tuner can only be stopped, which loses what it has not saved yet"
    if progress.start is None:
        return ["stop", "kill"], ""
    values = entry.task.get("training", {}).get("values") or {}
    sample = [events.SAMPLE] if values.get("sample_prompts") else []
    pause = [events.RESUME if progress.paused else events.PAUSE]
    cannot = "" if sample else "this training has no sample prompts"
    return ["stop", "kill", events.SAVE, *sample, *pause, events.STOP_AFTER_EPOCH], cannot


def _created(job: str) -> float | None:
    try:
        return time.mktime(time.strptime(job[:15], "%Y%m%d-%H%M%S"))
    except (ValueError, OverflowError):
        return None
