"""What a node says of a job while it runs, when it is stopped, and when it has ended."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import psutil
import pytest


class Shown:
    """A host that remembers what it was reported, and interrupts when `interrupts` says so."""

    def __init__(self, *interrupts: BaseException | None) -> None:
        self.reported: list[tuple[float, float, str, Path | None]] = []
        self.interrupts = list(interrupts)

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        self.reported.append((value, total, text, preview))

    def check_interrupted(self) -> None:
        interrupt = self.interrupts.pop(0) if self.interrupts else None
        if interrupt is not None:
            raise interrupt


@pytest.fixture
def job(part: Any, tmp_path: Path) -> Any:
    """A job that nobody started, with a log to write into."""
    runner = part("nodes.jobs.runner")
    return runner.Job(part("nodes.jobs.folder").JobFolder(tmp_path), runner.Command([], {}, tmp_path))


def test_progress_goes_out_with_note_numbers_and_an_image_that_is_there(part: Any, job: Any, tmp_path: Path) -> None:
    publish, shown, sample = part("nodes.jobs.follow").publish, Shown(), tmp_path / "a.png"
    publish(shown, job, "", None)
    assert shown.reported[-1] == (0.0, 1.0, "starting", None), "a bar of nothing would divide by 0"
    job.progress.step, job.progress.total, job.progress.phase = 3, 12, "training"
    publish(shown, job, "continuing", str(sample))
    assert shown.reported[-1] == (3.0, 12.0, "training · 3/12 · continuing", None)
    sample.write_bytes(b"png")
    publish(shown, job, "", str(sample))
    assert shown.reported[-1] == (3.0, 12.0, "training · 3/12", sample)
    job.progress.step = 15
    publish(shown, job, "", None)
    assert shown.reported[-1][:2] == (15.0, 15.0)


def test_several_jobs_are_one_bar_and_a_line_of_all(part: Any) -> None:
    shown = Shown()
    joined = part("nodes.jobs.follow")._Joined(shown, 3)
    joined.part(0).progress(1, 2, "first")
    joined.part(2).progress(3, 4, "third", Path("x.png"))
    joined.part(1).progress(0, 0, "second")
    assert [one[:3] for one in shown.reported] == [(0.5, 3.0, "first"), (1.25, 3.0, "first | third"), (1.25, 3.0, "first | second | third")]
    assert shown.reported[1][3] == Path("x.png")


def test_each_of_several_jobs_gets_every_interrupt_once_and_in_order(part: Any) -> None:
    first, second = KeyboardInterrupt("first"), KeyboardInterrupt("second")
    joined = part("nodes.jobs.follow")._Joined(Shown(first, None, None, second), 2)
    one, other = joined.part(0), joined.part(1)
    got: list[list[object]] = [[], []]
    for number, watcher in enumerate((one, other, one, other, one, other)):
        try:
            watcher.check_interrupted()
        except KeyboardInterrupt as interrupt:
            got[number % 2].append(interrupt)
    assert got == [[first, second], [first, second]]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "stopping · waiting for its answer · 2 s · cancel again to end it at once"),
        ({"heard": True}, "stopping · it was heard and ends what it is in the middle of · 2 s · cancel again to end it at once"),
        (
            {"heard": True, "file": "cat-state", "content": "the state", "bytes": 412_000_000, "expected": 1_800_000_000},
            "stopping · saving the state, 1.8 GB (412 MB so far) · 2 s · cancel again to end it at once",
        ),
        (
            {"heard": True, "file": "/runs/cat.safetensors", "bytes": 1_600_000},
            "stopping · writing cat.safetensors (2 MB so far) · 2 s · cancel again to end it at once",
        ),
    ],
)
def test_what_stopping_waits_for_is_said(part: Any, job: Any, state: dict[str, Any], words: str) -> None:
    for name, value in state.items():
        setattr(job.progress, name, value)
    assert part("nodes.jobs.follow")._stopping(job, 2.4) == words
    job.hurried = True
    assert part("nodes.jobs.follow")._stopping(job, 2.4) == "ending it at once"


@pytest.mark.parametrize(
    ("code", "state", "log", "words"),
    [
        (3, {"outcome": "saved at step 7"}, "", "saved at step 7"),
        (0, {"keep": "7 steps"}, "", "it had just finished"),
        (3, {}, "", "stopped; nothing was lost"),
        (-15, {"keep": "7 steps"}, "", "stopped; lost: 7 steps"),
        (1, {"heard": True}, "ERROR: the disk is full\n", "stopped, and nothing more was saved: the disk is full"),
        (1, {"heard": False}, "ERROR: the disk is full\n", "stopped; nothing was lost"),
        (1, {"heard": True}, "ended\n", "stopped; nothing was lost"),
    ],
)
def test_how_a_stopped_job_ended_is_said(job: Any, code: int, state: dict[str, Any], log: str, words: str) -> None:
    job.folder.log.write_text(log, encoding="utf-8")
    job.returncode = code
    for name, value in state.items():
        setattr(job.progress, name, value)
    assert job.outcome().partition("\n")[0] == words
    if code != 0 and not state.get("outcome"):
        job.hurried = True
        assert job.outcome() == ("ended at once; lost: 7 steps" if state.get("keep") else "ended at once; nothing was lost")


@pytest.mark.parametrize(
    ("code", "stopping", "stopped"), [(None, True, False), (0, False, False), (1, False, False), (3, False, True), (-15, True, True)]
)
def test_a_job_is_stopped_when_it_was_asked_to_or_says_so(job: Any, code: int | None, stopping: bool, stopped: bool) -> None:
    job.returncode, job.stopping = code, stopping
    assert job.stopped is stopped


@pytest.mark.parametrize(
    ("code", "log", "words"),
    [
        (1, "", "it ended with code 1"),
        (-9, "loading\n", "it was killed by the system, most often because memory ran out"),
        (137, "", "it was killed by the system, most often because memory ran out"),
        (-11, "loading\n", "it crashed (segmentation fault), most often a driver or library that does not fit"),
        (139, "", "it crashed (segmentation fault), most often a driver or library that does not fit"),
        (3221225477, "", "it crashed (segmentation fault), most often a driver or library that does not fit"),
        (-9, "ERROR: the disk is full\n", "the disk is full"),
        (1, "one\ntwo\nthree\nfour\n", "two\nthree\nfour"),
        (1, "\n\n", "it ended with code 1"),
        (1, "OSError: [Errno 28] No space left on device", "The disk is full. Free some space and run again."),
    ],
)
def test_why_a_job_failed_is_its_last_error_or_what_its_code_means(job: Any, code: int, log: str, words: str) -> None:
    job.folder.log.write_text(log, encoding="utf-8")
    job.returncode = code
    message, _, place = job.error().rpartition("\nThe whole log: ")
    assert message.endswith(words) and (message == words or "28" in log) and place == str(job.folder.log)


def test_flags_become_widgets_in_the_error_of_a_node(part: Any, job: Any) -> None:
    error, ended = part("backend.musubi_backend.errors").UserError, part("nodes.jobs.follow")._succeeded
    job.folder.log.write_text("ERROR: --dit x is a VAE; --seed too\n", encoding="utf-8")
    job.returncode = 1
    with pytest.raises(error, match=r"^dit x is a VAE; training_seed too\nThe whole log"):
        ended("wan_train_network", job)
    job.returncode = 3
    job.progress.outcome = "stopped at step 3, state saved"
    with pytest.raises(part("nodes.spec").Stopped, match=r"^wan_train_network was stopped from outside; run again to") as stopped:
        ended("wan_train_network", job)
    assert stopped.value.line == "stopped at step 3, state saved"
    job.returncode = 0
    assert ended("wan_train_network", job) is job


def test_a_state_that_cannot_be_noted_ends_no_job(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    job.folder.write_status("running", pid=os.getpid())
    assert job.folder.status()["pid"] == os.getpid() and job.folder.status()["state"] == "running"
    (job.folder.path / "status.json").unlink()
    (job.folder.path / "status.json").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # a heartbeat goes on
            job.folder.write_status("running")
    assert caplog.text.count("status.json could not be written") == 1


def test_a_job_whose_process_is_gone_has_ended_though_nobody_noted_it(job: Any) -> None:
    """Also where its pid is another's by now, as after a restart of the machine."""
    own = psutil.Process().create_time()
    job.folder.write_status("saving", pid=os.getpid(), created=own)
    assert job.folder.status()["state"] == "saving"
    job.folder.write_status("saving", pid=os.getpid(), created=own - 3600)
    assert (job.folder.status()["state"], job.folder.status()["outcome"]) == ("ended", "lost")
    job.folder.write_status("running", pid=2**22 + 1, created=own)
    assert (job.folder.status()["state"], job.folder.status()["outcome"]) == ("ended", "lost")
    job.folder.write_status("ended", pid=2**22 + 1, created=own, outcome="finished")
    assert job.folder.status()["outcome"] == "finished"


