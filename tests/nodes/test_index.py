"""Jobs as the page sees them: from folders alone, read on in as they grow, with every spike, and no number that is none."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from musubi_backend import events
from musubi_backend.events import line_of

Write = Callable[..., Any]


def lines(*said: events.Event, rank: int = 0) -> str:
    return "".join(line_of(event, time=1795801437.0, clock=float(place), rank=rank) for place, event in enumerate(said))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def job(part: Any, home: Path) -> Write:
    """A function: a job's folder with a status, what it said, and a task."""

    def write(state: str = "ended", said: str = "", *, tool: str = "wan_train_network", **status: Any) -> Any:
        folder = part("nodes.jobs.folder").JobFolder.create(home, tool)
        training = {"name": "cat", "run": "cat-1", "endings": [""], "values": {"network_dim": 16, "wandb_api_key": "secret"}}
        folder.write_task({"tool": tool, "training": training if "train" in tool else None})
        folder.write_status(state, **{"outcome": "finished" if state == "ended" else None, **status})
        folder.metrics.write_text(said, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def index(part: Any, home: Path) -> Any:
    return part("nodes.jobs.index").Index(home)


def test_a_training_is_read_on_in_and_its_version_rises(job: Write, index: Any) -> None:
    me = psutil.Process()
    said = lines(events.Start(100, 10, 5, 4), events.Step(11, 100, 1, 0.5, 0.4, 1e-4, 2.0), events.Step(12, 100, 1, 0.3, 0.4, 1e-4, 2.0))
    folder = job("running", said, pid=me.pid, created=me.create_time())
    first = index.job(folder.id)
    assert (first["state"], first["step"], first["total"], first["loss"], first["first_step"]) == ("running", 12, 100, 0.3, 10)
    assert (first["seconds_per_step"], first["seconds_left"], first["epochs"], first["name"]) == (2.0, 176.0, 5, "cat")
    assert index.job(folder.id)["version"] == first["version"]
    with folder.metrics.open("a") as log:
        log.write(lines(events.Step(13, 100, 1, math.nan, 0.4, 1e-4, 2.0), events.Saving("/x/cat-state", "the state", 5))[:-9])
    second = index.job(folder.id)
    assert (second["step"], second["loss"], second["state"]) == (13, None, "running"), "half a line says nothing yet"
    assert second["version"] > first["version"]
    assert set(second["can"]) == {"stop", "kill", "save", "pause", "stop_after_epoch"}
    assert "no sample prompts" in second["cannot"] and second["seconds_left"] == 174.0
    with folder.metrics.open("a") as log:
        log.write("\n" + lines(events.Saving("/x/cat-state", "the state", 5)))
    third = index.job(folder.id)
    assert (third["state"], third["seconds_left"]) == ("saving", None), "what is left is steps, and none is being done"


def test_a_job_whose_process_is_gone_has_ended_as_its_log_says(job: Write, index: Any) -> None:
    dead = {"pid": 2**22 + 5, "created": 1.0}
    said = lines(events.Step(1, 9, 1, 0.5), events.Ended("stopped", "stopped at step 1, state saved"))
    silent = job("running", lines(events.Step(7, 9, 1, 0.5), events.Keep("the steps after step 4")), **dead)
    spoke = job("stopping", said, **dead)
    lost, stopped = index.job(silent.id), index.job(spoke.id)
    assert (lost["state"], lost["outcome"], lost["can"]) == ("ended", "lost", [])
    assert "at step 7" in lost["text"] and "the steps after step 4" in lost["text"]
    assert (stopped["outcome"], stopped["text"]) == ("stopped", "stopped at step 1, state saved")


def test_a_job_whose_process_has_just_gone_ends_as_its_runner_notes(part: Any, job: Write, index: Any) -> None:
    dead, runner = {"pid": 2**22 + 5, "created": 1.0}, part("backend.musubi_backend.process_names").named(os.getpid())
    folder = job("stopping", lines(events.Step(7, 9, 1, 0.5)), **dead, runner=runner)
    assert index.job(folder.id)["state"] == "stopping"
    folder.write_status("ended", outcome="stopped", text="ended at once; lost: the steps after step 4", returncode=-9)
    ended = index.job(folder.id)
    assert (ended["outcome"], ended["text"]) == ("stopped", "ended at once; lost: the steps after step 4")
    silent = job("running", "", **dead, runner=runner, time=time.time() - 300)
    assert index.job(silent.id)["outcome"] == "lost", "its runner could not write how it ended"


def test_a_job_that_nobody_has_noted_as_started_waits_whatever_its_log_says(job: Write, index: Any) -> None:
    found = index.job(job("queued", lines(events.Start(9, 0), events.Step(1, 9, 1, 0.5))).id)
    assert (found["state"], found["pid"], found["can"]) == ("queued", None, ["stop"])


def test_a_log_of_any_length_is_listed_by_its_two_ends(part: Any, job: Write, index: Any) -> None:
    module = part("nodes.jobs.index")
    folder = job("ended", lines(events.Start(5000, 3), *(events.Step(step, 5000, 1, step / 1e4) for step in range(4, 5001))))
    size = folder.metrics.stat().st_size
    assert size > 3 * (module._HEAD + module._TAIL)
    read = index.job(folder.id)
    assert (read["first_step"], read["step"], read["loss"], read["text"]) == (3, 5000, 0.5, "finished at step 5000")
    bars = lines(*(events.Progress(done, 900, "Sampling") for done in range(900)))
    me = psutil.Process()
    said = folder.metrics.read_text() + bars
    samples = index.job(job("sampling", said, pid=me.pid, created=me.create_time()).id)
    assert len(bars) > module._TAIL and (samples["step"], samples["loss"]) == (5000, 0.5), "bars hide no step"


def test_every_spike_is_visible_in_a_few_hundred_buckets(job: Write, index: Any) -> None:
    losses = [0.1 + (step % 7) / 100 for step in range(1, 20_001)]
    losses[7_776] = 42.0
    folder = job("ended", lines(*(events.Step(step, None, 1, loss, lr=1e-4) for step, loss in enumerate(losses, 1))))
    history = index.history(folder.id)
    found = history.between(("loss", "lr", "vram"), None, None, 300)
    assert 250 < len(found["steps"]) <= 300 and found["steps"][-1] == 20_000
    loss = found["series"]["loss"]
    assert max(loss["high"]) == 42.0 and min(loss["low"]) == 0.1
    place = loss["high"].index(42.0)
    assert found["steps"][place] - found["width"] < 7_777 <= found["steps"][place]
    assert all(low <= mean <= high for low, mean, high in zip(loss["low"], loss["mean"], loss["high"], strict=True))
    assert set(found["series"]["vram"]["mean"]) == {None}
    near = history.between(("loss",), 7_770, 7_780, 300)
    assert near["steps"] == list(range(7_770, 7_781)) and near["series"]["loss"]["mean"][7] == 42.0


def test_memory_is_bounded_and_a_spike_survives_it(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = part("nodes.jobs.series")
    monkeypatch.setattr(module, "MOST_POINTS", 64)
    series = module.Series()
    for start in range(0, 4000, 10):
        series.extend(list(range(start, start + 10)), [7.0 if step == 123 else 1.0 for step in range(start, start + 10)])
    assert len(series.values) <= 64 and max(series.values) == 7.0
    assert list(series.steps) == sorted(set(series.steps)) and series.steps[series.values.index(7.0)] == 123


def test_what_is_odd_in_a_log_harms_nothing_else(job: Write, index: Any) -> None:
    good = lines(
        events.Step(1, 9, 1, 0.5, 0.5, 1e-4, 1.0), events.Sample("/s/a.mp4", 1, "a cat", 1), events.Sample("/s/b.mp4", 1, "a dog", 0)
    )
    odd = [
        '{"event": "step", "v": 1, "rank": 0, "step": 2, "loss": NaN, "average": Infinity, "lr": 1e999, "seconds": null}\n',
        '{"event": "step", "step": "3", "loss": 0.1}\n',
        '{"event": "step", broken\n',
        '{"event": "step", "v": 2, "step": 4, "loss": 0.1}\n',
        '{"event": "step", "v": 1, "rank": 0, "step": 1, "loss": 9.0}\n',
        lines(events.Step(5, 9, 1, 0.9), rank=1),
        lines(events.Step(6, 9, 1, 0.25, 0.3, 1e-4, 1.0), events.Memory(6, 10, 20)),
    ]
    folder = job("ended", good + "".join(odd))
    history = index.history(folder.id)
    found = history.between(("loss", "ram"), None, None, 800)
    assert found["steps"] == [1, 6] and found["series"]["loss"]["mean"] == [0.5, 0.25] and found["series"]["ram"]["mean"] == [None, 20.0]
    assert [(made.path, made.prompt) for made in history.files] == [("/s/a.mp4", 1), ("/s/b.mp4", 0)]
    assert history.prompts == {1: "a cat", 0: "a dog"}
    json.dumps(found, allow_nan=False)


def test_old_and_foreign_jobs_are_listed_too(part: Any, home: Path, index: Any) -> None:
    """Those of before there were tasks, those of musubi-tuner, and folders that are none."""
    folder = part("nodes.jobs.folder").JobFolder.create(home, "wan_cache_latents")
    folder.write_status("ended", outcome="failed", error="no such file\nThe whole log: /x")
    foreign = part("nodes.jobs.folder").JobFolder.create(home, "wan_train_network")
    foreign.write_status("ended", outcome="finished", engine="musubi-tuner", step=2, total=2)
    foreign.log.write_text(
        "steps:  50%|█ | 1/2 [00:00<00:07, 1.1s/it, avr_loss=2.5]\rsteps: 100%|█ | 2/2 [00:00<00:07, 1.1s/it, avr_loss=2.0]\n"
    )
    for name in ("x", "..", "20260101-000000-a-xyz"):
        (home / "jobs" / name).mkdir(exist_ok=True)
    found = {one["id"]: one for one in index.jobs()}
    assert set(found) == {folder.id, foreign.id}
    assert (found[folder.id]["kind"], found[folder.id]["text"]) == ("caching", "failed: no such file")
    assert (found[foreign.id]["engine"], found[foreign.id]["step"]) == ("musubi-tuner", 2)
    assert index.history(foreign.id).between(("loss",), None, None, 100)["series"]["loss"]["mean"] == [2.5, 2.0]


@pytest.mark.parametrize(
    ("tool", "kind", "verb", "can"),
    [
        ("tensorboard", "tool", "tensorboard", ["stop"]),
        ("convert_lora", "tool", "convert_lora", ["stop"]),
        ("wan_cache_text_encoder_outputs", "caching", "cache_text", ["stop"]),
        ("wan_generate_video", "generation", "generate", ["stop"]),
        ("wan_train_network", "training", "train", ["stop", "kill"]),
        ("of_another_version", "tool", None, ["stop"]),
    ],
)
def test_only_what_means_something_for_a_kind_of_job_can_be_asked_of_it(
    job: Write, index: Any, tool: str, kind: str, verb: str | None, can: list[str]
) -> None:
    me = psutil.Process()
    alive = {"pid": me.pid, "created": me.create_time()}
    for engine in ("builtin", "musubi-tuner"):
        one = index.job(job("running", tool=tool, engine=engine, **alive).id)
        assert (one["kind"], one["verb"], one["can"]) == (kind, verb, can)
        assert bool(one["cannot"]) == (kind == "training" and engine != "builtin")
    stopping = index.job(job("stopping", tool=tool, **alive).id)
    assert stopping["can"] == ["kill"], "what does not end by itself can be ended"


def test_many_histories_are_not_kept(part: Any, job: Write, index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part("nodes.jobs.index"), "MOST_POINTS", 250)
    folders = [job("ended", lines(*(events.Step(step, 100, 1, 0.5) for step in range(1, 101)))) for _ in range(4)]
    for folder in folders:
        assert index.history(folder.id).last == 100
    assert list(index._histories) == [folder.id for folder in folders[2:]]
    os.rename(folders[3].path, folders[3].path.with_name("gone"))  # noqa: PTH104
    list(index.jobs())
    assert list(index._histories) == [folders[2].id], "what was removed is forgotten"


def test_a_log_is_not_read_on_in_while_its_numbers_are_looked_at(
    part: Any, job: Write, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that numpy looks at cannot grow."""
    folder = job("ended", lines(events.Step(1, None, 1, 0.5)))
    module, history, problems = part("nodes.jobs.history"), index.history(folder.id), []
    bucket = module.buckets

    def read_on() -> None:
        try:
            history.read_on()
        except BufferError as problem:
            problems.append(problem)

    def looking(series: dict[str, Any], *more: int) -> Any:
        view = memoryview(series["loss"].values)
        reader.start()
        reader.join(0.2)
        del view
        return bucket(series, *more)

    monkeypatch.setattr(module, "buckets", looking)
    with folder.metrics.open("a") as log:
        log.write(lines(events.Step(2, None, 1, 0.5)))
    reader = threading.Thread(target=read_on)
    assert history.between(("loss",), None, None, 10)["steps"] == [1]
    reader.join()
    assert problems == [] and history.last == 2
