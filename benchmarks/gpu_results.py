"""Everything found so far, in two files that are whole at any time, and how long there is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musubi_backend import atomic

Row = dict[str, Any]


@dataclass
class Results:
    """checks: of correctness; steps: what was measured; left_out: what was not, and why."""

    folder: Path
    facts: Row
    checks: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, rows: list[Row], row: Row) -> None:
        rows.append(row)
        print(" · ".join(f"{key} {_short(value)}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.write()

    def leave_out(self, what: str) -> None:
        self.left_out.append(what)
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {"facts": self.facts, "checks": self.checks, "steps": self.steps, "left_out": self.left_out}
        for name, text in (("gpu.json", json.dumps(whole, indent=1)), ("gpu.md", self._page())):
            with atomic.replacing(self.folder / name) as part:
                part.write_text(text, encoding="utf-8")

    def _page(self) -> str:
        lines = [f"# {self.facts['device']}", "", ", ".join(f"{name} {_short(value)}" for name, value in self.facts.items()), ""]
        for title, rows in (("Correctness", self.checks), ("Steps", self.steps)):
            names = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) is not None for row in rows)]
            if names:
                lines += [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
                lines += [f"| {' | '.join(_short(row.get(name)) for name in names)} |" for row in rows] + [""]
        if self.left_out:
            lines += ["## Not measured", "", *(f"- {what}" for what in self.left_out), ""]
        return "\n".join(lines)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class Clock:
    """How long there is."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @contextmanager
    def part(self, share: float) -> Iterator[Clock]:
        """A clock for a share of what is left; what the part does not use is there for the next."""
        yield Clock(share * self.left / 60)


def first_line(error: Exception) -> str:
    """For a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")
