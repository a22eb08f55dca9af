"""Starts jobs and watches them: the only place in this product that starts a process.

Jobs live on an event loop of their own in one background thread, because ComfyUI gives every prompt a fresh loop that a
synchronous node can block and that a Windows setting can rob of subprocess support. A job writes stdout and stderr to its
log file and events to another; the runner reads on in them. The job's stdin stays open: the line "stop" asks it to end gracefully, other
lines ask for something (`request`), end of file tells it that we died.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import events, process_names
from . import durations, process_tree
from .errors import describe_exit, last_error, read_tail
from .folder import ENDED, STARTING, STOPPING, JobFolder
from .musubi_log import LogFollower
from .progress import EventFollower, Progress, short

BUILTIN = "builtin"
KILL = "kill"
"""A request, next to those of `events`: end at once."""
EXIT_STOPPED = 3
_LARGEST_LOG, _KEPT_OF_LOG = 64 << 20, 8 << 20  # bytes
_MOST_PER_POLL = 1 << 16  # bytes
_MOST_BEHIND = 1 << 20  # bytes of the log that wait to be read


@dataclass(frozen=True)
class Command:
    """What to run: an argument list (never a shell line), its whole environment and its working folder."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    engine: str = BUILTIN
    listens: bool = True  # reads "stop" from stdin and ends gracefully
    gpus: list[str] | None = None  # that it was given


@dataclass
class Job:
    """One running or ended job. Read from any thread. Its progress comes from events; that of musubi-tuner's scripts from their log."""

    folder: JobFolder
    command: Command
    pid: int = 0
    returncode: int | None = None
    stopping: bool = False
    hurried: bool = False  # whoever stops it does not want to wait for what it saves
    ended: bool = False  # its process is gone, its log read, its status written
    progress: Progress = field(default_factory=Progress)
    _process: asyncio.subprocess.Process | None = None
    _ended: asyncio.Event | None = None
    _positions: dict[Path, int] = field(default_factory=dict)
    _always: dict[str, Any] = field(default_factory=dict)  # what does not change in status.json
    _asked: int = 0  # how far its requests are read
    _noted: tuple[str, float] = ("", 0.0)  # the state in status.json, and when it was written

    def __post_init__(self) -> None:
        self._events = EventFollower(self.progress)
        self._log = None if self.command.engine == BUILTIN else LogFollower(self.progress)

    @property
    def state(self) -> str:
        """Its place in its life."""
        return ENDED if self.ended else STOPPING if self.stopping or self.progress.heard else self.progress.state

    @property
    def stopped(self) -> bool:
        """It ended because it was asked to."""
        return self.returncode is not None and (self.stopping or self.returncode == EXIT_STOPPED)

    def outcome(self) -> str:
        """One line about how a stopped job ended: what was saved, or that nothing was and why."""
        progress = self.progress
        if progress.outcome:
            return progress.outcome
        if self.returncode == 0:
            return "it had just finished"
        unsaved = progress.keep or (progress.content or short(progress.file) if progress.file else "")
        lost = f"lost: {unsaved}" if unsaved else "nothing was lost"
        if self.hurried:
            return f"ended at once; {lost}"
        if self.returncode is not None and self.returncode > 0 and progress.heard and "ERROR: " in read_tail(self.folder.log):
            return f"stopped, and nothing more was saved: {self.error()}"
        return f"stopped; {lost}"

    def error(self) -> str:
        """The last real error of its log, and where the whole log is."""
        text = read_tail(self.folder.log)
        message = last_error(text) if text.strip() else describe_exit(self.returncode or 0)
        if self.returncode is not None and self.returncode < 0 and "Traceback" not in text and "ERROR: " not in text:
            message = describe_exit(self.returncode) + (f"\nlost: {self.progress.keep}" if self.progress.keep else "")
        return f"{message}\nThe whole log: {self.folder.log}"


