"""Which items of the dataset are how hard: the losses of their batches, gathered until they are told."""

from __future__ import annotations

from collections.abc import Iterable

from ..events import Items

MOST = 200
"""Items in one event: of more, the hardest."""


class ItemLosses:
    """What was trained since it was told last."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, names: Iterable[str], loss: float) -> None:
        """One batch. loss: its mean."""
        for name in names:
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + loss, count + 1

    def take(self, step: int) -> Items:
        """What there is, the hardest first; from then on it gathers anew."""
        means = {name: (total / count, float(count)) for name, (total, count) in self._sums.items()}
        hardest = sorted(means, key=lambda name: -means[name][0])[:MOST]
        self._sums.clear()
        losses, counts = [means[name][0] for name in hardest], [means[name][1] for name in hardest]
        return Items(step, tuple(hardest), tuple(losses), tuple(counts))
