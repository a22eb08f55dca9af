"""A running training is asked to save, to make samples, to pause: it does at the end of its step, says so, and trains the same bits."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend import events, job
from musubi_backend.demo.models import write_models
from musubi_backend.errors import UserError
from musubi_backend.training import checkpoints, due

BACKEND = Path(__file__).resolve().parents[2] / "backend"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[events.Request]]:
    """What became of the requests. The job's folder is `tmp_path`."""
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # nobody writes to our stdin
    monkeypatch.setattr(job, "_answering", job.threading.Lock())
    job.take_requests()
    return lambda: [one for one in events.read(tmp_path / events.FILE_NAME) if isinstance(one, events.Request) and one.answer != "heard"]


def ask(monkeypatch: pytest.MonkeyPatch, at: dict[int, list[str]], while_paused: list[str]) -> list[float]:
    """Lines that come on stdin: in the course of a step, and one at every look of a paused training. Returns the looks."""
    looks: list[float] = []

    class Person(due.Due):
        def after_step(self, done: due.Done) -> None:
            for word in at.get(self.loop.position.step, []):
                job._hear(word)

    def look(seconds: float) -> None:
        looks.append(seconds)
        word = while_paused.pop(0)
        job.request_stop() if word == events.STOP else job._hear(word)

    monkeypatch.setattr(due, "KINDS", (Person, *due.KINDS))
    monkeypatch.setattr(due, "time", SimpleNamespace(sleep=look, monotonic=time.monotonic))
    return looks