class _Loop:
    """The event loop in its thread, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._get())

    def _get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                # The Selector loop that some Windows setups choose as the default cannot start processes.
                loop: asyncio.AbstractEventLoop
                if sys.platform == "win32":
                    loop = asyncio.ProactorEventLoop()
                else:
                    loop = asyncio.SelectorEventLoop()
                threading.Thread(target=loop.run_forever, name="musubituner-jobs", daemon=True).start()
                self._loop = loop
            return self._loop


_LOOP = _Loop()


def detach(argv: list[str], env: dict[str, str], cwd: Path, log: Path) -> None:
    """Start a program that goes on without us: in a session of its own, with no pipe to us. OSError if it cannot be started."""
    import subprocess

    ways: list[dict[str, Any]] = [{"start_new_session": True}]
    if sys.platform == "win32":
        apart = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
        # out of the job object of a launcher that ends all it started, where that lets it
        ways = [{"creationflags": apart | subprocess.CREATE_BREAKAWAY_FROM_JOB}, {"creationflags": apart}]
    with log.open("ab") as file:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        for last, way in enumerate(ways, 1 - len(ways)):
            try:
                process = subprocess.Popen(argv, env=env, cwd=cwd, **streams, **way)
                break
            except PermissionError:
                if last == 0:
                    raise
    threading.Thread(target=process.wait, daemon=True).start()  # or its end would leave a zombie as long as we are there


async def start(folder: JobFolder, command: Command) -> Job:
    """Start a job; returns once its process exists. OSError if it cannot be started."""
    job = Job(folder, command)
    spawned = asyncio.wrap_future(_LOOP.submit(_spawn(job)))
    try:
        await asyncio.shield(spawned)
    except asyncio.CancelledError:  # cancelled while the process came to be: nobody else knows it
        await spawned
        await stop(job)
        raise
    return job


async def stop(job: Job) -> None:
    """End a job: ask, wait while it would lose something (until `job.hurried`), terminate its tree, kill it. Returns when nothing of it
    runs."""
    await asyncio.shield(asyncio.wrap_future(_LOOP.submit(_stop(job))))


async def request(job: Job, name: str) -> bool:
    """Ask a training for one of `events.REQUESTS`, which it does at the end of the step that it is in; `job.progress.requests` says what
    became of it. False where nobody listens any more. ValueError for a name that is none."""
    if name not in events.REQUESTS:
        raise ValueError(f"unknown request {name}: use one of {', '.join(events.REQUESTS)}")
    return bool(await asyncio.wrap_future(_LOOP.submit(_say(job, name))))


async def wait(job: Job) -> None:
    """Until the job has ended and its log is read to the end."""
    await asyncio.wrap_future(_LOOP.submit(_wait(job)))


async def _spawn(job: Job) -> None:
    command, folder = job.command, job.folder
    folder.write_command(argv=command.argv, engine=command.engine, cwd=str(command.cwd))
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        import subprocess

        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with folder.log.open("ab") as log:
        job._process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            env=command.env,
            cwd=command.cwd,
            **options,
        )
    job.pid = job._process.pid
    job._ended = asyncio.Event()
    job._always = {
        **process_names.named(job.pid),
        "runner": process_names.named(os.getpid()),
        "started": round(time.time(), 3),
        "engine": command.engine,
        "gpus": command.gpus,
    }
    _note(job, STARTING)
    _keep_task(_watch(job))


_TASKS: set[asyncio.Task[None]] = set()


async def _watch(job: Job) -> None:
    """Read what the job writes until it ends, then settle its state."""
    assert job._process is not None and job._ended is not None
    exited = asyncio.ensure_future(job._process.wait())
    try:
        while not exited.done():
            _read_on(job)
            await _do_requests(job)
            if job.state != job._noted[0] or time.monotonic() - job._noted[1] >= durations.HEARTBEAT:
                _note(job, job.state)
            with contextlib.suppress(OSError):  # a full disk: it is tried again
                if job.folder.rotate_log(_LARGEST_LOG, _KEPT_OF_LOG):
                    job._positions[job.folder.log] = 0
            await asyncio.wait({exited}, timeout=durations.READ)
        while _read_on(job):
            await asyncio.sleep(0)
        if job._log is not None:
            job._log.feed(b"\n")
    finally:
        # Whatever the job left behind (data loader workers, launched ranks) goes with it; so does the job if watching it failed.
        process_tree.signal_tree(job.pid, [], kill=True)
        await exited
        code = job._process.returncode
        job.returncode = code if code is not None else -1
        outcome = events.FINISHED if code == 0 else events.STOPPED if job.stopped else events.FAILED
        try:
            said = {"error": job.error()} if outcome == events.FAILED else {"text": job.outcome()} if outcome == events.STOPPED else {}
            _note(job, ENDED, outcome=outcome, returncode=code, **said)
        finally:
            job.ended = True
            job._ended.set()


def _note(job: Job, state: str, **more: Any) -> None:
    progress = job.progress
    place = {"phase": progress.phase, "step": progress.step, "total": progress.total}
    job.folder.write_status(state, **job._always, **place, **more)
    job._noted = state, time.monotonic()


def _read_on(job: Job) -> bool:
    """Read what is new, a bounded amount at a time, so that a job that writes much keeps nobody waiting. False where nothing is."""
    if job._log is not None:
        new = _new_bytes(job, job.folder.log)
        job._log.feed(new)
    else:
        new = _new_bytes(job, job.folder.metrics)
        job._events.feed(new)
    return bool(new)


def _new_bytes(job: Job, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = job._positions.get(path, 0)
            left = os.fstat(file.fileno()).st_size - start
            if left > _MOST_BEHIND and path == job.folder.log:
                start += left - _MOST_PER_POLL  # it writes faster than is read: only its newest words count
                job._positions[path] = start
            file.seek(start)
            data = file.read(_MOST_PER_POLL)
    except OSError:  # not there yet, or taken away: the job continues without being seen
        return b""
    job._positions[path] = job._positions.get(path, 0) + len(data)
    return data


async def _do_requests(job: Job) -> None:
    """What was asked for in the job's folder, by whoever looks at it."""
    requests, job._asked = job.folder.asked(job._asked)
    for name in requests:
        if name == KILL:
            job.hurried = True
        if name in (KILL, events.STOP):
            _keep_task(_stop(job))
        elif name in events.REQUESTS:
            await _say(job, name)


