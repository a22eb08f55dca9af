"""Where captions go: lines of a JSONL file, or text files next to the media. Each is safe on disk once it was added.

A JSONL file grows by whole lines; half a line, left by a kill or a full disk, is dropped when the file is opened again. Where an item
comes twice, its last line counts, and `close` leaves one.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..documents import parse_json
from ..errors import UserError
from ..texts import read_text

logger = logging.getLogger(__name__)


class Captions(ABC):
    """The captions of one kind of media."""

    @abstractmethod
    def path(self, medium: Path) -> Path:
        """The file the caption of `medium` is in."""

    @abstractmethod
    def has(self, medium: Path) -> bool:
        """Is there a caption, not empty, for `medium`?"""

    @abstractmethod
    def add(self, medium: Path, caption: str) -> None:
        """Store a caption; when this returns, it is on disk. OSError when the disk is full."""

    @abstractmethod
    def close(self) -> None:
        """Leave the files tidy."""


class TextFiles(Captions):
    def __init__(self, extension: str) -> None:
        self.extension = extension

    def path(self, medium: Path) -> Path:
        return medium.with_name(medium.stem + self.extension)

    def has(self, medium: Path) -> bool:
        path = self.path(medium)
        try:
            return path.is_file() and bool(read_text(path).strip())
        except ValueError:
            return True  # somebody's text in another encoding, which is not to be overwritten

    def add(self, medium: Path, caption: str) -> None:
        write_text(self.path(medium), caption)

    def close(self) -> None:
        pass  # every file is whole as it is


class JsonlFile(Captions):
    """{"image_path" or "video_path": ..., "caption": ...} per line; other keys and other items in the file stay."""

    def __init__(self, file: Path, key: str) -> None:
        """UserError names the line when `file` exists and is something else."""
        self.file, self.key = file, key
        self._records = read_lines(file, key)
        self._tidy = True
        self._rewrite_if_untidy()

    def path(self, medium: Path) -> Path:
        return self.file

    def has(self, medium: Path) -> bool:
        record = self._records.get(place(medium))
        return record is not None and bool(str(record.get("caption") or "").strip())

    def add(self, medium: Path, caption: str) -> None:
        here = place(medium)
        self._tidy = self._tidy and here not in self._records
        self._records[here] = {**self._records.get(here, {self.key: str(medium)}), "caption": caption}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as opened:
            opened.write(_line(self._records[here]))
            opened.flush()
            os.fsync(opened.fileno())

    def close(self) -> None:
        if not self._tidy:
            self._write()

    def _rewrite_if_untidy(self) -> None:
        if self.file.is_file() and self.file.read_bytes() != self._bytes():
            self._write()

    def _write(self) -> None:
        write_text(self.file, self._bytes().decode("utf-8"))
        self._tidy = True

    def _bytes(self) -> bytes:
        return b"".join(map(_line, self._records.values()))


def read_lines(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """The records of a JSONL file by the place of their medium; later ones replace earlier ones. A last line without an end that is
    not JSON was cut off and is left out. UserError for any other line that has no `key`."""
    try:
        text = read_text(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} exists and cannot be read as a list of captions ({error}); give another --output_file") from error
    records: dict[str, dict[str, Any]] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, dict, paths=True)
            medium = record[key]
            if not isinstance(medium, str):
                raise TypeError(f"{key} is not text")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                logger.warning("%s: the last line was cut off and is written anew", file)
                continue
            raise UserError(
                f"{file}, line {number} is no caption of this kind (it must be an object with {key}): {error}. "
                "Fix it, or give another --output_file"
            ) from error
        records[place(Path(medium))] = record
    return records


def place(medium: Path) -> str:
    """One spelling for one file."""
    return os.path.normcase(os.path.abspath(medium))


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8")
