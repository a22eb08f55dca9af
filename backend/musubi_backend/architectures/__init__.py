"""Architectures are discovered: every sub-folder with a `card.py` is one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import TYPE_CHECKING

from .card import Card

if TYPE_CHECKING:
    from .protocol import Architecture


@lru_cache(maxsize=1)
def cards() -> dict[str, Card]:
    """All cards by id, without importing any model code."""
    found: dict[str, Card] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            card = importlib.import_module(f"{__name__}.{module.name}.card").CARD
            if card.id in found:
                raise RuntimeError(f"two architecture folders claim the id {card.id!r}")
            found[card.id] = card
    return found


def load(card_id: str) -> Architecture:
    """The adapter of one architecture. Imports torch lazily, when its methods are called."""
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg and importlib.import_module(f"{__name__}.{module.name}.card").CARD.id == card_id:
            adapter: Architecture = importlib.import_module(f"{__name__}.{module.name}.adapter").ADAPTER
            return adapter
    raise KeyError(f"no architecture {card_id!r}; known: {', '.join(cards())}")
