"""What the benchmarks share: their arguments, a place to work, and the table of two sides and their ratio."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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


def arguments_of(description: str | None, only: str = "", threads: int = 0) -> argparse.Namespace:
    """The command line of a benchmark: where musubi-tuner is, how often to repeat, where to work. only: what `--only` chooses.
    threads: default of `--threads`, where there is a choice."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--musubi", type=Path, required=True, help="a musubi-tuner checkout")
    parser.add_argument("--musubi-python", default=sys.executable, help="the python that has its packages")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where models, caches and logs go (default: a temporary folder)")
    if only:
        parser.add_argument("--only", help=only)
        parser.add_argument("--flags", default="", help='more flags for both engines, in one argument: --flags="--fp8_base --fp8_scaled"')
    if threads:
        parser.add_argument("--threads", type=int, default=threads)
    return parser.parse_args()


@contextlib.contextmanager
def working_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """`--work`, or a folder that is gone afterwards."""
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
        yield arguments.work
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
