"""Parts of a benchmark that go wrong, without PyTorch: `test_gpu_process` has them measured in another process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from benchmarks.gpu_results import Clock, Results, Row

LONG = 60.0


def prepare(results: Results, given: str) -> dict[str, Callable[[Clock], object]]:
    """The parts by name."""

    def row(setting: str, work: Callable[[], object], seconds: float = LONG) -> None:
        made: Row = {"setting": setting}
        if results.begin("steps", made, seconds):
            work()
            results.add("steps", made)

    def rows(clock: Clock) -> None:
        results.fact("given", given)
        row("right", lambda: None)
        row("killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
        row("hangs", lambda: (results.further("steps", {"setting": "hangs", "seconds": 1.0}, 0.05), time.sleep(LONG)))
        row("last", lambda: None)

    def outside(clock: Clock) -> None:
        time.sleep(LONG)

    def told_last(clock: Clock) -> None:
        results.leave_out(f"with {clock.left > 0}")

    def stopped(clock: Clock) -> None:
        row("before the stop", lambda: None)
        os.kill(os.getppid(), int(given))
        row("stopped", lambda: time.sleep(LONG))

    return {"rows": rows, "outside of rows": outside, "told last": told_last, "stopped": stopped}
