"""Places for results are tried before the work: folders are made, the names that will be written are asked for, and a file is written.

File systems count bytes where people count letters (a Chinese character takes three), and temporary names are longer than the final ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from . import atomic, job
from .errors import UserError

T = TypeVar("T")

_WINDOWS_LIMIT = 259  # characters of a path
_LONG = (errno.ENAMETOOLONG, 206)  # the second as Windows says it
_FULL = (errno.ENOSPC, errno.EDQUOT)


def try_file(path: Path, flag: str) -> None:
    """See that the file `path` can be written, making its folder. flag: how messages name it. UserError says why not."""
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; give a file name")
    try_folder(path.parent, [path.name, atomic.part_of(path).name], flag)


def try_folder(folder: Path, names: Sequence[str], flag: str) -> None:
    """Make `folder` and see that files of these names (relative paths, temporary ones among them) can be written there; nothing of that
    stays but the folder. UserError says why not."""
    longest = max(names, key=lambda name: len(os.fsencode(name)), default="")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in {part for name in names for part in Path(name).parts}:
            with contextlib.suppress(FileNotFoundError):
                (folder / part).lstat()
        _write_probe(folder, longest)
    except OSError as error:
        raise UserError(f"{flag}: {_why(error, folder, longest)}") from error


def reason(error: OSError) -> str:
    """What an error of the file system means, without its path."""
    if error.errno in _FULL:
        return "there is no space left on the disk"
    if error.errno in _LONG:
        return "the name is too long"
    return str(error.strerror or error)


def in_words(error: OSError) -> str:
    """An error of the file system as one sentence that names the path."""
    where = " and ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes)))
    advice = ": make room, then run this again" if error.errno in _FULL else ""
    return f"{where}: {reason(error)}{advice}" if where else f"{reason(error)}{advice}"


def elsewhere(write: Callable[[Path], T]) -> T:
    """Write something whose place failed into the first folder that takes it: the job's, the user's, the temporary one. OSError when
    none does."""
    folders = [job.folder(), Path.home(), Path(tempfile.gettempdir())]
    candidates = [folder for folder in folders if folder is not None]
    for folder in candidates[:-1]:
        with contextlib.suppress(OSError):
            return write(folder)
    return write(candidates[-1])


def _write_probe(folder: Path, name: str) -> None:
    """Write and remove a file in the deepest folder of `name`, with a name of the same length."""
    own = atomic.part_of(folder / "place").name
    parents = list(Path(name).parent.parts)
    made: list[Path] = []
    inner = folder
    try:
        for part in parents:
            inner = inner / part
            if not inner.is_dir():
                inner.mkdir()
                made.append(inner)
        probe = inner / (own + "_" * (len(os.fsencode(Path(name).name)) - len(own)))
        if os.name == "nt" and len(str(probe.absolute())) > _WINDOWS_LIMIT:
            probe.touch(exist_ok=False)  # where long paths are allowed, this works
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    finally:
        for path in reversed(made):
            path.rmdir()


def _why(error: OSError, folder: Path, longest: str) -> str:
    if error.errno in _LONG or (os.name == "nt" and len(str((folder / longest).absolute())) > _WINDOWS_LIMIT):
        size = max(len(os.fsencode(part)) for part in Path(longest).parts)
        return (
            f"names of files in {folder} are too long for the disk: {longest} has parts of up to {size} bytes, where most file systems "
            f"allow 255 (a Chinese or Japanese character takes three), and Windows {_WINDOWS_LIMIT} characters for a path. "
            "Choose a shorter name"
        )
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        in_the_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        return f"{in_the_way} is a file, so that the folder {folder} cannot be made; choose another place"
    return f"nothing can be written into {folder}: {reason(error)}. Choose another place, or make this one writable"
