"""What went wrong with one item of a dataset. Items are never dropped without one of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOST_NAMES = 5


@dataclass(frozen=True)
class Problem:
    """One item that cannot be used.

    path     the file (or folder of frames, or dataset file) it is about
    reason   what is wrong with it and, where it helps, what to do; without the path
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Note:
    """Something to know about a file of a dataset that is used otherwise than one may expect, or not at all.

    text    without the path; the same for all files of a kind
    """

    path: Path
    text: str


def gathered(notes: Iterable[Note]) -> list[str]:
    """One line per kind of note, with the first few names."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(note.text, []).append(note.path.name)
    return [f"{text}: {_shortened(names)}" for text, names in kinds.items()]


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


class UnusableMedium(Exception):
    """An image or clip cannot be used; `problem` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.problem = Problem(path, reason)


def unexpected(path: Path, error: Exception) -> Problem:
    """What a library made of a file that it did not understand."""
    return Problem(path, f"cannot be decoded ({type(error).__name__}: {str(error)[:200]})")


def listing(problems: Sequence[Problem], limit: int = 20) -> str:
    """The problems as indented lines; beyond `limit` only their number is given."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)