def _keep_task(work: Coroutine[Any, Any, None]) -> None:
    """A loop keeps only weak references to tasks."""
    task = asyncio.get_running_loop().create_task(work)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


async def _wait(job: Job) -> None:
    assert job._ended is not None
    await job._ended.wait()


async def _ends_within(job: Job, seconds: float) -> bool:
    assert job._ended is not None
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(job._ended.wait(), max(0.01, seconds))
    return job.ended


async def _say(job: Job, line: str) -> bool:
    """Write a line to the job's stdin, if it reads it. False where it does not, or no longer."""
    stdin = job._process.stdin if job._process is not None else None
    if job.ended or not job.command.listens or stdin is None or stdin.is_closing():
        return False
    try:
        stdin.write(f"{line}\n".encode())
        await stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


async def _stop(job: Job) -> None:
    assert job._process is not None
    if job.ended:
        return
    job.stopping = True
    processes = process_tree.members(job.pid)
    await _say(job, events.STOP)
    if job.command.listens and job._process.stdin is not None:
        job._process.stdin.close()  # of several processes, one reads the line and the others the end
    free = changed = time.monotonic()  # since when it has nothing to lose, and shows no sign of getting on
    sign = _sign_of_life(job)
    while not await _ends_within(job, durations.READ):
        now, before, sign = time.monotonic(), sign, _sign_of_life(job)
        changed = now if sign != before else changed
        loses = job.progress.keep or job.progress.file
        free = now if loses else free
        if job.hurried or now > (changed + durations.PATIENCE if loses else free + durations.GRACE * job.command.listens):
            break
    else:
        process_tree.signal_tree(job.pid, processes, kill=True)
        return
    processes = process_tree.members(job.pid) or processes
    process_tree.signal_tree(job.pid, processes, kill=False)
    await _ends_within(job, durations.TERMINATE)
    process_tree.signal_tree(job.pid, processes, kill=True)
    await _ends_within(job, durations.PATIENCE)


def _sign_of_life(job: Job) -> tuple[object, ...]:
    """What changes while a job gets on."""
    progress = job.progress
    try:
        printed = job.folder.log.stat().st_size
    except OSError:  # taken away
        printed = 0
    return progress.heard, progress.keep, progress.file, progress.bytes, progress.phase, progress.step, printed
