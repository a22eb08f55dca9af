"""A node's view of a job: run a tool, publish its progress, and leave nothing behind when the user stops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...backend.musubi_backend.errors import UserError
from ..spec import Host, Stopped, finite
from . import config as configuration
from . import durations, engine, runner
from .errors import read_tail
from .folder import JobFolder
from .progress import size
from .queue import occupant
from .runner import Job
from .task import Task
from .wording import in_widgets

_gpu = threading.Lock()  # ComfyUI runs independent nodes of a prompt at once; two jobs on one GPU would fight for its memory


async def run_tool(
    host: Host,
    tool: str,
    arguments: Sequence[str],
    *,
    foreign: bool = True,
    gpu: bool = True,
    warns: bool = True,
    folder: JobFolder | None = None,
) -> Job:
    """Run one backend tool to its end, publishing progress on `host`.

    foreign, gpu: see `Task`. warns: its warnings are shown with the node's result. folder: the job's folder, where the caller has put
    files into one already.
    Raises UserError with the log's last real error; the host's interrupt passes through after the job has ended, which waits for what is
    to be saved. A second interrupt meanwhile ends the job at once.
    """
    folder = folder or JobFolder.create(host.home, tool)
    task = Task(tool, tuple(arguments), foreign=foreign, gpu=gpu)
    command = _noted(host, folder, task)
    async with contextlib.nullcontext() if not gpu else _alone(host):
        host.begins(folder.id)
        job = _succeeded(tool, await _follow(host, folder, command))
    warn(host, tool, job.progress.warnings if warns else ())
    return job


async def run_training(host: Host, folder: JobFolder, task: Task, state: Path | None, note: str, on_end: Callable[[Job], object]) -> Job:
    """As `run_tool`, for a trainer. state: what it continues from; note: shown behind the progress text; on_end: called with the job
    however it ended."""
    made_by = host.workflow()
    if made_by is not None:
        folder.write_workflow(made_by)
    command = _noted(host, folder, task, resume=state)
    async with _alone(host):
        host.begins(folder.id)
        job = _succeeded(task.tool, await _follow(host, folder, command, note, on_end))
    warn(host, task.tool, job.progress.warnings)
    return job


def _noted(host: Host, folder: JobFolder, task: Task, **how: Any) -> runner.Command:
    """The command of a task, which its folder then tells of. how: see `engine.command`."""
    folder.write_task(task.noted())
    return engine.command(configuration.load(host.home), folder, task, **how)


def warn(host: Host, tool: str, said: Sequence[str]) -> None:
    """Have the node show with its result what a tool warned of."""
    host.warnings += [text for text in (in_widgets(tool, one) for one in said) if text not in host.warnings]


async def run_on_gpus(host: Host, tool: str, jobs: Sequence[tuple[JobFolder, Sequence[str], str | None]]) -> list[Job]:
    """Run one tool several times at once, each with arguments and, if named, a GPU of its own (as CUDA_VISIBLE_DEVICES has it).

    Progress is published as that of all together. Returns the jobs however they ended; when the host interrupts, all are stopped.
    """
    commands = [_noted(host, folder, Task(tool, tuple(arguments), gpus=(gpu,) if gpu else ()), gpu=gpu) for folder, arguments, gpu in jobs]
    joined = _Joined(host, len(jobs))
    async with _alone(host):
        tasks = [
            asyncio.create_task(_follow(joined.part(number), folder, command, f"GPU {gpu}" if gpu is not None and len(jobs) > 1 else ""))
            for number, ((folder, _, gpu), command) in enumerate(zip(jobs, commands, strict=True))
        ]
        try:
            ended = list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # each stops its process first
            raise
    for job in ended:
        warn(host, tool, job.progress.warnings)
    return ended


@contextlib.asynccontextmanager
async def _alone(host: Host) -> AsyncIterator[None]:
    """While no other job of this pack uses the GPU, and the host's models are out of its memory."""
    while not _gpu.acquire(blocking=False):
        host.progress(0, 1, "waiting for another job")
        try:
            host.check_interrupted()
        except BaseException:  # each host has its own
            host.progress(0, 1, "cancelled before it began")
            raise
        await asyncio.sleep(durations.SHOW)
    try:
        await _next_to_the_background(host)
        free = host.free_gpu_memory()
        if free:
            host.progress(0, 1, free)
        yield
    finally:
        _gpu.release()


async def _next_to_the_background(host: Host) -> None:
    """While a training in the background has the GPU that this would use: wait, warn or go ahead, as the settings say."""
    while job := occupant(host.home, host.gpus):
        meanwhile = configuration.load(host.home).queue["generation"]
        if meanwhile == "go_ahead":
            return
        if meanwhile == "warn":
            host.progress(0, 1, f"a training in the background has the GPU ({job})")
            return
        host.progress(0, 1, f"a training in the background has the GPU ({job}): waiting for its end")
        host.check_interrupted()
        await asyncio.sleep(durations.SHOW)


