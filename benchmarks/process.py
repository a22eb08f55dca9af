"""Runs a command to its end and says what it cost: wall time, CPU seconds and peak memory as the kernel accounts them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """wall, cpu in seconds (cpu = user + system of the process and its waited children); rss_mb = peak of the process."""

    wall: float
    cpu: float
    rss_mb: float
    output: str
    exit_code: int


def run(command: Sequence[str], log: Path, environment: dict[str, str], threads: int = 1) -> Usage:
    """Run `command` with its output in `log`. Raises RuntimeError with the log's end when it fails."""
    openmp = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    env = {**os.environ, **openmp, "HF_HUB_OFFLINE": "1", "BENCH_STARTED": repr(time.time()), **environment}
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(list(command), stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=env)
        _, status, resources = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    output = log.read_text(errors="replace")
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code:
        raise RuntimeError(f"{' '.join(command[:6])} … failed with {exit_code}:\n{output[-3000:]}")
    return Usage(wall, resources.ru_utime + resources.ru_stime, resources.ru_maxrss / 1024, output, exit_code)
