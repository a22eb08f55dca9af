"""A training as it goes on: live on the node, and for the graph as an image, in words and in numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.errors import UserError
from . import training_chart
from .checkpoints import trainings
from .jobs import durations
from .jobs.folder import ENDED
from .jobs.index import Index, index_of
from .loss_curve import loss_map
from .runs import JOB
from .spec import Host, Input, Node, NodeSpec, Output, Result, finite
from .training_record import Record, record, run_of

NEWEST = "newest"


class TrainingMonitor(Node):
    spec = NodeSpec(
        id="MusubiTuner_TrainingMonitor",
        display_name="Training Monitor",
        category="MusubiTuner/Monitor",
        description="Watch a training, also one in the background: its curve and last sample live on the node, the curve as an image, what "
        "it has done so far in words.",
        inputs=(
            Input("training", "COMBO", "One of your trainings, the newest first. newest: the one that began last. A connected job counts "
                "more.", default=NEWEST, choices=lambda host: [NEWEST, *trainings(host.home)]),
            Input("until_end", "BOOLEAN", "Wait until the training has ended, so that what follows this node sees all of it. Cancelling "
                "then ends the waiting, not the training.", default=False),
            Input("smoothing", "FLOAT", "How much the thick curve is smoothed. 0: not at all.",
                  default=0.95, minimum=0.0, maximum=0.999, step=0.01),
            Input("logarithmic", "BOOLEAN", "Draw the loss on a logarithmic scale.", default=False),
            Input("job", JOB, "From a trainer: its run", optional=True),
        ),
        outputs=(
            Output("chart", "IMAGE", "Loss, raw and smoothed, learning rate, and where it saved and sampled"),
            Output("report", "STRING", "Where it is, what it did so far, and which files it made"),
            Output("loss_map", "LOSS_MAP", "For core's loss graph node"),
            Output("loss", "FLOAT", "The smoothed loss now"),
            Output("step", "INT", "The step it is at"),
        ),
        is_output=True,
    )  # fmt: skip

    def fingerprint(self, host: Host, **constants: Any) -> str:
        """Another one whenever a training got on: which one a connected job means is not known here."""
        return content.digest([(job["id"], job["version"]) for job in index_of(host.home).jobs() if job["kind"] == "training"])

    async def run(self, host: Host, **inputs: Any) -> Result:
        index = index_of(host.home)
        run = await asyncio.to_thread(_run, index, inputs)
        if inputs["until_end"]:
            await _ended(host, index, run)
        found = await asyncio.to_thread(record, index, run)
        if found is None:
            raise UserError(f"nothing is known of the training {run} any more: its jobs were removed")
        host.show_job(found.job["id"])
        image = await asyncio.to_thread(training_chart.draw, found.curves, found.name, inputs["smoothing"], inputs["logarithmic"])
        name = content.digest(found.job["id"], found.job["version"], inputs["smoothing"], inputs["logarithmic"])
        chart = await asyncio.to_thread(host.images, [image], host.temp_dir / "musubi_tuner" / f"training_{name}")
        report = "\n".join(found.lines(inputs["smoothing"]))
        losses = list(found.loss.values)
        loss = training_chart.smoothed(losses, inputs["smoothing"])[-1] if losses else 0.0
        files = (Path(chart),) if isinstance(chart, str) else ()
        return Result(
            (chart, report, loss_map(losses), loss, found.job["step"]),
            text=report,
            line=_line(found),
            files=files,
            page_data={"musubi_job": [{"id": found.job["id"]}]},
        )


def _run(index: Index, inputs: dict[str, Any]) -> str:
    """The name of the run's folder. UserError where there is none."""
    if inputs["job"]:
        return Path(inputs["job"]["run"]).name
    wanted = "" if inputs["training"] == NEWEST else inputs["training"]
    run = run_of(index, wanted)
    if run is None:
        what = f"nothing is known of a training {wanted!r} any more" if wanted else "there is no training yet"
        raise UserError(f"{what}: train something, or connect a trainer's job")
    return run


async def _ended(host: Host, index: Index, run: str) -> None:
    """Wait until no job of a run goes on or waits, and show meanwhile where it is."""
    shown, seen = "", -1
    while True:
        going = await asyncio.to_thread(lambda: [job for job in index.jobs() if job["run"] == run and job["state"] != ENDED])
        host.check_interrupted()
        if not going:
            return
        job = going[-1]  # the one that began first: others of the run wait for it
        if job["id"] != shown:
            shown = job["id"]
            host.show_job(shown)
        if job["version"] != seen:
            seen = job["version"]
            host.progress(finite(float(job["step"])), float(max(job["total"] or 0, job["step"], 1)), job["text"])
        await asyncio.sleep(durations.SHOW)


def _line(found: Record) -> str:
    job = found.job
    loss = f"loss {found.loss.values[-1]:.4f}" if found.loss.values else ""
    step = f"step {job['step']}" + (f"/{job['total']}" if job["total"] else "")
    return " · ".join(filter(None, [found.name, loss, step, job["outcome"] or job["state"]]))
