"""Everything found so far, in two files that are whole at any time, and how long there is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from musubi_backend import atomic

Row = dict[str, Any]
Table = Literal["checks", "steps"]


@dataclass
class Results:
    """checks: of correctness; steps: what was measured; left_out: what was not, and why; begun: labels of rows that are not begun again."""

    folder: Path
    facts: Row
    checks: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)

    def begin(self, table: Table, row: Row, seconds: float) -> bool:
        """A row is under way, as far as it is known now, for so long at most. False where it was begun before: it is to be left alone."""
        label = label_of(table, row)
        new = label not in self.begun
        self.begun.add(label)
        return new

    def further(self, table: Table, row: Row, seconds: float) -> None:
        """More is known of the row that is under way, and its rest takes so long at most."""

    def add(self, table: Table, row: Row) -> None:
        """A row is finished."""
        rows: list[Row] = getattr(self, table)
        rows.append(row)
        print(" · ".join(f"{key} {_short(value)}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.write()

    def leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)
            self.write()

    def fact(self, name: str, value: object) -> None:
        """Something of the whole run."""
        self.facts[name] = value
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


_LABELS = ("model", "size", "setting", "against", "whose", "within GB")


def label_of(table: Table, row: Row) -> str:
    """What a row is about."""
    return " · ".join((table, *(str(row.get(name)) for name in _LABELS)))


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


def first_line(error: BaseException) -> str:
    """For a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")
