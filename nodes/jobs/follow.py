"""A node's view of a job: run a tool, publish its progress, and leave nothing behind when the user stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ...backend.musubi_backend.errors import UserError
from ..spec import Host, finite
from . import config as configuration
from . import engine, runner
from .folder import JobFolder
from .runner import Job

POLL_SECONDS = 0.2
TRAIN_GRACE = 7.0  # long enough to save the state of a step in flight; with termination it stays below 10 s
SHORT_GRACE = 0.8

_gpu = threading.Lock()  # ComfyUI runs independent nodes of a prompt at once; two jobs on one GPU would fight for its memory


async def run_tool(
    host: Host,
    tool: str,
    arguments: Sequence[str],
    *,
    foreign: bool = True,
    gpu: bool = True,
    launch: bool = False,
    processes: int = 1,
    mixed_precision: str = "no",
    note: str = "",
    folder: JobFolder | None = None,
    on_end: Callable[[Job], object] = lambda job: None,
) -> Job:
    """Run one backend tool to its end, publishing progress on `host`.

    foreign: musubi-tuner has this tool too. gpu: free the host's models first and run alone. launch: a trainer (see
    `engine.command`), which gets time to save its state when stopped. note: shown before the progress text.
    folder: the job's folder, where the caller has put files into one already. on_end: called with the job however it ended.
    Raises UserError with the log's last real error; the host's interrupt passes through after the job has ended.
    """
    settings = configuration.load(host.home)
    folder = folder or JobFolder.create(host.home, tool)
    command = engine.command(
        settings, folder, tool, arguments, foreign=foreign, launch=launch, processes=processes, mixed_precision=mixed_precision
    )
    if not gpu:
        return _succeeded(tool, await _follow(host, folder, command, SHORT_GRACE, note, on_end))
    while not _gpu.acquire(blocking=False):
        host.progress(0, 1, "waiting for another job")
        host.check_interrupted()
        await asyncio.sleep(POLL_SECONDS)
    try:
        free = host.free_gpu_memory()
        if free:
            host.progress(0, 1, free)
        return _succeeded(tool, await _follow(host, folder, command, TRAIN_GRACE if launch else SHORT_GRACE, note, on_end))
    finally:
        _gpu.release()


async def run_doctor(host: Host) -> str:
    """The report of `install.py --doctor`, also when it found something wrong."""
    folder = JobFolder.create(host.home, "doctor")
    await _follow(host, folder, engine.doctor(host.home, folder), SHORT_GRACE, "", lambda job: None)
    return folder.log.read_text(encoding="utf-8", errors="replace")


async def _follow(host: Host, folder: JobFolder, command: runner.Command, grace: float, note: str, on_end: Callable[[Job], object]) -> Job:
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
            await asyncio.sleep(POLL_SECONDS)
        host.check_interrupted()
    finally:
        if not job.ended:
            await runner.stop(job, grace)
        on_end(job)
    publish(host, job, note, None)
    return job


def _succeeded(tool: str, job: Job) -> Job:
    """`job` if it ended well; else UserError with what its log says."""
    if job.stopped:
        raise UserError(f"{tool} was stopped from outside; queue again to go on. The whole log: {job.folder.log}")
    if job.returncode != 0:
        raise UserError(f"{tool} failed: {job.error()}")
    return job


def publish(host: Host, job: Job, note: str, preview: str | None) -> None:
    """Send the job's progress to the host once."""
    progress = job.progress
    total = progress.total or 0
    text = f"{note} · {progress.text}" if note else progress.text
    path = Path(preview) if preview else None
    host.progress(finite(float(progress.step)), float(max(total, progress.step, 1)), text, path if path and path.is_file() else None)
