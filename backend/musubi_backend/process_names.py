"""Which process wrote a note, and whether it still runs. Ids are used again, so the start of the process is noted with its id; clocks are
set (after a suspend, by the network), and on Linux the start by the clock moves with them, so there it is also counted from the start of
the system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_START = 19  # its place behind the name in /proc/<pid>/stat: clock ticks from the start of the system


def named(pid: int) -> dict[str, Any]:
    """What to note of a process: `pid`, `created` (seconds of the clock; None where psutil is missing or it has ended), `boot`."""
    return {"pid": pid, "created": _created(pid), "boot": _since_boot(pid)}


def runs(note: Mapping[str, Any]) -> bool:
    """Whether the process that a note names still runs. A note without a start goes by the id alone."""
    pid, created, boot = note.get("pid"), note.get("created"), note.get("boot")
    if type(pid) is not int or pid <= 0:
        return False
    try:
        import psutil
    except ImportError:
        return os.name != "posix" or Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        now = _since_boot(pid)
        if isinstance(boot, str) and boot and now:
            return boot == now
        return not isinstance(created, (int, float)) or abs(process.create_time() - created) < 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OverflowError):
        return True  # another user's


def _created(pid: int) -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _since_boot(pid: int) -> str:
    """The start of the system (Linux has a name for each) and how long after it the process began; "" where that is not known."""
    with suppress(OSError, IndexError):
        system = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_START]
        return f"{system} {int(ticks)}"
    return ""
