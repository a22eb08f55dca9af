"""Finds settings that have no effect without another one (`tables/needs.py`) in what was asked for."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from ..architectures import cards
from .registry import Tool
from .tables.needs import NEEDS, Need
from .values import default_of


def unmet(tool: Tool, args: Namespace) -> Iterator[tuple[Need, str]]:
    """Each need that `args` does not meet, with a sentence: what has no effect, what it needs, what to do."""
    for need in NEEDS.get(tool.verb, ()):
        name = need.setting.partition("=")[0]
        if hasattr(args, name) and _holds(tool, args, need.setting) and not any(_holds(tool, args, one) for one in need.partners):
            value = getattr(args, name)
            given = f"--{name}" if isinstance(value, (bool, list)) else f"--{name} {value}"
            partners = [words for one in need.partners if (words := _words(tool, one))]
            yield need, _sentence(f"--{name}" if need.rejected else given, partners, need)


def _sentence(given: str, partners: list[str], need: Need) -> str:
    first, flag = need.partners[0], given.split()[0]
    if first.endswith("="):
        return f"{given} has no effect together with --{first[:-1]}: leave one of the two out"
    if not partners:
        return f"{given} has no effect with these models: leave it out"
    needed = " or ".join(partners)
    if need.rejected:
        return f"{given} needs {needed}: add that, or leave {flag} out"
    return f"{given} has no effect alone, it needs {needed}: add that, or leave {flag} out"


def _holds(tool: Tool, args: Namespace, side: str) -> bool:
    name, asks, values = side.partition("=")
    if name.startswith("card."):
        return tool.architecture is not None and getattr(cards()[tool.architecture], name.removeprefix("card.")) is not None
    value = getattr(args, name, None)
    if asks and values:
        return str(value).lower() in values.split(",")
    is_set = bool(value) and value != default_of(tool.option(name))
    return is_set != bool(asks)


def _words(tool: Tool, side: str) -> str:
    """A partner as one would write it; empty where the tool does not have it."""
    name, _, values = side.partition("=")
    if name not in {option.name for option in tool.options}:
        return ""
    return f"--{name} {' or '.join(values.split(','))}" if values else f"--{name}"
