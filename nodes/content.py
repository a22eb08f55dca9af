"""Fingerprints of files and folders by names, sizes and times: what changes when someone adds, removes or edits a clip."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


def of_files(paths: Iterable[Path]) -> str:
    return digest([stamp(path) for path in paths])


def of_folder(folder: Path, *, deep: bool = False) -> str:
    """Of the files in a folder; `deep` also those below (clips that are folders of pictures). Cache files do not count."""
    entries: list[tuple[str, int, int]] = []
    _collect(folder, 1 if deep else 0, entries)
    return digest(sorted(entries))


def _collect(folder: Path, depth: int, entries: list[tuple[str, int, int]]) -> None:
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if entry.is_dir():
                    if depth:
                        _collect(Path(entry.path), depth - 1, entries)
                elif not entry.name.endswith(".safetensors"):
                    status = entry.stat()
                    entries.append((entry.path, status.st_size, status.st_mtime_ns))
    except OSError:
        entries.append((str(folder), -1, 0))
