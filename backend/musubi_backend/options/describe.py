"""Words about an option that `--help`, `docs/flags.md` and tooltips share."""

from __future__ import annotations

from typing import Any

from .option import Option

_KIND_NAMES: dict[Any, str] = {str: "text", int: "int", float: "float"}


def kind_name(option: Option) -> str:
    """Short name of what the flag takes: "int", "2 x int", "list of path", "switch"."""
    if option.is_switch:
        return "switch"
    one = "path" if option.path else _KIND_NAMES.get(option.kind, "steps or share")
    if option.nargs is None:
        return one
    if option.nargs == "...":
        return "all that follows"
    return f"{option.nargs} x {one}" if isinstance(option.nargs, int) else f"list of {one}"


def default_text(option: Option) -> str:
    """The default as one would type it; "" where there is none worth showing."""
    if option.is_switch or option.default is None or option.default == "":
        return ""
    return " ".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)


def bounds(option: Option) -> str:
    """The range of allowed values in words: "1 to 100", "at least 1"; empty where any value goes."""
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    if low is not None:
        return f"at least {_number(low)}"
    return "" if high is None else f"at most {_number(high)}"


def facts(option: Option) -> str:
    """Default, bounds and unit in one phrase."""
    default = default_text(option)
    parts = [
        "required" if option.required else "",
        "not in musubi-tuner" if option.own else "",
        f"default {default}" if default else "",
        bounds(option),
        option.unit,
    ]
    return ", ".join(part for part in parts if part)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
