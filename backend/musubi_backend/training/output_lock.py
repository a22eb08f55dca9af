"""One training at a time writes files of one name into a folder: a lock file with the id and the start of the process that does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from .. import atomic, durations, process_names
from ..documents import parse_json
from ..errors import UserError

logger = logging.getLogger(__name__)


def lock_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of `name` in `folder`. UserError when another process that is alive does; the lock of a dead one is taken over."""
    path = lock_file(folder, name)
    while not _created(path):
        owner = holder(path)
        if owner is not None:
            raise UserError(
                f"--output_dir {folder}: another training writes {name} there (process {owner}). Wait for it or stop it, or use another "
                "--output_name or --output_dir"
            )
        logger.info("taking over the folder from a training that is no more: %s", folder)
        _remove_stale(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or read-only by now; what stays names a process that is no more
            path.unlink()


def holder(path: Path) -> int | None:
    """The process id in a lock file if that very process is alive, 0 if a lock is just being made; None otherwise."""
    try:
        values = parse_json(atomic.patiently(lambda: path.read_text(encoding="utf-8")), dict, paths=True)
        pid, _ = int(values["pid"]), float(values["created"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(FileNotFoundError):
            return 0 if abs(time.time() - path.stat().st_mtime) < durations.LOCK_WITHOUT_CONTENTS else None
        return None
    return pid if process_names.runs({**values, "pid": pid}) else None


def _created(path: Path) -> bool:
    """Make the lock file, unless there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(process_names.named(os.getpid()), file)
    return True


def _remove_stale(path: Path) -> None:
    """Only one of several takers gets to remove it, by moving it aside; a lock that was renewed meanwhile is put back."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        atomic.patiently(lambda: path.rename(aside))
        if holder(aside) is None or path.exists():
            aside.unlink()
        else:
            aside.rename(path)
