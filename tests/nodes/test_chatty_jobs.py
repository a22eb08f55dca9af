"""Jobs that print much, or odd things, are followed in time that grows with what they print, and kept within bounds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

PARTS = [
    "7" * 50,
    "steps:  12%|##| 1/8 [00:00<00:07]",
    "%|",
    "it [",
    "\r",
    "\n",
    "create LoRA for ",
    "saving checkpoint: ",
    "|" * 20,
    " " * 50,
    "é",
]


def test_lines_are_looked_at_only_at_their_beginning(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    follower = part("nodes.jobs.musubi_log").LogFollower(part("nodes.jobs.progress").Progress())
    line = follower._line
    monkeypatch.setattr(follower, "_line", lambda text: (seen.append(len(text)), line(text)))
    for _ in range(100):
        follower.feed(b"7" * 8000)
        assert len(follower._rest) <= 2000 + 8000
    follower.feed(b"\n" + b"1it [" * 20_000 + b"\nsteps:  12%|##| 1/8 [00:00<00:07,  1.10s/it, avr_loss=2.03]\n")
    assert max(seen) <= 2000
    assert (follower.progress.step, follower.progress.total) == (1, 8)


def test_random_logs_and_events_never_end_a_job(part: Any) -> None:
    progress, random_ = part("nodes.jobs.progress").Progress(), random.Random(7)
    follower, events = part("nodes.jobs.musubi_log").LogFollower(progress), part("nodes.jobs.progress").EventFollower(progress)
    kinds = [*part("backend.musubi_backend.events").KINDS, "no such", None]
    names = ("step", "loss", "total", "seconds", "bytes", "file", "path", "what", "done", "title", "text", "outcome", "name", "answer", "v")
    values = [None, True, -1, 1e999, "x", [1], {"a": 1}, 10**20, "\ud800"]
    for _ in range(500):
        follower.feed("".join(random_.choices(PARTS, k=12)).encode())
        event = {"event": random_.choice(kinds), **{name: random_.choice([*values, 1, 2.5]) for name in names}}
        events.feed((json.dumps(event) + "\n" + "[" * random_.randrange(3000) + "\n").encode())
    assert isinstance(progress.text, str) and progress.state in ("running", "saving", "sampling")


def test_a_poll_reads_a_bounded_amount_and_skips_what_is_far_behind(part: Any, tmp_path: Path) -> None:
    runner, folder = part("nodes.jobs.runner"), part("nodes.jobs.folder").JobFolder(tmp_path)
    job = runner.Job(folder, runner.Command([], {}, tmp_path, "musubi-tuner"))
    folder.log.write_bytes(b"x\n" * (4 << 20) + b"steps:  50%|##| 4/8 [00:00<00:07]\n")
    assert runner._read_on(job)
    assert job.progress.step == 4, "the newest words count"
    folder.log.write_bytes(folder.log.read_bytes() + b"y" * 200_000)
    before = job._positions[folder.log]
    runner._read_on(job)
    assert job._positions[folder.log] - before == runner._MOST_PER_POLL


def test_of_events_none_is_skipped_however_many_there_are(part: Any, tmp_path: Path) -> None:
    runner, folder = part("nodes.jobs.runner"), part("nodes.jobs.folder").JobFolder(tmp_path)
    job = runner.Job(folder, runner.Command([], {}, tmp_path))
    padding = "x" * 2000
    events = [json.dumps({"event": "step", "step": step, "total": 900, "loss": 1.0, "padding": padding}) for step in range(1, 701)]
    folder.metrics.write_text("\n".join(events) + '\n{"event": "step", "step": 701, ', encoding="utf-8")
    assert folder.metrics.stat().st_size > runner._MOST_BEHIND
    while runner._read_on(job):
        pass
    assert list(job.progress.losses) == list(range(1, 701))
    with folder.metrics.open("a", encoding="utf-8") as file:
        file.write('"loss": 0.5}\n')
    runner._read_on(job)
    assert job.progress.losses[701] == 0.5


def test_a_job_is_followed_through_a_log_that_begins_anew(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import sys

    runner, folder = part("nodes.jobs.runner"), part("nodes.jobs.folder").JobFolder(tmp_path)
    monkeypatch.setattr(runner, "_LARGEST_LOG", 1000)
    monkeypatch.setattr(runner, "_KEPT_OF_LOG", 100)
    monkeypatch.setattr(runner.durations, "READ", 0.02)
    code = (
        "import pathlib, sys, time\nprint('x' * 3000, flush=True)\n"
        "while not pathlib.Path('log.old.txt').exists(): time.sleep(0.01)\n"
        "print('\\nsteps:  50%|##| 4/8 [00:00<00:07]', flush=True)"
    )

    async def story() -> Any:
        job = await runner.start(folder, runner.Command([sys.executable, "-c", code], {}, tmp_path, "musubi-tuner"))
        await runner.wait(job)
        return job

    job = asyncio.run(story())
    assert (job.returncode, job.progress.step) == (0, 4)
    assert folder.log.stat().st_size < 100 and (tmp_path / "log.old.txt").stat().st_size == 100


def test_a_long_log_begins_anew_and_its_end_is_kept(part: Any, tmp_path: Path) -> None:
    folder = part("nodes.jobs.folder").JobFolder(tmp_path)
    with folder.log.open("ab", buffering=0) as log:
        log.write(b"a" * 900 + b"b" * 200)
        assert not folder.rotate_log(2000, 300)
        assert folder.rotate_log(1000, 300)
        log.write(b"new")
    assert folder.log.read_bytes() == b"new"
    assert (tmp_path / "log.old.txt").read_bytes() == b"a" * 100 + b"b" * 200
