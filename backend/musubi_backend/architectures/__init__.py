"""Architectures are discovered: every sub-folder with a `card.py` is one, and everything that knows it lies in there."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

from .card import Card


@lru_cache(maxsize=1)
def cards() -> dict[str, Card]:
    """All cards by id, in the order of lists, without importing any model code."""
    found = [importlib.import_module(f"{__name__}.{folder}.card").CARD for folder in _folders()]
    by_id = {card.id: card for card in sorted(found, key=lambda card: (card.order, card.id))}
    if len(by_id) < len(found):
        raise RuntimeError("two architecture folders claim the same id")
    return by_id


def default_card() -> Card:
    """The architecture that is meant where none is named."""
    return next(iter(cards().values()))


def chosen_card(card_id: str, given: Mapping[str, Any]) -> Card:
    """The card of an architecture as the task has it that the options of a tool name. KeyError for an unknown id or task."""
    card = cards()[card_id]
    return card.at(given.get(card.task_option))


def cards_of_caches() -> dict[str, Card]:
    """What cached files can be for, by the short name in theirs: an architecture, or tasks of one whose caches differ."""
    found: dict[str, Card] = {}
    for card in cards().values():
        for one in (card, *(card.at(task.name) for task in card.tasks)):
            found.setdefault(one.cache_id, one)
    return found


def same_layers() -> list[list[Card]]:
    """The architectures whose transformers have the same layers under other names (`Card.layers_of`), together."""
    groups = ([card for card in cards().values() if owner in (card.id, card.layers_of)] for owner in cards())
    return [group for group in groups if len(group) > 1]


@cache
def part_of(card_id: str, module: str) -> ModuleType | None:
    """A module of an architecture's folder, such as "options"; None where it has no such module. KeyError for an unknown id."""
    for folder in _folders():
        if importlib.import_module(f"{__name__}.{folder}.card").CARD.id == card_id:
            name = f"{__name__}.{folder}.{module}"
            return importlib.import_module(name) if importlib.util.find_spec(name) else None
    raise KeyError(f"no architecture {card_id!r}; known: {', '.join(cards())}")


def _folders() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
