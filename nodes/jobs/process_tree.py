"""Ending a process with everything it started. psutil (ComfyUI has it) finds the children; without it the process group does."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.job import JOB_DIR_VARIABLE


def members(pid: int) -> list[Any]:
    """psutil processes of `pid` and its descendants; empty without psutil or when it is gone."""
    try:
        import psutil
    except ImportError:
        return []
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.Error:
        return []


def started_for(job: Path) -> int | None:
    """The process id of what was started for a job's folder and still runs, by its environment; None without psutil, or without one."""
    try:
        import psutil
    except ImportError:
        return None
    every = psutil.process_iter(["environ", "create_time"])
    found = [one for one in every if (one.info["environ"] or {}).get(JOB_DIR_VARIABLE) == str(job)]
    first = min(found, key=lambda one: one.info["create_time"], default=None)  # the others were started by it
    return None if first is None else int(first.pid)


def signal_tree(pid: int, processes: list[Any], *, kill: bool) -> None:
    """Terminate (or kill) `processes` and the process group that `pid` leads."""
    for process in processes:
        _signal(process, kill)
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL if kill else signal.SIGTERM)


def _signal(process: Any, kill: bool) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):  # it has ended by itself
        if kill:
            process.kill()
        else:
            process.terminate()
