"""What one setting is. The tables beside this file hold every setting once; everything else is derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable


@dataclass(frozen=True)
class Option:
    """One setting of a tool: its flag, its value rules and its explanation.

    flag           "--learning_rate"; the destination and the `--config_file` key are the name without dashes
    kind           str, int, float, or bool for a switch; a callable that converts a string is allowed
    nargs          None, "*", "+" or a number, as in argparse
    minimum, maximum   inclusive bounds, checked when the arguments are parsed
    unit           for tooltips: "steps", "GB", "frames", ...
    architectures  None = every architecture; else the card ids it applies to
    refused        reason why a flag of musubi-tuner is not done here (yet); using it is an error, never ignored
    advanced       hide the widget behind ComfyUI's "advanced"
    """

    flag: str
    kind: type | Callable[[str], Any] = str
    default: Any = None
    help: str = ""
    choices: tuple[str, ...] | None = None
    nargs: str | int | None = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    architectures: tuple[str, ...] | None = None
    refused: str | None = None
    advanced: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Destination name: the key in the namespace and in `--config_file`."""
        return self.flag.removeprefix("--")

    @property
    def is_switch(self) -> bool:
        return self.kind is bool
