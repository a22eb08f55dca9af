"""Writing a command line from values. Whatever comes out parses here and in musubi-tuner alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .option import Option
from .registry import tool
from .values import checked, default_of


def to_argv(tool_name: str, values: Mapping[str, Any]) -> list[str]:
    """Arguments of `tool_name` for `values` (option name -> value), in the order of the tables, without the tool's name.

    None, an empty list and a value equal to the default are left out. Raises UserError, naming the flag, for unknown names,
    wrong types, values out of bounds, and list items that no command line can carry. Options that this backend rejects are
    written all the same, as musubi-tuner may be meant.
    """
    target = tool(tool_name)
    wanted = {target.option(name).name: value for name, value in values.items()}
    argv: list[str] = []
    for option in target.options:
        value = wanted.get(option.name)
        if value is None:
            continue
        try:
            value = checked(option, value)
            if value != default_of(option):
                argv += _words(option, value)
        except ValueError as error:
            raise UserError(f"{option.flag} {error}") from None
    return argv


def _words(option: Option, value: Any) -> list[str]:
    if option.is_switch:
        return [option.flag]
    if isinstance(value, list):
        words = [_list_word(item) for item in value]
        return words if option.is_positional or not words else [option.flag, *words]
    if value == "--":
        raise ValueError("cannot be '--': argparse before Python 3.13 drops it")
    word = value if isinstance(value, str) else repr(value)
    return [f"{option.flag}={word}"] if word.startswith("-") else [option.flag, word]


def _list_word(item: Any) -> str:
    """argparse takes a word with a leading dash for a flag, unless it is a plain negative number without exponent."""
    if isinstance(item, str):
        if item.startswith("-"):
            raise ValueError(f"cannot hold {item!r}: in a list, a value must not begin with '-'")
        return item
    if isinstance(item, float) and item < 0:
        from decimal import Decimal

        return format(Decimal(repr(item)), "f")
    return repr(item)
