"""What jobs and runs take on the disk, and removing it: never what goes on, waits, or is being trained."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.atomic import part_of
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import reason
from ...backend.musubi_backend.training import output_lock, saved_states
from ..jobs.folder import ENDED, JOBS, RUNS, is_id
from ..jobs.index import Index
from ..jobs.notes import is_run
from .workflow_samples import FOLDER

logger = logging.getLogger(__name__)

_LOCK = ".*.lock"


def overview(index: Index) -> dict[str, Any]:
    """For `GET storage`. Looks at every file of the runs: seconds, where there are many."""
    jobs = list(index.jobs())
    return {
        "jobs": {"count": len(jobs), "bytes": sum(_bytes(index.home / JOBS / job["id"]) for job in jobs)},
        "runs": [run for path in sorted(_runs(index.home)) if (run := _run(path, jobs))],
    }


def clean(index: Index, jobs: Iterable[str], runs: Iterable[str], *, states_only: bool = False) -> dict[str, Any]:
    """Remove jobs and runs by their names, see `docs/monitor.md`. What cannot go is named with the reason."""
    removed: list[str] = []
    kept: list[dict[str, str]] = []
    freed = 0
    there = {job["id"]: job for job in index.jobs()}
    known = {path.name: path for path in _runs(index.home)}
    for run in dict.fromkeys(runs):
        path = known.get(run)
        refusal = "there is no such run" if path is None else _busy(path, there.values())
        if path is None or refusal:
            kept.append({"id": run, "reason": refusal})
            continue
        doomed = _states(path) if states_only else [path]
        if not states_only:
            doomed += [index.home / JOBS / job["id"] for job in there.values() if job["run"] == run]
        freed += _remove(run, doomed, removed, kept)
    for job in dict.fromkeys(jobs):
        state = there[job]["state"] if job in there else None
        refusal = "there is no such job" if state is None else "" if state == ENDED else f"it is {state}"
        if refusal:
            kept.append({"id": job, "reason": refusal})
        else:
            freed += _remove(job, [index.home / JOBS / job], removed, kept)
    return {"removed": removed, "kept": kept, "bytes": freed}


def retire(index: Index, keep: int) -> list[str]:
    """Remove the oldest folders of ended jobs until `keep` of all jobs are left; none of a run that is there. Returns their names."""
    jobs = list(index.jobs())
    runs = {path.name for path in _runs(index.home)}
    doomed = [job["id"] for job in reversed(jobs) if job["state"] == ENDED and job["run"] not in runs][: max(0, len(jobs) - keep)]
    answer = clean(index, doomed, [])
    return list(answer["removed"])


def _runs(home: Path) -> Iterator[Path]:
    try:
        yield from (path for path in (home / RUNS).iterdir() if path.is_dir() and not path.is_symlink() and is_run(path.name))
    except FileNotFoundError:
        return


def _run(path: Path, jobs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """None where it was removed meanwhile."""
    files = _files(path)
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:
        return None
    return {
        "run": path.name,
        "name": path.name.rpartition("-")[0] or path.name,
        "bytes": sum(place.st_size for place in files.values()),
        "states": len(_states(path)),
        "loras": sum(one.suffix == ".safetensors" and not one.parent.name.endswith(saved_states.STATE_SUFFIX) for one in files),
        "samples": sum(one.parent.name == "sample" or (one.parent.name == FOLDER and one.suffix != ".json") for one in files),
        "modified": max((place.st_mtime for place in files.values()), default=changed),
        "jobs": [job["id"] for job in jobs if job["run"] == path.name],
        "busy": bool(_busy(path, jobs)),
    }


def _busy(run: Path, jobs: Iterable[dict[str, Any]]) -> str:
    """Why a run must stay as it is, or ""."""
    for job in jobs:
        if job["run"] == run.name and job["state"] != ENDED:
            return "it waits to be trained" if job["state"] == "queued" else "it is being trained"
    if any(output_lock.holder(path) is not None for path in run.glob(_LOCK)):
        return "another program trains it"
    return ""


def _remove(name: str, folders: list[Path], removed: list[str], kept: list[dict[str, str]]) -> int:
    """Each is moved out of sight first, so that no half of one is found later."""
    freed = 0
    for folder in folders:
        try:
            size, aside = _bytes(folder), part_of(folder)
            folder.rename(aside)
            shutil.rmtree(aside)
            freed += size
        except OSError as error:
            kept.append({"id": name, "reason": f"{folder} could not be removed: {reason(error)}"})
            return freed
    removed.append(name)
    return freed


def _states(run: Path) -> list[Path]:
    try:
        return [folder for folder in run.iterdir() if folder.name.endswith(saved_states.STATE_SUFFIX)]
    except FileNotFoundError:
        return []


def _bytes(folder: Path) -> int:
    return sum(place.st_size for place in _files(folder).values())


def _files(folder: Path) -> dict[Path, os.stat_result]:
    """What lies at any depth of a folder, links left out, and whatever is removed while it is looked through."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found[path] = status
    return found


def named_jobs(values: Any, what: str) -> list[str]:
    """A list of ids from a request. UserError for anything else."""
    if not isinstance(values, list) or not all(isinstance(value, str) and is_id(value) for value in values):
        raise UserError(f"{what} is a list of ids of jobs")
    return values


def named_runs(values: Any) -> list[str]:
    """A list of names of runs from a request. UserError for anything else."""
    if not isinstance(values, list) or not all(is_run(value) for value in values):
        raise UserError("runs is a list of names of runs")
    return values
