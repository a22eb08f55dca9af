"""Trainings in the background: a real keeper in a process of its own, or in this one, and a stand-in of the trainer that listens."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

# What ComfyUI does, up to its sudden end: it queues the job of a file, sees to the keeper, and is killed.
COMFYUI = """
import importlib, json, os, signal, sys, types
from pathlib import Path
root, home, noted = sys.argv[1:]
pack = types.ModuleType("some_pack"); pack.__path__ = [root]; sys.modules["some_pack"] = pack
submit, task = (importlib.import_module(f"some_pack.nodes.{name}") for name in ("background.submit", "jobs.task"))
print(submit.add(Path(home), task.read(json.loads(Path(noted).read_text()))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return found


@pytest.fixture
def index(part: Any, bench: Any) -> Any:
    return part("nodes.jobs.index").Index(bench.home)


@pytest.fixture
def quick(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper in this process: it looks often, and no other is started."""
    durations = part("nodes.jobs.durations")
    monkeypatch.setattr(durations, "KEEP", 0.02)
    monkeypatch.setattr(durations, "BETWEEN_JOBS", 0.0)
    monkeypatch.setattr(part("nodes.background.submit"), "see_to_it", lambda home: None)


@pytest.fixture
def ended(bench: Any, part: Any) -> Iterator[None]:
    """At the end of the test no keeper is left."""
    yield
    until(lambda: part("nodes.jobs.queue").keeper(bench.home) is None)


def queue_again(bench: Any, **changes: Any) -> Any:
    return bench.train(run="in the background", **changes)


def keep(part: Any, home: Path) -> None:
    asyncio.run(asyncio.wait_for(part("nodes.background.keeper").Keeper(home).run(), 120))


def test_a_training_in_the_background_leaves_its_lora_where_comfyui_offers_it(bench: Any, part: Any, index: Any, quick: None) -> None:
    bench.plan(warnings=["NOTHING WAS LEARNED"])
    first = queue_again(bench)
    waits = part("nodes.spec").NotYet
    assert all(isinstance(value, waits) for value in first.values[:3]) and "in the background" in first.text
    job = Path(first.values[4]["folder"]).name
    again = queue_again(bench)
    assert Path(again.values[4]["folder"]).name == job, "it is not queued twice"
    assert (index.job(job)["state"], bench.calls) == ("queued", [])
    keep(part, bench.home)
    done = index.job(job)
    assert (done["outcome"], done["background"], done["step"]) == ("finished", True, 1)
    lora = bench.host.loras_dir() / "musubi_tuner" / "my_lora.safetensors"
    assert lora.read_text() == "weights"
    assert queue_again(bench).values[1] == bench.train().values[1] == str(lora)
    assert bench.host.warnings == ["NOTHING WAS LEARNED"]
    assert len(bench.calls) == 1, "what is trained is handed out"


def test_comfyui_killed_leaves_a_training_that_the_next_one_finds_and_stops(
    bench: Any, part: Any, index: Any, ended: None, tmp_path: Path
) -> None:
    bench.plan(until_stopped=True)
    task = part("nodes.jobs.task")
    training = task.Training("cat", "cat-1", ("",), {"output_dir": str(bench.home / "runs" / "cat-1"), "output_name": "cat"})
    noted = tmp_path / "task.json"
    noted.write_text(json.dumps(task.Task("wan_train_network", training=training, background=True).noted()))
    comfyui = subprocess.run(
        [sys.executable, "-c", COMFYUI, str(ROOT), str(bench.home), str(noted)], capture_output=True, text=True, check=False
    )
    assert comfyui.returncode == -signal.SIGKILL, comfyui.stderr
    job = comfyui.stdout.strip()
    found = until(lambda: (now := index.job(job))["state"] == "running" and now)
    keeper = part("nodes.jobs.queue").keeper(bench.home)
    assert os.getsid(keeper) == keeper, "what ends our session does not end it"
    assert psutil.Process(found["pid"]).is_running() and found["can"] == ["stop", "kill"]
    control = part("nodes.monitor.control")
    assert control.state_of_queue(bench.home)["running"] == [job]
    control.ask(index, job, "stop")
    stopped = until(lambda: (now := index.job(job))["state"] == "ended" and now)
    assert (stopped["outcome"], stopped["text"]) == ("stopped", "stopped by stop, state saved")
    assert not psutil.pid_exists(found["pid"])


def test_each_gpu_has_one_job_and_those_of_one_run_follow_each_other(
    bench: Any, part: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.host, "gpus", lambda: ["3", "7"])
    bench.plan(until_stopped=True)
    queue_again(bench, output_name="one")
    queue_again(bench, output_name="one", config_max_train_steps=9)
    for name in ("two", "three"):
        queue_again(bench, output_name=name)
    queue, index = part("nodes.jobs.queue"), part("nodes.jobs.index").Index(bench.home)
    three = queue.waiting(bench.home)[3]
    queue.order(bench.home, [three])

    async def story() -> list[list[str]]:
        keeper = asyncio.ensure_future(part("nodes.background.keeper").Keeper(bench.home).run())
        seen: list[list[str]] = []
        while not keeper.done():
            now = [job for job in index.jobs() if job["state"] == "running" and job["step"]]
            names = sorted(job["name"] for job in now)
            if len(now) == 2 and names not in seen:
                seen.append(names)
                assert sorted(gpu for job in now for gpu in job["gpus"]) == ["3", "7"]
            if len(now) == 2 or (now and not queue.waiting(bench.home)):
                done = min(now, key=lambda job: ("three", "one", "two").index(job["name"]))  # jobs of one second are in no order
                part("nodes.jobs.folder").JobFolder(bench.home / "jobs" / done["id"]).ask("stop")
                await asyncio.sleep(0.3)
            await asyncio.sleep(0.05)
        await keeper
        return seen

    seen = asyncio.run(asyncio.wait_for(story(), 120))
    assert seen[0] == ["one", "three"] and ["one", "one"] not in seen
    places = [json.loads(line) for line in (bench.home / "places.jsonl").read_text().splitlines()]
    assert {name for name, _ in places[:2]} == {"three", "one"} and len(places) == 4
    assert {gpu for _, gpu in places} == {"3", "7"}


def test_a_job_whose_notes_are_damaged_does_not_seem_to_wait_for_ever(bench: Any, part: Any, index: Any, quick: None) -> None:
    jobs = [Path(queue_again(bench, output_name=name).values[4]["folder"]) for name in ("one", "two")]
    (jobs[0] / "task.json").write_text("{")
    keep(part, bench.home)
    damaged, other = (index.job(folder.name) for folder in jobs)
    assert (damaged["state"], damaged["outcome"]) == ("ended", "failed") and "task.json is damaged" in damaged["error"]
    assert other["outcome"] == "finished"


def test_what_says_that_it_waits_and_is_in_no_queue_can_be_taken_out(bench: Any, part: Any, index: Any, quick: None) -> None:
    job = Path(queue_again(bench).values[4]["folder"]).name
    (bench.home / "queue" / "waiting" / job).unlink()
    assert part("nodes.monitor.control").ask(index, job, "stop")["outcome"] == "removed"


def test_what_crashes_is_started_again_as_often_as_is_set(bench: Any, part: Any, quick: None) -> None:
    part("nodes.jobs.config").set_queue(bench.home, {"restarts": 1})
    bench.plan(crashes=True)
    queue_again(bench)
    keep(part, bench.home)
    jobs = list(part("nodes.jobs.index").Index(bench.home).jobs())
    assert sorted((job["attempt"], job["outcome"]) for job in jobs) == [(1, "failed"), (2, "failed")]
    assert all("killed by the system" in job["error"] for job in jobs)
    assert part("nodes.jobs.queue").running(bench.home) == []


def test_an_error_that_explains_itself_is_not_tried_again(bench: Any, part: Any, quick: None) -> None:
    part("nodes.jobs.config").set_queue(bench.home, {"restarts": 5})
    bench.plan(exit=1, log="ERROR: the dataset is empty\n")
    queue_again(bench)
    keep(part, bench.home)
    (job,) = part("nodes.jobs.index").Index(bench.home).jobs()
    assert (job["outcome"], job["text"]) == ("failed", "failed: the dataset is empty")


def test_a_killed_keeper_leaves_a_job_that_saves_and_goes_on_with_the_next_one(bench: Any, part: Any, quick: None) -> None:
    part("nodes.jobs.config").set_queue(bench.home, {"restarts": 1})
    bench.plan(until_stopped=True)
    queue_again(bench)
    index = part("nodes.jobs.index").Index(bench.home)
    (job,) = index.ids()
    keeper = subprocess.Popen([sys.executable, str(ROOT / "nodes" / "background" / "keep.py"), str(bench.home)])
    until(
        lambda: (now := index.job(job))["step"] == 1 and now["state"] == "running"
    )  # killed before it noted that, it has not started the job
    keeper.kill()
    keeper.wait()
    reported = until(lambda: (now := index.job(job))["state"] == "ended" and now)
    assert (reported["outcome"], reported["text"]) == ("stopped", "stopped by the end of its pipe, state saved")
    bench.plan()
    keep(part, bench.home)
    second = next(one for one in index.jobs() if one["id"] != job)
    assert (second["attempt"], second["outcome"]) == (2, "finished")
    assert (bench.host.loras_dir() / "musubi_tuner" / "my_lora.safetensors").is_file()


def test_a_job_whose_keeper_was_killed_before_it_noted_the_process_is_not_started_twice(
    bench: Any, part: Any, index: Any, quick: None
) -> None:
    bench.plan(until_stopped=True)
    job = Path(queue_again(bench).values[4]["folder"]).name
    queue, folder = part("nodes.jobs.queue"), bench.home / "jobs" / job
    queue.take(bench.home, job)
    environment = {**os.environ, "MUSUBITUNER_JOB_DIR": str(folder)}
    trainer = subprocess.Popen([str(bench.program), "--output_name", "my_lora"], env=environment, stdin=subprocess.PIPE)
    assert trainer.stdin is not None
    pipe = trainer.stdin

    async def story() -> list[str]:
        keeper = asyncio.ensure_future(part("nodes.background.keeper").Keeper(bench.home).run())
        while (now := index.job(job))["state"] == "queued":
            await asyncio.sleep(0.02)
        assert now["pid"] == trainer.pid
        pipe.close()
        while trainer.poll() is None:
            await asyncio.sleep(0.02)
        await keeper
        return queue.waiting(bench.home)

    assert asyncio.run(asyncio.wait_for(story(), 120)) == []
    ended = index.job(job)
    assert (ended["outcome"], ended["text"]) == ("stopped", "stopped by the end of its pipe, state saved")
    assert len(bench.calls) == 1


def test_a_queue_that_cannot_be_changed_ends_no_training(
    bench: Any, part: Any, index: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.host, "gpus", lambda: ["3", "7"])
    bench.plan(until_stopped=True)
    first, second = (Path(queue_again(bench, output_name=name).values[4]["folder"]).name for name in ("one", "two"))
    folder, running = part("nodes.jobs.folder").JobFolder, bench.home / "queue" / "running"

    async def story() -> str:
        keeper = asyncio.ensure_future(part("nodes.background.keeper").Keeper(bench.home).run())
        while not all(index.job(job)["step"] for job in (first, second)):
            await asyncio.sleep(0.02)
        (running / first).unlink()
        (running / first).mkdir()  # so that its end cannot be settled
        folder(bench.home / "jobs" / first).ask("stop")
        while index.job(first)["state"] != "ended":
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert not keeper.done()
        folder(bench.home / "jobs" / second).ask("save")
        await asyncio.sleep(0.2)
        between = str(index.job(second)["text"])
        folder(bench.home / "jobs" / second).ask("stop")
        await keeper
        return between

    asyncio.run(asyncio.wait_for(story(), 120))
    assert index.job(second)["text"] == "stopped by save, state saved", "it heard what was asked, not the end of its pipe"


def test_a_job_that_was_taken_does_not_come_back_by_being_ordered(
    bench: Any, part: Any, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = part("nodes.jobs.queue")
    job = Path(queue_again(bench).values[4]["folder"]).name
    before = queue.waiting(bench.home)
    queue.take(bench.home, job)  # by the keeper, after the order was read
    monkeypatch.setattr(queue, "waiting", lambda home: before)
    queue.order(bench.home, [job])
    assert (list((bench.home / "queue" / "waiting").iterdir()), queue.running(bench.home)) == ([], [job])


@pytest.mark.parametrize("where", ["here", "in the background"])
def test_a_lora_that_cannot_be_kept_for_later_is_handed_out_all_the_same(where: str, bench: Any, part: Any, quick: None) -> None:
    """A home without room, at the end of hours."""
    bench.train()
    (name,) = bench.runs
    run, lora = bench.home / "runs" / name, bench.host.loras_dir() / "musubi_tuner" / "my_lora.safetensors"
    for path in (run / "results", run, lora):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for place in ("run.json", "loss.svg"):
        (run / place).mkdir(parents=True)
    (run / "results").write_text("in the way")
    done = bench.train(run=where)
    if where == "here":
        assert any("is not kept for later" in text for text in bench.host.warnings) and "no loss curve" in str(bench.host.warnings)
        assert done.values[1] == str(lora)
    else:
        keep(part, bench.home)
        log = (Path(done.values[4]["folder"]) / "log.txt").read_text()
        assert "ERROR: my_lora is not kept for later" in log and "ERROR: the losses could not be noted" in log
    assert lora.read_text() == "weights"


@pytest.mark.parametrize(("meanwhile", "said"), [("wait", ": waiting for its end"), ("warn", "has the GPU"), ("go_ahead", "")])
def test_a_generation_meanwhile_does_as_it_is_set(meanwhile: str, said: str, bench: Any, part: Any, quick: None) -> None:
    part("nodes.jobs.config").set_queue(bench.home, {"generation": meanwhile})
    queue, me = part("nodes.jobs.queue"), psutil.Process()
    queue_again(bench, output_name="other")
    (job,) = queue.waiting(bench.home)
    queue.take(bench.home, job)
    folder = part("nodes.jobs.folder").JobFolder(bench.home / "jobs" / job)
    folder.write_status("running", pid=me.pid, created=me.create_time())
    shown: list[str] = []

    def progress(value: float, total: float, text: str, preview: Path | None = None) -> None:
        shown.append(text)
        if "waiting for its end" in text:
            folder.write_status("ended", outcome="finished")

    bench.host.progress = progress
    bench.train()
    assert len(bench.calls) == 1
    about = [text for text in shown if "in the background has the GPU" in text]
    assert [said in text for text in about] == [True] * len(about) and bool(about) == bool(said)
    assert ("waiting" in "".join(about)) == (meanwhile == "wait")
