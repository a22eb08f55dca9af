"""The families of models that have nodes, and their own inputs: data of the architectures' folders (`nodes.py`) turned into inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from ..backend.musubi_backend.architectures import cards, default_card, part_of
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.architectures.widgets import FamilyNodes, Own, Widget
from ..backend.musubi_backend.options.registry import options_for, shared, tool_names
from .spec import Input
from .widgets import widget

_CHANGES = ("tooltip", "step", "maximum", "multiline", "advanced")


def families() -> list[tuple[Card, FamilyNodes]]:
    """Every architecture whose folder says what its nodes show, in the order of lists."""
    found = [(card, part_of(card.id, "nodes")) for card in cards().values()]
    return [(card, module.NODES) for card, module in found if module is not None]


def titles(chosen: Iterable[Card]) -> str:
    """Families as a tooltip lists them."""
    return ", ".join(card.family for card in chosen)


def own_inputs(tool: str, entries: Iterable[Widget | Own]) -> tuple[Input, ...]:
    """The inputs of a node for what its family lists."""
    return tuple(option_input(tool, entry) if isinstance(entry, Widget) else own_input(entry) for entry in entries)


def option_input(tool: str, entry: Widget) -> Input:
    """The widget of one option, as the family wants it."""
    changes: dict[str, Any] = {name: getattr(entry, name) for name in _CHANGES if getattr(entry, name) is not None}
    return widget(tool, entry.option, entry.default, name=entry.name, off=entry.off, tasks=entry.tasks, **changes)


def own_input(entry: Own) -> Input:
    """The input of a family that is no option."""
    return Input(**{one.name: getattr(entry, one.name) for one in dataclasses.fields(entry)} | {"choices": entry.choices or None})


def any_tool(verb: str) -> str:
    """A tool of this verb, for what is the same in those of all architectures: its messages, optimizers and schedules."""
    return tool_names(default_card())[verb]


def shared_widget(verb: str, option_name: str, default: Any = None, **changes: Any) -> Input:
    """`widget` of an option for a node that serves all architectures."""
    tool, option = shared(verb, option_name)
    own = {"tooltip": option.explanation, "takers": _takers(verb, option_name)}
    return widget(tool, option_name, default, **{**own, **changes})


def _takers(verb: str, option: str) -> dict[str, tuple[str, ...]]:
    """The families whose tool of this verb has the option, for `Input.takers`."""
    tools = {card.node_name: tool_names(card) for card in cards().values()}
    found = [family for family, names in tools.items() if verb in names and option in options_for(names[verb])]
    return {} if len(found) == len(tools) else dict.fromkeys(found, ())
