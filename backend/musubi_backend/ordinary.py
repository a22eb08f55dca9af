"""Is a path an ordinary file? Opening a pipe waits for who writes into it, and a device never ends."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_OF_THE_SHELL = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What a shell gives for the output of a command; a dataset holds no such path, and only a terminal names one."""


def check_ordinary(path: Path) -> None:
    """OSError where `path` is a pipe, a device or a socket. A missing file and a folder are left to who opens it."""
    if str(path).startswith(_OF_THE_SHELL):
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
