"""What GPUs, RAM and our processes take, now and at most, and what to do about it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from ..backend.musubi_backend.documents import read_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import RESOURCES
from .jobs.folder import ENDED, QUEUED, JobFolder
from .jobs.follow import run_tool
from .jobs.history import VRAM
from .jobs.index import Index, index_of
from .resource_advice import GB, Working, advice, lines
from .spec import ANY, Host, Input, Node, NodeSpec, Output, Result

_ENOUGH = "Nothing is short."


class ResourceMonitor(Node):
    spec = NodeSpec(
        id="MusubiTuner_ResourceMonitor",
        display_name="Resource Monitor",
        category="MusubiTuner/Monitor",
        description="What GPUs, system RAM and each training take, now and at most, and what to do about it in words. Looks anew every "
        "time it is run; works without a GPU.",
        inputs=(
            Input("seconds", "FLOAT", "How long to look, for what is taken at most. 0: once.", default=2.0, minimum=0.0, maximum=600.0,
                  step=0.5),
            Input("after", ANY, "Connect anything: it looks once that is made", optional=True),
        ),
        outputs=(
            Output("report", "STRING", "Advice, then the numbers of each GPU and process"),
            Output("free_gpu_memory", "FLOAT", "GB that are free on the GPU with the most; 0 without a GPU"),
            Output("free_memory", "FLOAT", "GB of system RAM that are free"),
        ),
        is_output=True,
    )  # fmt: skip

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return str(time.time_ns())

    async def run(self, host: Host, **inputs: Any) -> Result:
        working = _working(index_of(host.home))
        folder = JobFolder.create(host.home, RESOURCES)
        output = folder.path / "resources.json"
        pids = [os.getpid(), *(job.pid for job in working)]
        arguments = to_argv(RESOURCES, {"seconds": inputs["seconds"], "processes": pids, "output": str(output)})
        await run_tool(host, RESOURCES, arguments, foreign=False, gpu=False, folder=folder)
        try:
            seen = read_json(output, dict)
        except (OSError, ValueError) as error:
            raise UserError(f"what was seen cannot be read ({output}: {error}). Run again.") from error
        said = list(advice(seen, working, os.getpid()))
        own = "ComfyUI" if "folder_paths" in sys.modules else "this workflow"
        numbers = list(lines(seen, working, os.getpid(), own))
        free = max((gpu["total"] - gpu["used"] for gpu in seen["gpus"]), default=0) / GB
        report = "\n".join([*(said or [_ENOUGH]), "", *numbers])
        ram = (seen["ram"]["total"] - seen["ram"]["used"]) / GB
        return Result((report, round(free, 2), round(ram, 2)), text=report, line=(said or numbers[: len(seen["gpus"])] or [_ENOUGH])[0])


def _working(index: Index) -> list[Working]:
    """The jobs that go on, the newest first."""
    found = []
    for job in index.jobs():
        if job["state"] in (ENDED, QUEUED) or not job["pid"] or job["kind"] == "tool":
            continue
        values = JobFolder(index.home / "jobs" / job["id"]).task().get("training", {}).get("values") or {}
        held = index.history(job["id"]).points_of(VRAM)[1]
        found.append(Working(job["name"] or job["tool"], job["pid"], int(held[-1]) if held else None, bool(values.get("blocks_to_swap"))))
    return found
