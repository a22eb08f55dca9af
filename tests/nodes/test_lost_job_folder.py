"""A job folder that is taken away, or cannot be written: the job continues to its end, and only its log and progress are lost."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import job as backend_job
from musubi_backend.training.settings import LoggingSettings
from musubi_backend.training.trackers import Trackers

WORK = """
import sys, time
from pathlib import Path
go_on, result = map(Path, sys.argv[1:])
while not go_on.exists():
    time.sleep(0.02)
result.write_text("trained")
"""


@pytest.mark.parametrize("instead", ["nothing", "folders", "a file"])
def test_a_job_outlives_its_folder(instead: str, part: Any, tmp_path: Path) -> None:
    runner, folder = part("nodes.jobs.runner"), part("nodes.jobs.folder").JobFolder.create(tmp_path, "some_tool")
    go_on, result = tmp_path / "continue", tmp_path / "result"
    environment = part("nodes.jobs.environment").child_environment(str(folder.path))

    async def story() -> Any:
        job = await runner.start(folder, runner.Command([sys.executable, "-c", WORK, str(go_on), str(result)], environment, tmp_path))
        shutil.rmtree(folder.path)
        if instead == "folders":
            for path in (folder.log, folder.metrics):
                path.mkdir(parents=True)
        elif instead == "a file":
            folder.path.write_text("in its place")
        await asyncio.sleep(3 * runner.durations.READ)
        go_on.touch()
        await runner.wait(job)
        return job

    job = asyncio.run(story())
    assert (job.returncode, result.read_text()) == (0, "trained")
    assert "it printed nothing" in job.error() or "ended with code 0" in job.error()


def test_a_job_starts_without_room_for_its_command_and_status(part: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = part("nodes.jobs.folder").JobFolder.create(tmp_path, "some_tool")
    for name in ("command.json", "status.json"):
        (folder.path / name).mkdir()
    with caplog.at_level(logging.WARNING):
        folder.write_command(argv=["a", "\ud800"])
        folder.write_status("running")
    assert [record.message.split(" could not")[0] for record in caplog.records] == [
        str(folder.path / n) for n in ("command.json", "status.json")
    ]


def test_a_job_folder_that_cannot_be_made_is_said(part: Any, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"folder .* cannot be made"):
        part("nodes.jobs.folder").JobFolder.create(tmp_path, "some_tool")


def test_lost_events_are_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(backend_job.JOB_DIR_VARIABLE, str(tmp_path / "gone"))
    monkeypatch.setattr(backend_job, "_lost", threading.Event())
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            backend_job.phase(f"step {step}")
    assert len(caplog.records) == 1
    assert "the work continues" in caplog.text


def test_a_tracker_that_failed_is_given_nothing_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(__import__("musubi_backend.training.trackers", fromlist=["_MAKERS"])._MAKERS, "tensorboard", broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    trackers = Trackers(LoggingSettings(logging_dir=str(tmp_path)), {})
    trackers.log({"loss": 1.0}, 1)
    assert trackers._thread is not None
    trackers._thread.join()
    for step in range(5):
        trackers.log({"loss": 1.0}, step)
    assert trackers._queue.qsize() <= 1, "what nobody takes is not kept"
    trackers.close()
