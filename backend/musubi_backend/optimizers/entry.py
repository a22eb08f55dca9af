"""What the table says of an optimizer and of each of its arguments."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError

BOOL, INT, FLOAT, PAIR, CHOICE = "bool", "int", "float", "pair", "choice"
_LARGEST = sys.float_info.max  # a whole number of Python may be larger


@dataclass(frozen=True)
class Argument:
    """One argument of `--optimizer_args`.

    kind: BOOL, INT, FLOAT, PAIR (numbers in brackets) or CHOICE; minimum, maximum: bounds of each number, `below` where the maximum
    itself is not allowed; none: None may be given, and means what the help says.
    """

    name: str
    kind: str
    default: Any
    help: str
    minimum: float = -math.inf
    maximum: float = math.inf
    below: bool = False
    choices: tuple[str, ...] = ()
    none: bool = False

    def check(self, value: Any) -> None:
        """UserError for a value that is not of this kind or outside of its bounds."""
        problem = None if value is None and self.none else self._problem(value)
        if problem:
            raise UserError(f"--optimizer_args {self.name}={value!r}: {problem}")

    def _problem(self, value: Any) -> str | None:
        if self.kind == BOOL:
            return None if isinstance(value, bool) else "it is True or False"
        if self.kind == CHOICE:
            return None if value in self.choices else "it is one of " + ", ".join(f'"{choice}"' for choice in self.choices)
        if self.kind == PAIR:
            length = len(self.default)
            if not isinstance(value, (tuple, list)) or len(value) != length:
                return f"it is {length} numbers, such as {self.default}"
            return next((problem for one in value if (problem := self._number(one))), None)
        if self.kind == INT and (isinstance(value, bool) or not isinstance(value, int)):
            return "it is a whole number"
        return self._number(value)

    def _number(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
            return "it is a number"
        if value < self.minimum or value > self.maximum or (self.below and value == self.maximum):
            return f"it is from {self.minimum:g} to {'below ' if self.below else ''}{self.maximum:g}"
        return None


@dataclass(frozen=True)
class Entry:
    """An optimizer of the table.

    name, aliases: matched without case, "_" and "-"; group: where the node lists it; where: "module:Class", a module with a dot in front is
    one of this package; needs: the package that has it, "" for ours and PyTorch's; extra: of which extra of install.py that is part;
    source: paper or program; rate: what the learning rate means; learning_rate: a usual one for a LoRA; arguments: those the node shows;
    hidden: those that only `--optimizer_args` sets; state: bytes of state per trained weight in fp32; presets: name -> arguments; fixed:
    arguments that the name stands for; names: it wants the weights' names; schedule_free: it keeps its rate, and has other weights while
    sampling; several_groups: it takes groups of weights with different rates.
    """

    name: str
    group: str
    where: str
    help: str
    source: str
    state: float
    aliases: tuple[str, ...] = ()
    needs: str = ""
    extra: str = ""
    rate: str = "1e-4 to 3e-4 is usual for a LoRA"
    learning_rate: float = 2e-4
    arguments: tuple[Argument, ...] = ()
    hidden: tuple[Argument, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    names: bool = False
    schedule_free: bool = False
    several_groups: bool = True

    @property
    def ours(self) -> bool:
        return self.where.startswith(".")


def flag(name: str, default: bool | None, help: str) -> Argument:
    """A switch; default None: decided by the others."""
    return Argument(name, BOOL, default, help, none=default is None)


def number(name: str, default: float | None, low: float, high: float, help: str, *, below: bool = False) -> Argument:
    """A float in [low, high], or below high; default None: unset."""
    return Argument(name, FLOAT, default, help, low, high, below, none=default is None)


def whole(name: str, default: int | None, low: int, high: int, help: str) -> Argument:
    """A whole number in [low, high]; default None: unset."""
    return Argument(name, INT, default, help, low, high, none=default is None)


def share(name: str, default: float, help: str) -> Argument:
    """A factor of an average: 0 up to, not with, 1."""
    return number(name, default, 0, 1, help, below=True)


def betas(*defaults: float, help: str = "How slowly the averages of gradients and of their squares follow.") -> Argument:
    return Argument("betas", PAIR, defaults, help, 0, 1, below=True)


def choice(name: str, default: str, choices: tuple[str, ...], help: str) -> Argument:
    return Argument(name, CHOICE, default, help, choices=choices)
