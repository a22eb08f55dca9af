"""The Training Monitor: one curve over the jobs of a run, drawn with every spike, told in words, and waited for."""

from __future__ import annotations

import asyncio
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from musubi_backend import events
from musubi_backend.events import line_of

Write = Callable[..., Any]


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    return part("headless.terminal").TerminalHost(tmp_path / "home", screen=part("headless.terminal").Screen(io.StringIO()))


@pytest.fixture
def job(part: Any, host: Any) -> Write:
    """A function: a job of a run, with what it said and its status."""

    def write(run: str, *said: events.Event, state: str = "ended", **status: Any) -> Any:
        folder = part("nodes.jobs.folder").JobFolder(
            host.home / "jobs" / f"20261127-1200{len(made):02d}-wan_train_network-00000{len(made)}"
        )
        made.append(folder)
        folder.path.mkdir(parents=True)
        training = {"name": run.rpartition("-")[0], "run": run, "endings": [""], "values": {}}
        folder.write_task({"tool": "wan_train_network", "training": training})
        folder.write_status(state, **{"outcome": "finished" if state == "ended" else None, **status})
        told = [line_of(event, time=1795801437.0, clock=float(place), rank=0) for place, event in enumerate(said)]
        folder.metrics.write_text("".join(told), encoding="utf-8")
        return folder

    made: list[Any] = []
    return write


def run(part: Any, host: Any, **inputs: Any) -> Any:
    node = part("nodes.training_monitor").TrainingMonitor()
    return asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, inputs)))


def steps(first: int, last: int, loss: Callable[[int], float], total: int = 100) -> list[events.Event]:
    return [events.Step(step, total, 1, loss(step), loss(step), 1e-4, 1.0) for step in range(first, last + 1)]


def test_a_run_of_several_jobs_is_one_curve_in_which_the_later_job_counts(part: Any, host: Any, job: Write) -> None:
    memory, other = events.Memory(5, 7 << 30, 3 << 30), steps(1, 3, lambda step: 9.0)
    part("nodes.runs").Run(host.home / "runs" / "cat-1", "cat").add_losses({1: 4.0, 2: 3.0, 8: 0.1})
    job("cat-1", *steps(3, 6, lambda step: 2.0), memory, events.Saved("/x/cat-1.safetensors", "lora", 4, 1))
    job("cat-1", *steps(5, 7, lambda step: 1.0), events.Sample("/x/s.png", 6, "a cat", 0))
    job("dog-1", *other)
    values = run(part, host, training="cat", smoothing=0.0).values
    assert values[2] == {"loss": [4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]}
    assert values[3:] == (1.0, 7)
    for said in (
        "cat: finished at step 7",
        "step 7 of 100",
        "GPU memory 7.0 GB, system RAM 3.0 GB",
        "lowest smoothed loss: 1.0000 at step 5",
        "step 4: cat-1.safetensors",
        "1 sample, at step 6",
        "learning rate: 0.0001",
    ):
        assert said in values[1]
    assert run(part, host).values[2] == {"loss": pytest.approx([9.0, 9.0, 9.0, 9.000009])}, "the newest"
    linked = {"run": str(host.home / "runs" / "cat-1"), "folder": "", "curve": ""}
    assert run(part, host, job=linked).values[4] == 7, "a connected job counts more"


def test_the_chart_shows_a_single_spike_and_nothing_that_is_no_number(part: Any, host: Any, job: Write) -> None:
    chart = part("nodes.training_chart")
    calm = [1.0 + 0.001 * (step % 7) for step in range(1, 5001)]
    spiked = [*calm[:2500], 3.0, *calm[2501:]]
    images = [chart.draw(chart.Curves(chart.Curve(range(1, 5001), values)), "x", 0.9, False) for values in (calm, spiked)]
    assert [image.shape for image in images] == [(720, 1280, 3)] * 2 and images[0].dtype == np.uint8
    column = round(96 + (1280 - 32 - 96) * 2500 / 4999)
    raw = (images[1][:, column - 1 : column + 2] == (170, 204, 232)).all(-1).any(-1)
    assert raw.sum() > 500, "from the bottom to the top, in the column of that step"
    job("cat-1", events.Step(1, 3, 1, math.nan, None, None, 1.0), events.Step(2, 3, 1, math.inf, None, None, 1.0))
    values = run(part, host, logarithmic=True).values
    assert (values[2], values[3]) == ({"loss": [0.0, 1e-6]}, 0.0) and "no loss yet" in values[1]


@pytest.mark.parametrize("curve", [(), ((5,), (0.5,)), ((1, 2), (0.5, 0.5)), ((1, 2), (0.0, 1e-9)), ((1, 9), (1e-5, 40.0))])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_curve_can_be_drawn(part: Any, curve: Any, logarithmic: bool) -> None:
    chart = part("nodes.training_chart")
    one = chart.Curve(*curve)
    image = chart.draw(chart.Curves(one, rate=one, saves=one.steps, samples=one.steps), "猫", 0.5, logarithmic)
    assert bool((image[64:] == (0, 62, 112)).all(-1).any()) == bool(curve), "below the legend"


def test_it_waits_for_the_end_of_a_training_without_holding_up_others(part: Any, host: Any, job: Write, monkeypatch: Any) -> None:
    monkeypatch.setattr(part("nodes.jobs.follow").durations, "SHOW", 0.01)
    me, shown = psutil.Process(), []
    folder = job("cat-1", *steps(1, 2, lambda step: 1.0), state="running", pid=os.getpid(), created=me.create_time())
    monkeypatch.setattr(host, "progress", lambda value, total, text, preview=None: shown.append(value))

    async def beside() -> Any:
        node = part("nodes.training_monitor").TrainingMonitor()
        watched = asyncio.create_task(node.run(host, **part("nodes.checks").complete(node.spec, {"until_end": True})))
        for step in (3, 4, 5):
            while len(shown) < step - 2:  # it looks again and again, and this loop goes on
                assert not watched.done()
                await asyncio.sleep(0.005)
            with folder.metrics.open("a") as log:
                log.write(line_of(events.Step(step, 100, 1, 1.0), time=1795801437.0, clock=float(step), rank=0))
        folder.write_status("ended", outcome="stopped", text="stopped at step 2, state saved")
        return await watched

    result = asyncio.run(beside())
    assert shown[:3] == [2.0, 3.0, 4.0]
    assert "stopped at step 2, state saved" in result.text and result.line.endswith("stopped")


def test_without_any_training_it_says_what_to_do(part: Any, host: Any) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="there is no training yet: train something"):
        run(part, host)


def test_it_runs_again_once_a_training_got_on(part: Any, host: Any, job: Write) -> None:
    node = part("nodes.training_monitor").TrainingMonitor()
    me = psutil.Process()
    folder = job("cat-1", *steps(1, 2, lambda step: 1.0), state="running", pid=me.pid, created=me.create_time())
    first = node.fingerprint(host)
    assert node.fingerprint(host) == first
    with folder.metrics.open("a") as log:
        log.write(line_of(steps(3, 3, lambda step: 1.0)[0], time=1795801440.0, clock=3.0, rank=0))
    assert node.fingerprint(host) != first
