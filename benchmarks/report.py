"""Prints two sides and their ratio as a Markdown table; figures are medians or minima over repetitions, as named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    what: str
    ours: float
    musubi: float
    unit: str
    aim: float

    @property
    def ratio(self) -> float:
        return self.ours / self.musubi


def print_table(rows: list[Row]) -> None:
    """One line per row: ours, musubi-tuner, the ratio, the aim and whether it is met."""
    print("\n| what | ours | musubi-tuner | ratio | aim | met |\n|---|---|---|---|---|---|")
    for row in rows:
        met = "yes" if row.ratio <= row.aim else "**no**"
        print(f"| {row.what} | {row.ours:.3g} {row.unit} | {row.musubi:.3g} {row.unit} | {row.ratio:.2f} | ≤ {row.aim} | {met} |")
