"""How long a training is, counted from the place where it begins: a state may come from another number of processes, or from a dataset of
another size, whose epochs had other numbers of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .saved_states import Position
    from .settings import LengthSettings


@dataclass(frozen=True)
class Course:
    """steps, epochs: the last ones, as a position counts them."""

    steps: int
    epochs: int


def plan(begin: Position, batches: int, processes: int, length: LengthSettings) -> Course:
    """begin: where it begins; batches: of an epoch, of all processes together."""

    def steps_of(some: int) -> int:
        return math.ceil(math.ceil(some / processes) / length.gradient_accumulation_steps)

    first, each = steps_of(max(batches - begin.batch, 0)), steps_of(batches)
    if length.max_train_epochs is not None:
        whole = length.max_train_epochs - begin.epoch - 1
        return Course(begin.step + (first + whole * each if whole >= 0 else 0), length.max_train_epochs)
    left = length.max_train_steps - begin.step
    if left <= 0:
        return Course(length.max_train_steps, begin.epoch + (begin.batch > 0))
    return Course(length.max_train_steps, begin.epoch + 1 + math.ceil(max(left - first, 0) / each))
