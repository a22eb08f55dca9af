"""Who holds the lock of a training's name, by process id and the start of that process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from musubi_backend.errors import UserError
from musubi_backend.training import output_lock

ME = psutil.Process()


def write(folder: Path, **values: Any) -> Path:
    path = output_lock.lock_file(folder, "cat")
    path.write_text(json.dumps({"pid": os.getpid(), "created": ME.create_time(), **values}))
    return path


def test_a_lock_is_held_until_the_end_and_only_once(tmp_path: Path) -> None:
    path = output_lock.lock_file(tmp_path, "cat")
    with output_lock.held(tmp_path, "cat"):
        noted = json.loads(path.read_text())
        assert {"pid": os.getpid(), "created": pytest.approx(ME.create_time())}.items() <= noted.items()
        assert output_lock.holder(path) == os.getpid()
        with (
            pytest.raises(UserError, match=rf"another training writes cat there \(process {os.getpid()}\)"),
            output_lock.held(tmp_path, "cat"),
        ):
            pytest.fail("the lock was given twice")
        with output_lock.held(tmp_path, "dog"):
            assert path.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values", [{"created": ME.create_time() - 5}, {"pid": 2**22 + 12345}], ids=["a later process of that id", "no such process"]
)
def test_the_lock_of_a_process_that_is_gone_is_taken_over(values: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, **values)
    assert output_lock.holder(path) is None
    with output_lock.held(tmp_path, "cat"):
        assert output_lock.holder(path) == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_set_gives_no_lock_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux the start of a process by the clock moves with it."""
    path, by_the_clock = output_lock.lock_file(tmp_path, "cat"), psutil.Process.create_time
    with output_lock.held(tmp_path, "cat"):
        noted = json.loads(path.read_text())
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: by_the_clock(process) - 3600)
        assert output_lock.holder(path) == (os.getpid() if noted["boot"] else None)
        system, ticks = noted["boot"].split() if noted["boot"] else ("", "0")
        for other in (f"{system} {int(ticks) + 1}", f"another-{system} {ticks}"):
            path.write_text(json.dumps({**noted, "boot": other}))
            assert output_lock.holder(path) is None, "a later process of that id, or before the system was started again"


def test_a_lock_without_contents_is_being_made_for_some_seconds(tmp_path: Path) -> None:
    path = output_lock.lock_file(tmp_path, "cat")
    assert output_lock.holder(path) is None
    path.touch()
    assert output_lock.holder(path) == 0
    for away in (-60, 3600):  # the clock was set back meanwhile
        os.utime(path, (time.time() + away, time.time() + away))
        assert output_lock.holder(path) is None
