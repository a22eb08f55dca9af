"""The benchmark of GPUs measures in a process of its own: what happens to that costs the row it is at."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
import watched_parts

from benchmarks.gpu_process import Part, Stopped, Watched, told_to_stop
from benchmarks.gpu_results import Clock, Results

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its parts are killed by signals")


def watched(folder: Path) -> Watched:
    return Watched(Results(folder, {"device": "none"}), Clock(10), watched_parts.prepare, "a value", after=0.05, worth=0.01)


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return found


def test_a_process_that_hangs_or_is_killed_costs_its_row(tmp_path: Path) -> None:
    one = watched(tmp_path)
    one.run([Part("rows", 0.9), Part("outside of rows", 0.0), Part("told last", 1.0)])
    found = kept(tmp_path)
    assert found["steps"] == [
        {"setting": "right"}, {"setting": "killed", "error": "its process ended with -9"},
        {"setting": "hangs", "seconds": 1.0, "error": "took too long"}, {"setting": "last"},
    ]  # fmt: skip
    assert found["left_out"] == ["outside of rows: took too long", "with True"] and found["facts"]["given"] == "a value"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_what_was_found_before_a_stop_is_written_and_the_process_ends(tmp_path: Path, by: signal.Signals) -> None:
    one = watched(tmp_path)
    one.given = int(by)
    with pytest.raises(Stopped, match=str(128 + by)), told_to_stop():
        one.run([Part("stopped", 1.0)])
    assert kept(tmp_path)["steps"][0] == {"setting": "before the stop"}


def test_nothing_is_begun_once_the_time_is_up(tmp_path: Path) -> None:
    one = watched(tmp_path)
    one.clock = Clock(0)
    one.run([Part("rows", 1.0), Part("told last", 1.0)])
    assert one.results.left_out == ["rows: no time", "told last: no time"]
