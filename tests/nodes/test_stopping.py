"""Stopping a job: who has something to lose is waited for, shown, and ended at once when asked a second time."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend import job as backend_job

BACKEND = Path(__file__).resolve().parents[2] / "backend"

HEAD = """
import sys, threading, time
from pathlib import Path
from musubi_backend import job
from musubi_backend.errors import StopRequested
here = Path(job.folder())
job.durations.BEAT = 0.01
job.watch_for_stop()
def until(name):
    while not (here / name).exists():
        time.sleep(0.01)
"""
SAVES_SLOWLY = """
job.keep("the steps after step 3")
(here / "ready").touch()
while not job.stop_requested():
    time.sleep(0.01)
part = here / "cat-state.part"
with job.saving(here / "cat-state", "the state", 1_800_000_000), job.writing("cat-state", part):
    part.write_bytes(bytes(2_000_000))
    until("disk is quick again")
    part.rename(here / "cat-state")
job.keep("")
job.ended("stopped", "stopped at step 4, state saved (run again to continue)")
sys.exit(3)
"""
SAVES_TWO_FILES = """
job.keep("the steps after step 3")
(here / "ready").touch()
while not job.stop_requested():
    time.sleep(0.01)
time.sleep(0.3)  # the runner notes when it asked
(here / "much later").touch()
until("looked at much later")
job.keep("")
(here / "between two files").touch()
until("looked at between two files")
with job.saving(here / "cat.safetensors", "the LoRA", 2_000_000):
    (here / "cat.safetensors").touch()
job.ended("stopped", "stopped at step 4, state saved (run again to continue)")
sys.exit(3)
"""
NEVER_ANSWERS = """
job.keep("the steps after step 3")
(here / "ready").touch()
time.sleep(3000)
"""
LOADS_FOR_EVER = """
(here / "ready").touch()
time.sleep(3000)
"""
FAILS_TO_SAVE = """
job.keep("the steps after step 3")
(here / "ready").touch()
while not job.stop_requested():
    time.sleep(0.01)
until("disk is quick again")
print("ERROR: cat-state could not be written: the disk is full", file=sys.stderr)
sys.exit(1)
"""


class Interrupted(Exception):
    """What a host raises when its user presses cancel."""


class Person:
    """A host whose user presses cancel when `when(text)` says so, once for every function given."""

    def __init__(self, *when: Callable[[str], object]) -> None:
        self.when, self.texts = list(when), [""]

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        self.texts.append(text)

    def check_interrupted(self) -> None:
        if self.when and self.when[0](self.texts[-1]):
            self.when.pop(0)
            raise Interrupted


@pytest.fixture
def follow(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Follow a program until the person's interrupt comes out. Returns its job."""
    following, runner = part("nodes.jobs.follow"), part("nodes.jobs.runner")
    monkeypatch.setattr(runner.durations, "GRACE", 0.0)  # no wait here is for the clock
    folder = part("nodes.jobs.folder").JobFolder.create(tmp_path, "some_tool")
    environment = part("nodes.jobs.environment").child_environment(str(folder.path), {"PYTHONPATH": str(BACKEND)})

    def run(person: Person, code: str) -> Any:
        command = runner.Command([sys.executable, "-c", HEAD + textwrap.dedent(code)], environment, folder.path)
        ended: list[Any] = []
        with pytest.raises(Interrupted):
            asyncio.run(following._follow(person, folder, command, "", ended.append))
        return ended[0]

    run.folder = folder.path  # type: ignore[attr-defined]
    return run


def test_what_is_saved_slowly_is_waited_for_and_shown(follow: Any) -> None:
    def seen(text: str) -> bool:
        return (follow.folder / "ready").exists()

    def writes(text: str) -> bool:
        if text.startswith("stopping · saving the state, 1.8 GB (2 MB so far)"):
            (follow.folder / "disk is quick again").touch()
        return False

    person = Person(seen, writes)
    job = follow(person, SAVES_SLOWLY)
    assert (follow.folder / "cat-state").exists() and job.returncode == 3
    assert person.texts[-1] == "stopped at step 4, state saved (run again to continue)"
    status = job.folder.status()
    assert (status["state"], status["outcome"]) == ("ended", "stopped")