def test_what_is_due_is_a_list_that_can_be_added_to(project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Mine(due.Due):
        def after_step(self, step: due.Done) -> due.Work | None:
            assert step.loss > 0 and step.rates == [0.01]
            number = self.loop.position.step
            return (lambda: done.append(number)) if number % 3 == 0 else None

        def after_epoch(self, epoch: int) -> due.Work | None:
            return lambda: done.append(f"epoch {epoch}")

    project.train("plain", max_train_steps=6)
    monkeypatch.setattr(due, "KINDS", (*due.KINDS, Mine))
    project.train("more", max_train_steps=6)
    assert done == [3, "epoch 1", 6, "epoch 2"]
    assert same.bits(project.lora("more"), project.lora("plain"))


def test_requests_are_done_at_the_end_of_the_step_and_change_no_bit(
    project: Any, same: SimpleNamespace, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_train_steps": 7, "network_dropout": 0.1, "gradient_accumulation_steps": 3}
    project.train("whole", **settings)
    with monkeypatch.context() as patch:
        looks = ask(patch, {2: ["save"], 3: ["resume", "pause", "dance"]}, ["sample", "pause", "save", "resume"])
        out = project.train("asked", **settings)
    answers = [(one.name, one.answer, one.step) for one in log()]
    assert answers == [
        ("save", "done", 2), ("dance", "ignored", 0), ("resume", "ignored", 3), ("pause", "done", 3), ("sample", "ignored", 3),
        ("pause", "ignored", 3), ("save", "done", 3), ("resume", "done", 3),
    ]  # fmt: skip
    assert len(looks) == 4
    assert same.bits(project.lora("asked"), project.lora("whole"))
    assert all((out / f"cat-step0000000{step}{end}").exists() for step in (2, 3) for end in (".safetensors", "-state"))
    project.train("resumed", resume=out / "cat-step00000002-state", **settings)
    assert same.bits(project.lora("resumed"), project.lora("whole"))


def test_a_stop_at_the_end_of_the_epoch_comes_after_what_is_due_there(
    project: Any, same: SimpleNamespace, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_train_steps": 7, "save_every_n_epochs": 1}
    project.train("whole", **settings)
    with monkeypatch.context() as patch:
        ask(patch, {1: ["stop_after_epoch"], 2: ["stop_after_epoch"]}, [])
        assert project.refused("asked", **settings) == 3
    epoch = next(one.step for one in log() if one.answer == "done")
    assert 2 < epoch < 7
    assert [(one.answer, one.step) for one in log()] == [("ignored", 2), ("done", epoch)]
    out = project.folder / "out/asked"
    assert (out / "cat-000001.safetensors").is_file(), "what was due at the end of the epoch is saved"
    job._stop.clear()
    project.train("asked", resume=out / f"cat-step{epoch:08d}-state", **settings)
    assert same.bits(project.lora("asked"), project.lora("whole"))
    with monkeypatch.context() as patch:
        ask(patch, {6: ["stop_after_epoch"]}, [])
        project.train("last", **settings)
    assert same.bits(project.lora("last"), project.lora("whole")), "the last epoch ends by itself"


def test_a_stop_ends_a_pause_and_what_was_asked_for_stays(project: Any, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stop alone saved goes when a later state is whole; what somebody asked for does not, also where the stop comes at once."""
    with monkeypatch.context() as patch:
        ask(patch, {2: ["save", "pause"]}, [events.STOP])
        assert project.refused("part") == 3
    job._stop.clear()
    out = project.train("part", "--save_state_on_train_end", resume=project.folder / "out/part/cat-step00000002-state")
    assert (out / "cat-step00000002-state").is_dir() and (out / "cat-step00000002.safetensors").is_file()


@pytest.mark.parametrize(("at", "answer"), [(2, "done"), (0, "ignored")])
def test_a_save_and_a_stop_in_the_same_step_are_one_save_that_stays(
    project: Any, log: Any, monkeypatch: pytest.MonkeyPatch, at: int, answer: str
) -> None:
    class Both(due.Due):
        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            self.after_step(None)

        def after_step(self, done: due.Done | None) -> None:
            if self.loop.position.step == at:
                job._hear("save")
                job._hear("sample")
                job.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr(due, "KINDS", (*due.KINDS, Both))
        assert project.refused("both") == 3
    job._stop.clear()
    assert [(one.name, one.answer, one.step) for one in log()] == [("save", answer, at), ("sample", "ignored", 0)]
    out = project.folder / "out/both"
    if at:
        project.train("both", "--save_state_on_train_end", resume=out / "cat-step00000002-state")
        assert (out / "cat-step00000002-state").is_dir() and (out / "cat-step00000002.safetensors").is_file()


def test_a_save_that_was_asked_for_and_fails_ends_no_training(
    project: Any, same: SimpleNamespace, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise UserError("the disk is full")

    project.train("whole", max_train_steps=4)
    with monkeypatch.context() as patch:
        ask(patch, {2: ["save"]}, [])
        patch.setattr(checkpoints.Checkpoints, "save_state", full)
        project.train("asked", max_train_steps=4)
    assert [(one.answer, one.text) for one in log() if one.name == "save" and one.step == 2] == [("ignored", "the disk is full")]
    assert same.bits(project.lora("asked"), project.lora("whole"))


@pytest.mark.slow
def test_a_training_is_asked_through_the_runner(
    project: Any, build: SimpleNamespace, same: SimpleNamespace, part: Any, tmp_path: Path, backend_python: str
) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    models = write_models(project.folder / "models")
    project.config, project.dit = build.caches(project.folder, clips=2, frames=5, side=32, text_dim=64), models["dit"]
    prompts = project.folder / "prompts.txt"
    prompts.write_text("a cat --w 32 --h 32 --f 5 --s 2 --d 3 --l 1\n", encoding="utf-8")
    settings = {"vae": models["vae"], "t5": models["t5"], "sample_prompts": prompts, "max_train_steps": 4}
    project.train("whole", max_train_steps=4)
    runner, environment = part("nodes.jobs.runner"), part("nodes.jobs.environment")
    folder = part("nodes.jobs.folder").JobFolder.create(tmp_path, "wan_train_network")
    command = runner.Command(
        [backend_python, "-m", "musubi_backend", *project.argv("asked", **settings)],
        environment.child_environment(str(folder.path), {"PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1"}),
        folder.path,
    )

    async def story() -> Any:
        job = await runner.start(folder, command)

        async def answered(name: str, answer: str = "done") -> int:
            """Waits for it, or for the end of the job."""
            while True:
                for one in job.progress.requests:
                    if (one.name, one.answer) == (name, answer):
                        return int(one.step)
                assert not job.ended, job.error()
                await asyncio.sleep(0.02)

        assert await runner.request(job, "pause")
        step = await answered("pause")
        out = project.folder / "out/asked"
        for name in ("save", "sample"):
            await runner.request(job, name)
            assert await answered(name) == step
        assert list(out.glob("sample/*.mp4")) and (out / f"cat-step{step:08d}-state").is_dir()
        assert (out / f"cat-step{step:08d}.safetensors").is_file()
        with pytest.raises(ValueError, match="unknown request dance"):
            await runner.request(job, "dance")
        assert (await asyncio.to_thread(folder.status))["state"] != "ended"
        assert await runner.request(job, "resume")
        await runner.wait(job)
        assert not await runner.request(job, "save"), "nobody listens"
        return job

    job_ = asyncio.run(story())
    status = folder.status()
    assert (job_.returncode, status["state"], status["outcome"], status["step"]) == (0, "ended", "finished", 4)
    assert list(job_.progress.losses) == [1, 2, 3, 4] and job_.progress.sample
    assert same.bits(project.lora("asked"), project.lora("whole"))


@pytest.mark.slow
def test_two_processes_do_together_what_one_of_them_was_asked(
    project: Any, build: SimpleNamespace, tmp_path: Path, backend_python: str
) -> None:
    """They read one pipe, as a launcher leaves it to them, so each request reaches either of them."""
    for package in ("accelerate", "diffusers", "transformers"):
        pytest.importorskip(package)
    models = write_models(project.folder / "models")
    project.config, project.dit = build.caches(project.folder, clips=4, frames=5, side=32, text_dim=64), models["dit"]
    prompts = project.folder / "prompts.txt"
    prompts.write_text("a cat --w 32 --h 32 --f 5 --s 2 --d 3 --l 1\n", encoding="utf-8")
    settings = {"vae": models["vae"], "t5": models["t5"], "sample_prompts": prompts, "max_train_steps": 1000}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = {**os.environ, **group, "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1", job.JOB_DIR_VARIABLE: str(tmp_path)}
    reading, writing = os.pipe()
    processes = [
        subprocess.Popen(
            [backend_python, "-m", "musubi_backend", *project.argv("asked", **settings)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )
        for rank in range(2)
    ]  # fmt: skip
    os.close(reading)

    def reported(kind: type[events.Event]) -> list[Any]:
        return [event for event in events.read(tmp_path / events.FILE_NAME) if isinstance(event, kind)]

    def answered(name: str) -> int:
        os.write(writing, f"{name}\n".encode())
        while not (found := [one for one in reported(events.Request) if (one.name, one.answer) == (name, "done")]):
            assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
            time.sleep(0.05)
        return int(found[0].step)

    while not reported(events.Step):
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.05)
    step = answered("pause")
    assert answered("save") == answered("sample") == answered("resume") == step, "nothing is trained meanwhile"
    last = answered("stop_after_epoch")
    printed = [process.communicate()[0] for process in processes]
    os.close(writing)
    assert [process.returncode for process in processes] == [3, 3], "\n".join(printed)
    out = project.folder / "out/asked"
    assert last % 2 == 0 and last > step, "an epoch of four clips is two steps of two processes"
    for at in (step, last):
        assert (out / f"cat-step{at:08d}-state").is_dir() and (out / f"cat-step{at:08d}.safetensors").is_file()
    assert len(list(out.glob("sample/*.mp4"))) == 1, "one of them makes samples"
    assert [(one.rank, one.outcome) for one in sorted(reported(events.Ended), key=lambda one: one.rank)] == [(0, "stopped"), (1, "stopped")]
