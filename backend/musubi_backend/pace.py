"""How fast a run goes and how long it will still take. Standard library only: the nodes use it too."""

from __future__ import annotations

from collections import deque

_RECENT = 50
"""Of so many measurements is the mean taken: long enough for buckets of several sizes, short enough to follow a change."""


class Pace:
    """The mean duration of the last steps. The first measurement is left out: it holds what only happens at the start (loading,
    compiling, filling caches)."""

    def __init__(self) -> None:
        self._measured: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._warm = False

    def add(self, steps: int, seconds: float) -> None:
        """`steps` took `seconds` together, without what was done between them. Measurements that cannot be are ignored."""
        if not self._warm:
            self._warm = True
        elif steps > 0 and 0 <= seconds < float("inf"):
            self._measured.append((steps, seconds))

    @property
    def seconds(self) -> float | None:
        """Seconds per step; None before there is a measurement that means something."""
        steps, seconds = sum(steps for steps, _ in self._measured), sum(seconds for _, seconds in self._measured)
        return seconds / steps if seconds > 0 else None

    def rate(self) -> str:
        """As tqdm writes it, "1.30s/it" or "4.10it/s"; "" when unknown."""
        seconds = self.seconds
        if seconds is None:
            return ""
        return f"{seconds:.2f}s/it" if seconds > 1 else f"{1 / seconds:.2f}it/s"

    def left(self, steps: int) -> str:
        """How long `steps` more will take, "04:10" or "3:04:10"; "" when unknown."""
        return "" if self.seconds is None or steps <= 0 else clock(self.seconds * steps)


def clock(seconds: float) -> str:
    """ "04:10", or with hours "3:04:10"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
