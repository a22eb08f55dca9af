"""Has it changed? The one place that answers, for files, folders and settings; the nodes ask it too. Standard library only.

`stamp`, `of_files` and `of_folder` go by names, sizes and times: quick, and a copy of the same file counts as changed.
`look` goes by what is in the files, whatever they are called and however old they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .ordinary import check_ordinary

RECORD = "cache_sources.json"
"""Name of the file next to caches that says what they were made from (`caching.sources`)."""
LENGTHS = "cache_clip_lengths.json"
"""Name of the file next to caches with the lengths of clips that had to be decoded to count their frames (`dataset.clip_lengths`)."""

_WHOLE = 4 * 2**20  # files up to this size are read whole
_PIECES, _PIECE = 64, 16 * 2**10
"""Of larger ones so many pieces: versions of a model have one size and often differ in some layers only."""


class Seen(NamedTuple):
    """Files as they were when they were last read. times: sizes and times, to tell cheaply that nothing was touched since."""

    times: str
    digest: str


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-able values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def stamp(path: Path) -> tuple[str, int, int] | None:
    """(name, size, time in ns) of a file; None when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (str(path), status.st_size, status.st_mtime_ns)


def is_as_stamped(before: Sequence[Any] | None) -> bool:
    """Is the file still what its `stamp` (as a tuple, or a list from JSON) says?"""
    return before is not None and stamp(Path(before[0])) == tuple(before)


def of_files(paths: Iterable[Path]) -> str:
    return digest([(str(path), _times(path)) for path in paths])


def of_folder(folder: Path, *, deep: bool = False) -> str:
    """Of the files in a folder; `deep` also those below (clips that are folders of images). Caches and hidden files do not count."""
    entries: list[tuple[str, str | None]] = []
    _collect(folder, 1 if deep else 0, entries)
    return digest(sorted(entries, key=str))


def look(files: Sequence[Path], before: Seen | None = None) -> Seen:
    """What is in one or several files that belong together, in their order. Of large files the ends and pieces between are read;
    nothing is, when sizes and times are those of `before`. OSError when a file cannot be read."""
    times = "; ".join(_of_status(path.stat()) for path in files)
    if len(files) > 1:
        times = digest(times)
    if before is not None and before.times == times:
        return before
    return Seen(times, digest([_hash(path) for path in files]))


def _hash(path: Path) -> str:
    check_ordinary(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(str(size).encode())
        if size <= _WHOLE:
            found.update(file.read())
        else:
            for piece in range(_PIECES):
                file.seek((size - _PIECE) * piece // (_PIECES - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()[:16]


def _times(path: Path | os.DirEntry[str]) -> str | None:
    try:
        return _of_status(path.stat())
    except OSError:
        return None


def _of_status(status: os.stat_result) -> str:
    """The third number tells of a file that got other contents and its old time back (not on Windows, where it is the time of birth)."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _collect(folder: Path, depth: int, entries: list[tuple[str, str | None]]) -> None:
    try:
        found = list(os.scandir(folder))
    except OSError:
        entries.append((str(folder), None))
        return
    for entry in found:
        if entry.name.startswith(".") or entry.name in (RECORD, LENGTHS) or entry.name.endswith(".safetensors"):
            continue
        if not entry.is_dir():
            entries.append((entry.path, _times(entry)))
        elif depth:
            _collect(Path(entry.path), depth - 1, entries)
