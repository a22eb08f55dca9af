"""Numbers of a training over its steps: kept in bounded memory, given as extremes and means of buckets, so that a spike stays visible."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_POINTS = 1 << 18
"""Of one series: 200 thousand steps as they are, in 3 MB. Beyond, of every four neighbours the lowest and the highest stay."""


@dataclass
class Series:
    """Finite values at rising steps."""

    steps: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """Both of one length; what is not finite is None or NaN, and left out."""
        import numpy as np

        new = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(new)
        self.steps.frombytes(np.asarray(steps, dtype=np.intc)[finite].tobytes())
        self.values.frombytes(new[finite].tobytes())
        while len(self.values) > MOST_POINTS:
            self._thin()

    def _thin(self) -> None:
        import numpy as np

        steps, values = np.frombuffer(self.steps, np.intc), np.frombuffer(self.values, np.float64)
        count = len(values) // 4
        fours = values[: 4 * count].reshape(count, 4)
        kept = np.sort(np.stack([fours.argmin(1), fours.argmax(1)], 1), 1)
        kept[kept[:, 0] == kept[:, 1]] = 0, 3  # all four are equal
        places = np.concatenate([(kept + 4 * np.arange(count)[:, None]).ravel(), np.arange(4 * count, len(values))])
        self.steps, self.values = array("i", steps[places].tobytes()), array("d", values[places].tobytes())


def buckets(series: Mapping[str, Series], first: int, last: int, points: int) -> dict[str, Any]:
    """The steps from `first` to `last` in at most `points` buckets: `width` steps each, `steps` (the last one in each that holds any), and
    by name lists of `low`, `high` and `mean`, None where a series has nothing. All numbers are finite."""
    import numpy as np

    width = max(1, math.ceil((last - first + 1) / points))
    if width > 1:
        width = math.ceil((last - first + 1) / (points - 1))  # buckets begin at multiples of the width: one may be cut at both ends
    parts = {name: _part(one, first, last) for name, one in series.items()}
    begin = first // width
    used = np.unique(np.concatenate([np.empty(0, np.intp), *(steps // width for steps, _ in parts.values())]))
    steps = np.zeros(len(used), np.int64)
    answer: dict[str, Any] = {}
    for name, (at, values) in parts.items():
        low, high, mean = (np.full(len(used), np.nan) for _ in range(3))
        if len(values):
            number = at // width
            starts = np.flatnonzero(np.diff(number, prepend=begin - 1))
            places = np.searchsorted(used, number[starts])
            low[places], high[places] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
            counts = np.diff(starts, append=len(values))
            mean[places] = np.clip(np.add.reduceat(values / counts.repeat(counts), starts), low[places], high[places])
            ends = at[starts + counts - 1]
            steps[places] = np.maximum(steps[places], ends)
        answer[name] = {"low": _plain(low), "high": _plain(high), "mean": _plain(mean)}
    return {"width": width, "steps": steps.tolist(), "series": answer}


def _part(series: Series, first: int, last: int) -> tuple[Any, Any]:
    import numpy as np

    steps, values = np.frombuffer(series.steps, np.intc), np.frombuffer(series.values, np.float64)
    between = slice(np.searchsorted(steps, first), np.searchsorted(steps, last, "right"))
    return steps[between].astype(np.int64), values[between].copy()  # copies: what is looked at through numpy cannot grow


def _plain(values: Any) -> list[float | None]:
    """For JSON, with as many digits as mean something."""
    return [float(f"{value:.7g}") if value == value else None for value in values.tolist()]
