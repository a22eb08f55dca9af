"""Ending a process with everything it started. psutil (ComfyUI has it) finds the children; without it the process group does."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any


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


def creation_time(pid: int) -> float | None:
    """With the pid, this names a process for good: pids are used again."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(pid: object, created: object) -> bool:
    """Whether the process that had this pid and was created then still runs. created: None where that is not known."""
    if type(pid) is not int or pid <= 0:
        return False
    try:
        import psutil
    except ImportError:
        return os.name != "posix" or Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    try:
        process = psutil.Process(pid)
        same = not isinstance(created, (int, float)) or abs(process.create_time() - created) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OverflowError):
        return True  # another user's


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
