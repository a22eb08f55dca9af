"""What the page asks of jobs: requests to those that run, further trainings, the order of those that wait."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.training import saved_states
from ..answers import NotThere
from ..background import submit
from ..jobs import config as configuration
from ..jobs import queue, task
from ..jobs.folder import ENDED, JOBS, QUEUED, REMOVED, JobFolder, is_id
from ..jobs.index import Index
from . import details

STOP = "stop"
_MOST = 10_000_000


def summary(index: Index, job: str) -> dict[str, Any]:
    """One job of the list. NotThere if there is none."""
    found = index.job(job) if is_id(job) else None
    if found is None:
        raise NotThere("there is no such job (any more)")
    return found


def ask(index: Index, job: str, name: Any) -> dict[str, Any]:
    """Ask something of a job; returns its summary. UserError where that is not possible now."""
    known = summary(index, job)
    if not isinstance(name, str) or name not in known["can"]:
        able = ", ".join(known["can"]) or "nothing"
        raise UserError(f"this cannot be asked of the job now; possible: {able}" + (f" ({known['cannot']})" if known["cannot"] else ""))
    folder = JobFolder(index.home / JOBS / job)
    if known["state"] == QUEUED:
        if queue.take_out(index.home, job) or _nobody_has(index.home, job):
            folder.write_status(ENDED, outcome=REMOVED, text="taken out of the queue")
        else:
            folder.ask(STOP)  # the keeper was faster
    else:
        folder.ask(name)
    return summary(index, job)


def _nobody_has(home: Path, job: str) -> bool:
    """Whether a job that says it waits is not in the queue: what was to put it there was killed, or its file was removed."""
    return job not in queue.running(home) and JobFolder(home / JOBS / job).status().get("state") == QUEUED


def go_on(index: Index, job: str, steps: Any, epochs: Any, gpus: Sequence[str]) -> dict[str, Any]:
    """Train the run of a job further, in the background on one of `gpus`; returns the new job. UserError where it cannot be."""
    known = summary(index, job)
    if any(value is not None and (type(value) is not int or not 0 <= value <= _MOST) for value in (steps, epochs)):
        raise UserError(f"steps and epochs are whole numbers from 0 to {_MOST}")
    found = task.read(JobFolder(index.home / JOBS / job).task())
    if found is None or found.training is None:
        raise UserError("this job is no training that could continue")
    if configuration.load(index.home).engine != "builtin" or known["engine"] != "builtin":
        raise UserError("musubi-tuner cannot continue at the step of a state; run the workflow with the engine builtin")
    if any(one["run"] == known["run"] and one["state"] != ENDED for one in index.jobs()):
        raise UserError("this run is being trained, or waits for it, already")
    longer = _longer(found, index.home, steps or 0, epochs or 0, tuple(gpus))
    made_by = details.workflow(JobFolder(index.home / JOBS / job))
    return summary(index, submit.add(index.home, longer, made_by))


def reorder(index: Index, order: Any) -> None:
    """Put jobs that wait into an order. UserError for what is no list of ids."""
    if not isinstance(order, list) or not all(isinstance(job, str) and is_id(job) for job in order):
        raise UserError("order is a list of ids of jobs")
    queue.order(index.home, order)


def state_of_queue(home: Path) -> dict[str, Any]:
    """What waits and what runs in the background, and the process that sees to it."""
    return {"waiting": queue.waiting(home), "running": queue.running(home), "keeper": queue.keeper(home) or None}


def _longer(found: task.Task, home: Path, steps: int, epochs: int, gpus: tuple[str, ...]) -> task.Task:
    """The same training with so many more steps or epochs than it was to have."""
    training = found.training
    assert training is not None
    values = dict(training.values)
    if any(type(values.get(name) or 0) is not int for name in ("max_train_epochs", "max_train_steps")):
        raise UserError("the notes of this job are damaged: queue its workflow again")
    if values.get("max_train_epochs"):
        if steps:
            raise UserError("this training counts in epochs: say how many more of them")
        values["max_train_epochs"] += epochs
    elif epochs:
        raise UserError("this training counts in steps: say how many more of them")
    elif steps:
        done = _furthest(home / "runs" / training.run, training.name)
        values["max_train_steps"] = max(done, int(values.get("max_train_steps") or 0)) + steps
    return found.changed(training=training.longer(values), background=True, attempt=1, gpus=gpus)


def _furthest(run: Path, name: str) -> int:
    states = saved_states.of_run(run, name) if run.is_dir() else []
    found, _ = saved_states.furthest_whole(states)
    return found.step if found else 0


def numbers(query: Any) -> dict[str, int]:
    """The whole numbers in the query of `GET series`. UserError for what is none."""
    values: dict[str, int] = {}
    for name in ("from", "to", "after", "points"):
        text = query.get(name)
        if text is None:
            continue
        if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > 10:
            raise UserError(f"{name} is a whole number")
        values[name] = int(text)
    if not 10 <= values.setdefault("points", 800) <= 4000:
        raise UserError("points is a number from 10 to 4000")
    return values


def series(index: Index, job: str, query: Any) -> dict[str, Any]:
    """For `GET series`."""
    summary(index, job)
    history, asked = index.history(job), numbers(query)
    names: Sequence[str] = tuple(dict.fromkeys(str(query.get("names", "loss")).split(",")))
    unknown = [name for name in names if name not in history.series]
    if unknown:
        raise UserError(f"there is no series {unknown[0][:40]!r}; there are {', '.join(history.series)}")
    begin = asked["after"] + 1 if "after" in asked else asked.get("from")
    found = history.between(tuple(names), begin, asked.get("to"), asked["points"])
    return {"id": job, "first": history.first, "last": history.last, **found}
