"""Places for results are tried before the work: folders are made, the names that will be written are asked for, and a file is written.

File systems count bytes where people count letters (a Chinese character takes three), and temporary names are longer than the final ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import atomic, job
from .errors import UserError

T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FILE_SYSTEM = r"SYSTEM\CurrentControlSet\Control\FileSystem"


@dataclass(frozen=True)
class Limits:
    """How long the name of a file or folder and a whole path may be, in `unit`s."""

    name: int
    path: int
    unit: str

    def size(self, text: str) -> int:
        return len(os.fsencode(text)) if self.unit == "bytes" else len(text.encode("utf-16-le", "surrogatepass")) // 2


POSIX = Limits(255, 4095, "bytes")  # NAME_MAX; PATH_MAX without the zero at its end
WINDOWS = Limits(255, 259, "characters")  # of UTF-16; MAX_PATH without the zero
WINDOWS_LONG_PATHS = Limits(255, 32766, "characters")


@dataclass(frozen=True)
class TooLong:
    """A name, or with its folder a path, that is `over` units beyond the limits."""

    path: Path
    is_path: bool
    over: int
    limits: Limits

    def __str__(self) -> str:
        if self.is_path:
            advice = ", or allow long paths in Windows" if self.limits == WINDOWS else ""
            return f"the path is {self.over} {self.limits.unit} too long, {self.limits.path} are allowed; choose shorter names{advice}"
        takes = " (a Chinese or Japanese character takes three)" if self.limits.unit == "bytes" else ""
        return f"the name is {self.over} {self.limits.unit} too long, {self.limits.name} are allowed{takes}; choose a shorter one"


def limits() -> Limits:
    """Those of this system."""
    return POSIX if os.name == "posix" else WINDOWS_LONG_PATHS if _long_paths_allowed() else WINDOWS


def too_long(folder: Path, names: Iterable[str], allowed: Limits) -> TooLong | None:
    """Which of these files (relative paths) in a folder goes furthest beyond what is allowed; None where all fit."""
    found = []
    for name in names:
        path = Path(os.path.abspath(folder / name))
        found += [TooLong(path, False, allowed.size(part) - allowed.name, allowed) for part in Path(name).parts]
        found.append(TooLong(path, True, allowed.size(str(path)) - allowed.path, allowed))
    worst = max(found, key=lambda one: one.over, default=None)
    return worst if worst and worst.over > 0 else None


def try_file(path: Path, flag: str) -> None:
    """See that the file `path` can be written, making its folder. flag: how messages name it. UserError says why not."""
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; give a file name")
    try_folder(path.parent, [path.name, atomic.part_of(path).name], flag)


def try_folder(folder: Path, names: Sequence[str], flag: str) -> None:
    """Make `folder` and see that files of these names (relative paths, temporary ones among them) can be written there; nothing of that
    stays but the folder. UserError says why not."""
    excess = too_long(folder, names, limits())
    if excess:
        raise UserError(f"{flag}: {excess.path}: {excess}")
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
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long"
    return str(error.strerror or error)


def in_words(error: OSError) -> str:
    """An error of the file system as one sentence that names the path; where nothing can be written, the folder."""
    paths = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    if error.errno == errno.EROFS and paths:
        return f"{Path(paths[-1]).parent}: this folder is read-only: make it writable, then run this again"
    where = " and ".join(paths)
    advice = ": make room, then run this again" if error.errno in _FULL else ""
    return f"{where}: {reason(error)}{advice}" if where else f"{reason(error)}{advice}"


def elsewhere(write: Callable[[Path], T]) -> T:
    """Write something whose place failed into the first folder that takes it: the job's, the user's, the temporary one. The error of the
    last (OSError, or a UserError in its place) when none does."""
    folders = [job.folder(), Path(os.path.expanduser("~")), Path(tempfile.gettempdir())]
    candidates = [folder for folder in folders if folder is not None]
    for folder in candidates[:-1]:
        with contextlib.suppress(OSError, UserError):
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
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    finally:
        for path in reversed(made):
            path.rmdir()


def _why(error: OSError, folder: Path, longest: str) -> str:
    if error.errno == errno.ENAMETOOLONG:  # encrypted folders allow less than the system
        size = max(len(os.fsencode(part)) for part in Path(longest).parts)
        return f"names of files in {folder} are too long for the disk: {longest} has parts of up to {size} bytes. Choose a shorter name"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        in_the_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        return f"{in_the_way} is a file, so that the folder {folder} cannot be made; choose another place"
    return f"nothing can be written into {folder}: {reason(error)}. Choose another place, or make this one writable"


def _long_paths_allowed() -> bool:
    """Has somebody allowed paths of more than 259 characters in Windows? Python asks for them itself."""
    if sys.platform == "win32":
        import winreg

        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _FILE_SYSTEM) as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    return False