def test_the_life_of_a_job_follows_its_events(job: Any) -> None:
    def after(event: str) -> str:
        job._events.feed(f"{{{event}}}\n".encode())
        return str(job.state)

    assert job.state == "starting"
    assert after('"event": "start", "total": 9') == "running"
    assert after('"event": "saving", "path": "/runs/cat-state", "content": "the state", "bytes": 1800000000') == "saving"
    assert job.progress.text == "saving the state, 1.8 GB · 0/9"
    assert after('"event": "saved", "path": "/runs/cat-state"') == "running"
    assert after('"event": "sampling", "step": 3') == "sampling"
    assert after('"event": "progress", "done": 1, "total": 3, "title": "Sampling timesteps for prompt 1"') == "sampling"
    assert job.progress.text == "Sampling timesteps for prompt 1 1/3 · 0/9"
    assert after('"event": "step", "step": 4, "total": 9') == "running"
    assert after('"event": "phase", "rank": 1, "text": "the other process"') == "running" and job.progress.phase == "training"
    assert after('"event": "stopping"') == "stopping"
    assert after('"event": "saving", "path": "/runs/cat-state"') == "stopping"
    job.ended = True
    assert job.state == "ended"


def test_only_the_end_of_a_long_log_is_looked_at(part: Any, tmp_path: Path) -> None:
    log, read_tail = tmp_path / "log.txt", part("nodes.jobs.errors").read_tail
    assert read_tail(log) == ""
    log.write_bytes(b"ERROR: long ago\n" + b"x" * (256 * 1024 - 4) + b"\r\na\rb")
    assert read_tail(log)[-4:] == "\na\nb" and "ERROR" not in read_tail(log) and len(read_tail(log)) < 256 * 1024
