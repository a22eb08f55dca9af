"""TensorBoard over the logs of trainings: the real one, from the backend's environment, as a job that ends with ComfyUI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import TENSORBOARD
from .checkpoints import run_folder, trainings
from .jobs import config as configuration
from .jobs import durations, engine, guard, runner
from .jobs.folder import JobFolder
from .jobs.task import Task
from .runs import JOB
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused

ALL = "all"
START, STOP = "start", "stop"
_servers: dict[Path, runner.Job] = {}
"""Those of this process by the real place of their folder. Their stdin is ours: when we end, however that is, they do."""
_starting: set[Path] = set()


class TensorBoard(Node):
    spec = NodeSpec(
        id="MusubiTuner_TensorBoard",
        display_name="TensorBoard",
        category="MusubiTuner/Monitor",
        description="Show the logs of trainings in TensorBoard. It runs on this machine only, under a free port, and ends with ComfyUI.",
        inputs=(
            Input("training", "COMBO", "Whose logs: one of your trainings, the newest first, or all of them next to each other. A "
                "connected job counts more.", default=ALL, choices=lambda host: [ALL, *trainings(host.home)]),
            Input("folder", "STRING", "Another folder of logs, instead of `training`. Relative paths start in this pack's home folder.",
                  default=""),
            Input("action", "COMBO", "start: one for each folder; where it runs already, its address. stop: end it. The tab Trainings can "
                "stop it too.", default=START, choices=(START, STOP)),
            Input("job", JOB, "From a trainer: its logs", optional=True),
        ),
        outputs=(Output("address", "STRING", "Open it in a browser on the same machine; empty once it was stopped"),),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if constants.get("folder", "").strip():
            yield from refused("folder", _named, host, constants["folder"])

    def fingerprint(self, host: Host, **constants: Any) -> str:
        """Another one when one was started or has ended."""
        return " ".join(sorted(f"{job.folder.id}" for job in _servers.values() if not job.ended))

    async def run(self, host: Host, **inputs: Any) -> Result:
        folder = Path(_logs(host, inputs)).resolve()
        if inputs["action"] == STOP:
            running = _servers.pop(folder, None)
            if running is None or running.ended:
                return Result(("",), text=f"no TensorBoard of {folder} is running here")
            await runner.stop(running)
            return Result(("",), text=f"TensorBoard of {folder} was stopped")

        def tell(text: str) -> None:
            host.check_interrupted()
            host.progress(0, 1, text)

        server = await server_of(host.home, folder, tell)
        address = server.progress.address
        place = urlsplit(address)
        lines = [f"TensorBoard: {address}", f"logs: {folder}", f"From another machine: ssh -L {place.port}:{place.netloc} <this machine>"]
        if not any(folder.rglob("events.out.tfevents*")):
            lines.append("There are no logs in it yet: a training writes them as it goes on.")
        return Result((address,), text="\n".join(lines), line=address, page_data={"musubi_job": [{"id": server.folder.id}]})


def _logs(host: Host, inputs: dict[str, Any]) -> Path:
    """The folder that the inputs mean. UserError where it is not there or not allowed."""
    if inputs["job"]:
        return guard.inside(inputs["job"]["run"], [host.home], "job")
    if inputs["folder"].strip():
        return _named(host, inputs["folder"])
    runs = host.home / "runs"
    if inputs["training"] != ALL:
        return run_folder(host.home, inputs["training"], "training")
    if not runs.is_dir():
        raise UserError("there is no training yet: train something, or enter a folder of logs")
    return runs


def _named(host: Host, text: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "folder", relative_to=(host.home,))
    if not path.is_dir():
        raise UserError(f"folder: {path} is no folder")
    return path


async def server_of(home: Path, folder: Path, tell: Callable[[str], object]) -> runner.Job:
    """The server of this folder, which can be reached at `progress.address`; it is started unless it runs. tell: hears what is being done,
    and may raise to end it. UserError where it does not start."""
    folder = folder.resolve()
    async with _one_at_a_time(folder, tell):
        if folder not in _servers or _servers[folder].ended:
            _servers[folder] = await _started(home, folder, tell)
        return _servers[folder]


@contextlib.asynccontextmanager
async def _one_at_a_time(folder: Path, tell: Callable[[str], object]) -> AsyncIterator[None]:
    """Nodes of a graph run next to each other: two of one folder share one server."""
    while folder in _starting:
        tell("starting TensorBoard")
        await asyncio.sleep(durations.SHOW)
    _starting.add(folder)
    try:
        yield
    finally:
        _starting.discard(folder)


async def _started(home: Path, folder: Path, tell: Callable[[str], object]) -> runner.Job:
    """A server that can be reached. UserError with what its log says where it ended instead."""
    job_folder = JobFolder.create(home, TENSORBOARD)
    task = Task(TENSORBOARD, tuple(to_argv(TENSORBOARD, {"logging_dir": str(folder)})), foreign=False, gpu=False)
    job_folder.write_task(task.noted())
    command = engine.command(configuration.load(home), job_folder, task)
    try:
        job = await runner.start(job_folder, command)
    except OSError as error:
        raise UserError(f"could not start {command.argv[0]}: {error}. Run `python install.py` in {configuration.PACK_ROOT}.") from error
    try:
        while not job.progress.address:
            if job.ended:
                raise UserError(f"TensorBoard did not start: {job.error()}")
            tell(job.progress.text)
            await asyncio.sleep(durations.SHOW)
    except BaseException:  # each host has its own interrupt
        await runner.stop(job)
        raise
    return job