class Watcher(Protocol):
    """The part of a host that following a job needs."""

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None: ...

    def check_interrupted(self) -> None: ...


class _Joined:
    """The progress of several jobs as one: the mean of their shares, and a line that names each. An interrupt reaches all of them."""

    def __init__(self, host: Host, count: int) -> None:
        self._host = host
        self._shares, self._texts = [0.0] * count, [""] * count
        self.interrupts: list[BaseException] = []

    def part(self, number: int) -> Watcher:
        return _Part(self, number)

    def look_for_interrupt(self) -> None:
        try:
            self._host.check_interrupted()
        except BaseException as interrupt:  # each host has its own
            self.interrupts.append(interrupt)

    def show(self, number: int, share: float, text: str, preview: Path | None) -> None:
        self._shares[number], self._texts[number] = share, text
        self._host.progress(sum(self._shares), float(len(self._shares)), " | ".join(filter(None, self._texts)), preview)


class _Part:
    """One job's view of `_Joined`."""

    def __init__(self, joined: _Joined, number: int) -> None:
        self._joined, self._number = joined, number
        self._interrupts = 0

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        self._joined.show(self._number, value / total if total else 0.0, text, preview)

    def check_interrupted(self) -> None:
        self._joined.look_for_interrupt()
        if len(self._joined.interrupts) > self._interrupts:
            self._interrupts += 1
            raise self._joined.interrupts[self._interrupts - 1]


async def run_doctor(host: Host) -> str:
    """The report of `install.py --doctor`, also when it found something wrong."""
    folder = JobFolder.create(host.home, "doctor")
    await _follow(host, folder, engine.doctor(host.home, folder))
    return read_tail(folder.log)


async def _follow(
    host: Watcher, folder: JobFolder, command: runner.Command, note: str = "", on_end: Callable[[Job], object] = lambda job: None
) -> Job:
    host.check_interrupted()
    try:
        job = await runner.start(folder, command)
    except OSError as error:
        raise UserError(f"could not start {command.argv[0]}: {error}. Run `python install.py` in {configuration.PACK_ROOT}.") from error
    try:
        seen, shown = -1, None
        while not job.ended:
            host.check_interrupted()
            progress = job.progress
            if progress.version != seen:
                seen = progress.version
                sample = progress.sample
                publish(host, job, note, sample if sample != shown else None)
                shown = sample
            await asyncio.sleep(durations.SHOW)
        host.check_interrupted()
    finally:
        try:
            if not job.ended:
                await _stop(host, job, note)
        finally:
            on_end(job)
    publish(host, job, note, None)
    return job


async def _stop(host: Watcher, job: Job, note: str) -> None:
    """Stop a job, wait for its end and say how it ended. The host's second interrupt ends it at once; being cancelled meanwhile counts
    when it is over."""
    stopping = asyncio.ensure_future(runner.stop(job))
    cancelled: asyncio.CancelledError | None = None
    since = time.monotonic()
    while not stopping.done():
        try:
            host.check_interrupted()
        except BaseException:  # each host has its own
            job.hurried = True
        _show(host, job, note, _stopping(job, time.monotonic() - since))
        try:
            await asyncio.wait({stopping}, timeout=durations.SHOW)
        except asyncio.CancelledError as error:
            cancelled = error
    stopping.result()
    _show(host, job, note, job.outcome())
    if cancelled is not None:
        raise cancelled


def _stopping(job: Job, seconds: float) -> str:
    """What a node says while its job is being stopped."""
    progress = job.progress
    if job.hurried:
        return "ending it at once"
    doing = "waiting for its answer"
    if progress.file and progress.expected:
        doing = f"saving {progress.content}, {size(progress.expected)} ({size(progress.bytes)} so far)"
    elif progress.file:
        doing = f"writing {Path(progress.file).name} ({size(progress.bytes)} so far)"
    elif progress.heard:
        doing = "it was heard and ends what it is in the middle of"
    return f"stopping · {doing} · {seconds:.0f} s · cancel again to end it at once"


def _succeeded(tool: str, job: Job) -> Job:
    """`job` if it ended well; else Stopped, or UserError with what its log says."""
    if job.stopped:
        raise Stopped(f"{tool} was stopped from outside; run again to continue. The whole log: {job.folder.log}", job.outcome())
    if job.returncode != 0:
        raise UserError(in_widgets(tool, job.error()))
    return job


def publish(host: Watcher, job: Job, note: str, preview: str | None) -> None:
    """Send the job's progress to the host once."""
    _show(host, job, note, job.progress.text, preview)


def _show(host: Watcher, job: Job, note: str, said: str, preview: str | None = None) -> None:
    progress = job.progress
    text = f"{said} · {note}" if note else said  # a node shows a line: what changes comes first
    path = Path(preview) if preview else None
    total = float(max(progress.total or 0, progress.step, 1))
    host.progress(finite(float(progress.step)), total, text, path if path and path.is_file() else None)
