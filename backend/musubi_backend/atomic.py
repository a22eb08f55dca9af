"""Writing files so that a crash, a kill or a full disk leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from . import durations, job

logger = logging.getLogger(__name__)

T = TypeVar("T")

PART_SUFFIX = ".part"
OWN_FOLDER = ".musubi_tuner."
"""How the names of hidden folders begin in which results are made."""

_READERS_HOLD = sys.platform == "win32"
"""A file that somebody has open, if only to read it, cannot be renamed, replaced or removed; one that is replaced cannot be opened."""
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part_*", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, anew: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`; when the block ends well, fsync it and rename it over `path`.

    anew: FileExistsError where another program has put a file there meanwhile (on disks without hard links it is replaced).
    On any exception the temporary file is removed and `path` is untouched. A stop waits for the block (`job.writing`).
    """
    target = Path(path)
    part = part_of(target)
    with job.writing(target.name, part):
        try:
            yield part
            _fsync(part)
            patiently(partial(_move_anew if anew else _move, part, target))
            _fsync_directory(target.parent)
        finally:
            part.unlink(missing_ok=True)


def _move(part: Path, target: Path) -> None:
    part.replace(target)


def _move_anew(part: Path, target: Path) -> None:
    if os.name == "nt":
        part.rename(target)  # which replaces nothing there
        return
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        part.replace(target)


def patiently(work: Callable[[], T]) -> T:
    """Rename, replace, remove or read a file, trying again while another program has it open, or replaces it. OSError when it stays so."""
    for pause in durations.FILE_IN_USE if _READERS_HOLD else ():
        with contextlib.suppress(PermissionError):
            return work()
        time.sleep(pause)
    return work()


def part_of(target: Path) -> Path:
    """A new temporary name next to a file."""
    stem = os.fsencode(target.name)[:200].decode("utf-8", "ignore")  # file systems allow 255 bytes; many characters take three
    return target.with_name(f".{stem}.{secrets.token_hex(4)}{PART_SUFFIX}")


def sweep(folder: Path) -> None:
    """Remove the temporary files of ours that killed processes left in `folder` and in its hidden folders of ours: those that nobody has
    written to for a day. What is finished stays."""
    try:
        found = list(folder.iterdir())
    except OSError:
        return  # not there, or not ours to look into
    for path in found:
        with contextlib.suppress(OSError):  # another process sweeps too, or the disk is read-only
            if path.is_symlink():
                continue
            if path.is_dir() and path.name.startswith(OWN_FOLDER):
                was_old = _is_old(path)
                sweep(path)
                if was_old:
                    path.rmdir()  # fails where a finished file is left in it
            elif path.is_file() and _PART.fullmatch(path.name) and _is_old(path):
                logger.info("removing what a killed program left: %s", path)
                path.unlink()


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > durations.LEFT_ALONE


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace `path` with `text` (UTF-8, LF)."""
    with replacing(path) as part:
        part.write_bytes(text.encode("utf-8"))


def _fsync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _fsync_directory(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open directories; its rename is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
