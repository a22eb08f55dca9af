"""What went wrong with one item of a dataset. Items are never dropped without one of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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


class UnusableMedium(Exception):
    """A picture or clip cannot be used; `problem` says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.problem = Problem(path, reason)


def listing(problems: Sequence[Problem], limit: int = 20) -> str:
    """The problems as indented lines; beyond `limit` only their number is told."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)
