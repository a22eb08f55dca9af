"""Handing a job to the background, and seeing to it that a keeper is there while jobs wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.atomic import write_text
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import reason
from ..jobs import queue, runner
from ..jobs.environment import child_environment
from ..jobs.folder import JOBS, QUEUED, JobFolder
from ..jobs.home import HOME_VARIABLE
from ..jobs.task import Task, Training, read

_KEEPER = Path(__file__).with_name("keep.py")


def add(home: Path, task: Task, workflow: Mapping[str, Any] | None = None, *, first: bool = False) -> str:
    """Queue a job; returns its id. UserError where its folder cannot be written. first: before all that wait."""
    folder = JobFolder.create(home, task.tool)
    try:
        write_text(folder.path / "task.json", json.dumps(task.noted()))
        if workflow is not None:
            write_text(folder.path / "workflow.json", json.dumps(workflow))
        folder.write_status(QUEUED)
        queue.add(home, folder.id)
        if first:
            queue.order(home, [folder.id])
    except OSError as error:
        raise UserError(f"the job cannot be queued in {folder.path}: {reason(error)}") from error
    try:
        see_to_it(home)
    except OSError as error:  # ComfyUI tries it again every few seconds
        raise UserError(f"the job {folder.id} is queued, and what runs it could not be started: {reason(error)}") from error
    return folder.id


def of_run(home: Path, training: Training) -> str | None:
    """The job in the background that makes just this result, and waits or runs; None where there is none."""
    for job in [*queue.running(home), *queue.waiting(home)]:
        found = read(JobFolder(home / JOBS / job).task())
        other = found.training if found is not None else None
        if other is not None and other.run == training.run and other.results == json.loads(json.dumps(training.results)):
            return job
    return None


def see_to_it(home: Path) -> None:
    """Start the keeper, if jobs wait, or were left by one that was killed, and there is none. It looks for itself whether it is the only
    one."""
    if (queue.waiting(home) or queue.running(home)) and queue.keeper(home) is None:
        environment = child_environment("", {HOME_VARIABLE: str(home)})
        runner.detach([sys.executable, str(_KEEPER), str(home)], environment, home, home / "queue" / "keeper.log")
