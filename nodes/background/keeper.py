"""The keeper of a home: a small process without torch that starts the jobs of the queue, one per GPU, and settles their ends. It lives in a
session of its own, so that ComfyUI can be closed, and ends itself when nothing waits and nothing runs.

It runs jobs as the nodes do (`jobs.runner`): they listen on a pipe from it, and if it is killed they save and stop. The next keeper, which
ComfyUI starts, finds them in `<home>/queue/running` and settles them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import events, process_names
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import in_words
from ...backend.musubi_backend.training import output_lock
from ..jobs import config as configuration
from ..jobs import durations, engine, process_tree, queue, runner, task
from ..jobs.folder import ENDED, JOBS, LOST, QUEUED, STARTING, JobFolder
from ..jobs.index import Index
from ..jobs.runner import Job
from . import results, submit

logger = logging.getLogger(__name__)

NO_GPU = ""
"""The place of jobs where there is no GPU: one at a time, too."""


class Keeper:
    """What runs now: job -> the GPUs it has."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._index = Index(home)
        self._busy: dict[str, tuple[str, ...]] = {}
        self._free_from: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._said = ""

    async def run(self) -> None:
        """Until nothing waits and nothing runs. OSError where the queue cannot be read or changed, and nothing runs."""
        for job in queue.running(self.home):  # of a keeper that was killed
            folder = JobFolder(self.home / JOBS / job)
            gpus = folder.status().get("gpus") or folder.task().get("gpus") or (NO_GPU,)
            self._begin(job, tuple(gpus), self._adopt(job))
        while self._tasks or queue.waiting(self.home):
            with self._outliving_the_disk():
                self._start_what_fits()
            await asyncio.sleep(durations.KEEP)
            for job, done in list(self._tasks.items()):
                if done.done():
                    with self._outliving_the_disk():
                        self._end(job, done)

    @contextlib.contextmanager
    def _outliving_the_disk(self) -> Iterator[None]:
        """While jobs run, a home that is full or cannot be written is said and tried again: they would stop with this process."""
        try:
            yield
        except OSError as error:
            if not self._tasks:
                raise
            if str(error) != self._said:
                self._said = str(error)
                logger.error("the queue cannot be changed, its jobs go on: %s", in_words(error))

    def _start_what_fits(self) -> None:
        """In the order of the queue: a job that needs more than is free keeps those behind it waiting, or it would wait for ever."""
        for job in queue.waiting(self.home):
            folder = JobFolder(self.home / JOBS / job)
            found = task.read(folder.task())
            if found is None or folder.status().get("state") != QUEUED:
                queue.take_out(self.home, job)  # damaged, or a job that was removed
                if folder.status().get("state") == QUEUED:
                    folder.write_status(ENDED, outcome=events.FAILED, error="its task.json is damaged: queue its workflow again")
                continue
            if found.training is not None and self._is_trained(found.training.run):
                continue  # two of one run: one after the other
            gpus = self._gpus(found)
            if gpus is None:
                return
            if queue.take(self.home, job):
                self._begin(job, gpus, self._one(folder, found, gpus))

    def _gpus(self, wanted: task.Task) -> tuple[str, ...] | None:
        """Those that a job gets, or None while too few are free."""
        every = wanted.gpus or (NO_GPU,)
        used = {gpu for gpus in self._busy.values() for gpu in gpus} | self._used_by_nodes(every)
        used |= {gpu for gpu, since in self._free_from.items() if time.monotonic() < since}
        free = [gpu for gpu in every if gpu not in used]
        count = min(wanted.processes, len(every))
        return tuple(free[:count]) if len(free) >= count else None

    def _used_by_nodes(self, gpus: tuple[str, ...]) -> set[str]:
        """Those that jobs of nodes have now: the first ones, as nobody chose others."""
        used: set[str] = set()
        for job in self._index.jobs():
            if not job["background"] and job["state"] not in (ENDED, QUEUED):
                noted = JobFolder(self.home / JOBS / job["id"]).task()
                if noted.get("gpu"):
                    used.update(job["gpus"] or gpus[: noted.get("processes", 1)])
        return used

    def _is_trained(self, run: str) -> bool:
        return any(JobFolder(self.home / JOBS / job).task().get("training", {}).get("run") == run for job in self._busy)

    def _begin(self, job: str, gpus: tuple[str, ...], work: Coroutine[Any, Any, None]) -> None:
        self._busy[job] = gpus
        self._tasks[job] = asyncio.ensure_future(work)

    def _end(self, job: str, done: asyncio.Task[None]) -> None:
        del self._tasks[job]
        for gpu in self._busy.pop(job):
            self._free_from[gpu] = time.monotonic() + durations.BETWEEN_JOBS
        queue.done(self.home, job)
        error = done.exception()
        if error is not None:
            logger.error("%s could not be settled", job, exc_info=error)
            folder = JobFolder(self.home / JOBS / job)
            if folder.status().get("state") == QUEUED:  # it would seem to wait for ever
                folder.write_status(ENDED, outcome=events.FAILED, error=f"it could not be started: {error}")

    async def _one(self, folder: JobFolder, found: task.Task, gpus: tuple[str, ...]) -> None:
        try:
            job = await self._start(folder, found, gpus)
        except (UserError, OSError) as error:
            folder.write_status(ENDED, outcome=events.FAILED, error=f"it could not be started: {error}")
            return
        await runner.wait(job)
        await results.settle(self.home, folder, found, finished=job.returncode == 0)
        if job.returncode != 0 and not job.stopped and crashed(job):
            self._again(found, folder)

    async def _start(self, folder: JobFolder, found: task.Task, gpus: tuple[str, ...]) -> Job:
        settings = configuration.load(self.home)
        state = await asyncio.to_thread(results.state_of, self.home, found)
        command = engine.command(settings, folder, found, resume=state, gpu=",".join(gpus) if NO_GPU not in gpus else None)
        if found.training is not None:
            (self.home / "runs" / found.training.run).mkdir(parents=True, exist_ok=True)
        job = await runner.start(folder, command)
        logger.info("%s runs as process %d on %s", folder.id, job.pid, " and ".join(gpus) or "the CPU")
        return job

    async def _adopt(self, job: str) -> None:
        """A job whose keeper was killed: it stops by itself, after it has saved. Then it counts as interrupted."""
        folder = JobFolder(self.home / JOBS / job)
        found = task.read(folder.task())
        while folder.status().get("state") not in (ENDED, None):
            if folder.status().get("state") == QUEUED:
                pid = process_tree.started_for(folder.path)
                if pid is None:  # taken, and never started
                    queue.add(self.home, job)
                    queue.order(self.home, [job])
                    return
                folder.write_status(STARTING, **process_names.named(pid))  # its keeper was killed before it could note that
            await asyncio.sleep(durations.KEEP)
        status = folder.status()
        if found is None or status.get("outcome") != LOST:
            return
        summary = self._index.job(job)
        outcome = summary["outcome"] if summary else LOST
        folder.write_status(
            ENDED, **{**{name: value for name, value in status.items() if name not in ("state", "time")}, "outcome": outcome}
        )
        await results.settle(self.home, folder, found, finished=outcome == events.FINISHED)
        if outcome != events.FINISHED:
            self._again(found, folder)

    def _again(self, found: task.Task, folder: JobFolder) -> None:
        """Queue a training that crashed or was interrupted again, if that is wanted and it was not too often."""
        if found.training is None or found.attempt > configuration.load(self.home).queue["restarts"]:
            return
        training = found.training.from_newest()
        again = submit.add(self.home, found.changed(training=training, attempt=found.attempt + 1), first=True)
        logger.info("%s did not end by itself; %s continues from its last state", folder.id, again)


def crashed(job: Job) -> bool:
    """Whether it ended in another way than by an error that it explained: a signal, a fault of a driver, a full memory."""
    return job.command.engine == runner.BUILTIN and job.progress.ended is None


def main(home: Path) -> int:
    """Keep the queue of `home`, unless another keeper does. Returns 0."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder, name = queue.lock(home)
    folder.mkdir(parents=True, exist_ok=True)
    while queue.waiting(home) or queue.running(home):
        try:
            with output_lock.held(folder, name):
                asyncio.run(Keeper(home).run())
        except UserError:  # another one has it
            break
    return 0
