"""LoRAs of a generation: pairs of a file and its strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .spec import Host, Input
from .widgets import NONE, folder

SHOWN = 2  # what goes beyond is behind "advanced"


def inputs(count: int, prefix: str = "", what: str = "", *, hidden: bool = False, tasks: tuple[str, ...] = ()) -> tuple[Input, ...]:
    """`count` pairs `<prefix>lora_1`, `<prefix>multiplier_1`, ...; what: which model they are for; tasks: with which tasks."""
    entries: list[Input] = []
    for number in range(1, count + 1):
        later = hidden or number > SHOWN
        tooltip = f"A LoRA to apply{what}; connect the trainer's lora_name to use what it trained."
        entries.append(folder(f"{prefix}lora_{number}", "loras", tooltip, empty=NONE, advanced=later, tasks=tasks))
        entries.append(
            Input(
                f"{prefix}multiplier_{number}",
                "FLOAT",
                f"Strength of {prefix}lora_{number}.",
                default=1.0,
                minimum=-10.0,
                maximum=10.0,
                step=0.05,
                advanced=later,
                tasks=tasks,
            )
        )
    return tuple(entries)


def files(host: Host, values: dict[str, Any], prefix: str = "") -> tuple[list[Path], list[float]]:
    """The chosen files and their strengths, in order."""
    paths, multipliers = [], []
    number = 1
    while f"{prefix}lora_{number}" in values:
        name, multiplier = values[f"{prefix}lora_{number}"], values.get(f"{prefix}multiplier_{number}")
        if is_chosen(values, f"{prefix}lora_{number}"):
            paths.append(host.model_path("loras", str(name)))
            multipliers.append(1.0 if multiplier is None else multiplier)
        number += 1
    return paths, multipliers


def is_chosen(values: dict[str, Any], name: str) -> bool:
    """True if the widget `name` has a LoRA chosen."""
    return bool(values.get(name)) and values[name] != NONE


def options(host: Host, values: dict[str, Any], prefix: str = "", suffix: str = "") -> dict[str, Any]:
    """`lora_weight<suffix>` and `lora_multiplier<suffix>` of the chosen LoRAs; empty without any."""
    paths, multipliers = files(host, values, prefix)
    return {f"lora_weight{suffix}": [str(path) for path in paths], f"lora_multiplier{suffix}": multipliers} if paths else {}
