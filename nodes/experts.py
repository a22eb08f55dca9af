"""Models of two experts, one transformer for high noise and one for low noise: what the nodes of a family with such tasks add."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.errors import UserError
from . import loras
from .spec import ANY, Host, Input, Output
from .widgets import widget

HIGH, LOW, BOTH = "high noise", "low noise", "both"
_OPTIONS = ("timestep_boundary", "offload_inactive_dit", "lora_per_expert")
_ADDED = ("steps_per_expert",)  # later: saved workflows know widgets by their place
_PER_EXPERT = ("-low", "-high")  # as the trainer calls the LoRAs of --lora_per_expert
_LORAS = 2
_SUFFIX = "_high_noise"
PREFIX = "high_"


def trainer_inputs(card: Card, tool: str) -> tuple[Input, ...]:
    """What a trainer asks about the two; nothing where the family has no such models."""
    if card.expert is None:
        return ()
    choice = Input(
        "experts",
        "COMBO",
        f"Which expert of {card.two_experts} the LoRA is trained on: high noise decides layout and motion, low noise detail. Each fills in "
        "its own range of noise levels; both trains the two in one run, each on its range, and needs both files. Other models have one.",
        default=BOTH,
        choices=(BOTH, HIGH, LOW),
        tasks=card.expert_tasks,
    )
    offs: dict[str, Any] = {"timestep_boundary": 0}
    return (choice, *(widget(tool, option, off=offs.get(option), tasks=card.expert_tasks) for option in _OPTIONS))


def added_trainer_inputs(card: Card, tool: str) -> tuple[Input, ...]:
    """Those that come after all others."""
    return () if card.expert is None else tuple(widget(tool, option, tasks=card.expert_tasks, optional=True) for option in _ADDED)


def trainer_outputs(card: Card) -> tuple[Output, ...]:
    """What a trainer gives besides the LoRA's name; nothing where the family has no such models."""
    if card.expert is None:
        return ()
    what = f"{card.two_experts}: name of the high-noise LoRA where each expert has one, else the same LoRA"
    return (Output("high_lora_name", ANY, what),)


def training_values(card: Card, inputs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """option name -> value of a training, from what the trainer's own widgets say (`own`): with two experts their transformers and range
    of noise levels, else without their widgets. UserError for what does not go together."""
    if card.expert is None:
        return dict(own)
    models = inputs["models"]
    about_both = {name: value for name, value in own.items() if name in (*_OPTIONS, *_ADDED)}
    others = {name: value for name, value in own.items() if name not in about_both}
    boundary = card.task(models["task"]).boundary
    return others if boundary is None else {**others, **_of_choice(card, models, inputs["experts"], about_both, boundary)}


def _of_choice(card: Card, models: Mapping[str, Any], choice: str, own: Mapping[str, Any], boundary: float) -> dict[str, Any]:
    assert card.expert is not None
    expert = card.expert.name
    high, low = models.get(expert), models["dit"]
    level = own.get("timestep_boundary", round(1000 * boundary))
    if choice != BOTH and own.get("lora_per_expert"):
        raise UserError(f"lora_per_expert is for training both experts, and experts is {choice}: choose {BOTH}, or turn it off")
    if choice == LOW:
        return {expert: None, "min_timestep": 0, "max_timestep": level}
    if high is None:
        raise UserError(f"experts: {choice} needs the high-noise transformer; choose {expert} in {card.family} Model Paths, or {LOW}")
    if choice == HIGH:
        return {"dit": high, expert: None, "min_timestep": level, "max_timestep": 1000}
    return {"dit": low, expert: high, **own}


def endings(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What the names of a training's LoRAs end in; see `runs.Run`."""
    return _PER_EXPERT if values.get("lora_per_expert") else ("",)


def both(lora: Path) -> tuple[Path, Path]:
    """The files of a LoRA for low and for high noise: of a training with one for each expert these, else the file itself twice."""
    low = _PER_EXPERT[0]
    for ending, other in (_PER_EXPERT, _PER_EXPERT[::-1]):
        twin = lora.with_name(lora.name.replace(ending, other, 1))
        if ending in lora.name and twin.is_file():
            return (lora, twin) if ending == low else (twin, lora)
    return lora, lora


def lora_inputs(card: Card | None = None) -> tuple[Input, ...]:
    """The LoRAs of the high-noise expert in a generator; without a card, in a node of all families."""
    named = card.two_experts if card else titles()
    return loras.inputs(_LORAS, PREFIX, f" to the high-noise model of {named}", hidden=True, tasks=card.expert_tasks if card else ())


def titles() -> str:
    """All models of two experts, as a sentence lists them."""
    return " or ".join(card.two_experts for card in cards().values() if card.expert)


def check_loras(card: Card, models: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """UserError where LoRAs of the high-noise expert are chosen and the task has none."""
    if card.expert is None or card.task(models["task"]).boundary is not None:
        return
    for number in range(1, _LORAS + 1):
        name = f"{PREFIX}lora_{number}"
        if loras.is_chosen(dict(inputs), name):
            raise UserError(f"{name} is for the high-noise model of {card.two_experts}; task {models['task']} has none")


def lora_values(host: Host, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """option name -> value of the LoRAs of the high-noise expert."""
    return loras.options(host, dict(inputs), PREFIX, _SUFFIX)
