"""The jobs that wait for their turn in the background and those that run there: a file for each, named after the job.

    <home>/queue/waiting/<id>   holds its place, a number
    <home>/queue/running/<id>   moved there by the keeper (`keeper.py`) when it starts the job, removed when the job's end is settled

Renaming and removing decide who has a job: of the keeper that takes it and somebody who takes it out, one succeeds.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ...backend.musubi_backend.atomic import patiently, write_text
from ...backend.musubi_backend.training import output_lock
from .folder import ENDED, JOBS, QUEUED, JobFolder, is_id

_KEEPER = "keeper"


def waiting(home: Path) -> list[str]:
    """Ids of the jobs that wait, the next one first."""
    places = [(_place(path), path.name) for path in _files(home / "queue" / "waiting")]
    return [job for _, job in sorted(places)]


def running(home: Path) -> list[str]:
    """Ids of the jobs that the keeper runs, or ran when it was killed."""
    return sorted(path.name for path in _files(home / "queue" / "running"))


def add(home: Path, job: str) -> None:
    """Put a job behind all that wait. OSError where that cannot be written."""
    last = max((_place(home / "queue" / "waiting" / other) for other in waiting(home)), default=0.0)
    _put(home, job, max(time.time(), last + 1))  # also where the clock was set back


def order(home: Path, jobs: Sequence[str]) -> None:
    """Put those of `jobs` that wait before the others, in this order."""
    now = waiting(home)
    first = [job for job in dict.fromkeys(jobs) if job in now]
    begin = min((_place(home / "queue" / "waiting" / job) for job in now), default=0.0) - len(first)
    for place, job in enumerate(first):
        with contextlib.suppress(FileNotFoundError), (home / "queue" / "waiting" / job).open("r+", encoding="utf-8") as file:
            file.write(_line(begin + place))  # into the file that is there: one that was taken meanwhile must not come back


def take(home: Path, job: str) -> bool:
    """Move a job from those that wait to those that run. False where somebody else has it."""
    target = home / "queue" / "running" / job
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        patiently(lambda: (home / "queue" / "waiting" / job).rename(target))
        return True
    return False


def take_out(home: Path, job: str) -> bool:
    """Remove a job that waits. False where it does not wait any more."""
    with contextlib.suppress(FileNotFoundError):
        patiently((home / "queue" / "waiting" / job).unlink)
        return True
    return False


def done(home: Path, job: str) -> None:
    """The end of a job is settled."""
    patiently(lambda: (home / "queue" / "running" / job).unlink(missing_ok=True))


def occupied(home: Path) -> dict[str, str]:
    """GPU (as CUDA_VISIBLE_DEVICES has it; "" where there is none) -> the job that trains on it in the background now."""
    found = {}
    for job in running(home):
        status = JobFolder(home / JOBS / job).status()
        if status.get("state") not in (None, QUEUED, ENDED):
            found.update(dict.fromkeys(status.get("gpus") or [""], job))
    return found


def occupant(home: Path, gpus: Callable[[], Sequence[str]]) -> str | None:
    """The job in the background that trains on the first of these GPUs now. They are asked for only where there is a training: a terminal
    imports torch for it."""
    taken = occupied(home)
    return taken.get((gpus()[:1] or [""])[0]) if taken else None


def lock(home: Path) -> tuple[Path, str]:
    """Folder and name of the keeper's lock (`output_lock`)."""
    return home / "queue", _KEEPER


def keeper(home: Path) -> int | None:
    """The process id of the keeper, if there is one."""
    return output_lock.holder(output_lock.lock_file(*lock(home)))


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if is_id(path.name)]
    except FileNotFoundError:
        return []


def _place(path: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        place = float(path.read_text(encoding="utf-8"))
        if math.isfinite(place):
            return place
    return time.time()  # taken just now, or damaged: the last


def _put(home: Path, job: str, place: float) -> None:
    path = home / "queue" / "waiting" / job
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _line(place))


def _line(place: float) -> str:
    """All are equally long, so that one can be written over another."""
    return f"{place:<31}\n"
