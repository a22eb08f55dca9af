"""Lengths of clips that had to be decoded to count their frames, kept in a small file next to the caches."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from .. import content
from ..atomic import write_text
from ..documents import read_json

logger = logging.getLogger(__name__)

_MOST_FRAMES = 2**31
_writing = threading.Lock()

Length = tuple[int, float, bool]


def recall(folder: Path | None, clip: Path) -> Length | None:
    """What was found out about this very file; None when nothing was."""
    entry = _read(folder).get(_key(clip)) if folder is not None else None
    if not isinstance(entry, dict) or not _is_of(clip, entry.get("file")):
        return None
    frames, seconds, variable = entry.get("frames"), entry.get("seconds"), entry.get("variable")
    if not isinstance(frames, int) or not isinstance(seconds, (int, float)) or not isinstance(variable, bool):
        return None
    if not 0 < frames < _MOST_FRAMES or not 0 <= seconds < _MOST_FRAMES:
        return None
    return frames, float(seconds), variable


def remember(folder: Path | None, clip: Path, length: Length) -> None:
    """Keep what was found out. A folder that is not there (yet) or cannot be written costs time later, nothing else."""
    if folder is None or not folder.is_dir():
        return
    frames, seconds, variable = length
    try:
        with _writing:
            entries = {
                **_read(folder),
                _key(clip): {"file": content.look([clip]), "frames": frames, "seconds": seconds, "variable": variable},
            }
            write_text(folder / content.LENGTHS, json.dumps(entries, indent=1))
    except OSError as error:
        logger.info("the length of %s cannot be kept in %s: %s", clip.name, folder, error.strerror or error)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / content.LENGTHS, dict, paths=True)
    except (OSError, ValueError):
        return {}


def _is_of(clip: Path, seen: Any) -> bool:
    """Was this file looked at, or one with the same in it?"""
    if not isinstance(seen, list) or len(seen) != 2:
        return False
    before = content.Seen(*map(str, seen))
    try:
        return content.look([clip], before).digest == before.digest
    except OSError:
        return False


def _key(clip: Path) -> str:
    return os.fsencode(clip.absolute()).decode("utf-8", "backslashreplace")