def test_between_two_files_that_a_stop_saves_it_is_not_ended(follow: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real state takes seconds to write; the LoRA behind it was lost where a look fell between the two."""
    runner, looks = part("nodes.jobs.runner"), [0]

    def clock() -> float:
        if not (follow.folder / "much later").exists():
            return time.monotonic()
        (follow.folder / "looked at much later").touch()
        if (follow.folder / "between two files").exists():
            looks[0] += 1
            if looks[0] > 9:
                (follow.folder / "looked at between two files").touch()
        return time.monotonic() + 100

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=clock, time=time.time))
    monkeypatch.setattr(runner.durations, "GRACE", 60.0)
    person = Person(lambda text: (follow.folder / "ready").exists())
    assert follow(person, SAVES_TWO_FILES).returncode == 3
    assert (follow.folder / "cat.safetensors").exists()
    assert person.texts[-1] == "stopped at step 4, state saved (run again to continue)"


def test_a_second_cancel_ends_it_at_once(follow: Any) -> None:
    person = Person(lambda text: (follow.folder / "ready").exists(), lambda text: "cancel again" in text)
    job = follow(person, NEVER_ANSWERS)
    assert job.returncode < 0
    assert person.texts[-1] == job.folder.status()["text"] == "ended at once; lost: the steps after step 3"


def test_a_job_with_nothing_to_lose_is_not_waited_for(follow: Any) -> None:
    person = Person(lambda text: (follow.folder / "ready").exists())
    assert follow(person, LOADS_FOR_EVER).returncode < 0
    assert person.texts[-1] == "stopped; nothing was lost"


def test_a_save_that_fails_is_reported_with_its_reason(follow: Any) -> None:
    def heard(text: str) -> bool:
        if "it was heard" in text:
            (follow.folder / "disk is quick again").touch()
        return False

    person = Person(lambda text: (follow.folder / "ready").exists(), heard)
    follow(person, FAILS_TO_SAVE)
    assert person.texts[-1].startswith("stopped, and nothing more was saved: cat-state could not be written: the disk is full")


def test_an_interrupt_reaches_every_job_of_a_batch(part: Any) -> None:
    """Each counts the first as its own, and none takes another's first for its second."""
    presses = iter([True, False, True, False, False])

    class Host:
        def check_interrupted(self) -> None:
            if next(presses):
                raise Interrupted

    joined = part("nodes.jobs.follow")._Joined(Host(), 2)
    one, other = joined.part(0), joined.part(1)
    for watcher in (one, other, one, other):
        with pytest.raises(Interrupted):
            watcher.check_interrupted()
    one.check_interrupted()


def test_what_musubi_tuner_writes_is_waited_for(part: Any) -> None:
    progress = part("nodes.jobs.progress").Progress()
    follower = part("nodes.jobs.musubi_log").LogFollower(progress)
    follower.feed(b"\nsaving checkpoint: /out/cat-step00000002.safetensors\n")
    assert progress.file.endswith("cat-step00000002.safetensors") and progress.state == "saving"
    follower.feed(b"\rsteps:  25%|##  | 2/8 [00:00<00:00, 1.00it/s, avr_loss=0.1]\r")
    assert progress.file == "" and progress.state == "running"


def test_events_end_nothing_when_the_disk_is_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend_job.JOB_DIR_VARIABLE, str(small_disk))
    (small_disk / "filler").write_bytes(bytes(2 * 2**20 - 8192))
    for _ in range(2000):
        backend_job.phase("x" * 100)
    assert (small_disk / "metrics.jsonl").stat().st_size < 2000 * 100, "there was no room for all"
