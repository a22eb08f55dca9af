"""Widgets made from the backend's option table, so that no name, default, range or explanation is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import Option
from ..backend.musubi_backend.options.registry import options_for
from .spec import Host, Input

UNSET = "default"
NONE = "none"
_LARGEST = 2**31 - 1
_FLOAT_LIMIT = 1e9


def widget(tool: str, option_name: str, default: Any = None, *, name: str = "", off: Any = None, **changes: Any) -> Input:
    """The widget of one option of `tool`.

    default: where the node's differs from musubi-tuner's. off: the value that leaves the option unset, for options that are
    unset by default (a choice gets `UNSET` for that by itself). changes: fields of `Input` to replace.
    """
    option = options_for(tool)[option_name]
    fields: dict[str, Any] = {
        "name": name or option_name,
        "kind": _kind(option),
        "tooltip": option.explanation,
        "default": option.default if default is None else default,
        "minimum": option.minimum,
        "maximum": option.maximum,
        "off": off,
        "option": option_name,
        "advanced": option.advanced,
    }
    if fields["kind"] == "COMBO":
        _offer_choices(option, fields)
    fields |= changes
    kind = fields["kind"]
    if kind == "FLOAT":
        fields["default"] = None if fields["default"] is None else float(fields["default"])
        fields.setdefault("step", 0.01)
    if kind == "STRING" and fields["default"] is None:
        fields["default"], fields["off"] = "", ""
    if kind == "STRING" and fields["default"] == "":
        fields["off"] = ""
    if kind in ("INT", "FLOAT"):
        _bound(fields)
    if fields["default"] is None:
        fields["default"] = fields["off"]
    if fields["default"] is None:
        raise ValueError(f"{tool} {option_name} is unset by default: say which widget value means that (off=...)")
    if kind in ("INT", "FLOAT") and fields["off"] is not None:
        fields["tooltip"] = _with_off(fields["tooltip"], fields["off"])
    return Input(**fields)


def folder(name: str, key: str, tooltip: str, *, empty: str = "", **changes: Any) -> Input:
    """A picker over one of the host's model folders; `empty` is offered first where nothing may be chosen."""

    def names(host: Host) -> list[str]:
        return ([empty] if empty else []) + host.model_names(key)

    return Input(name, "COMBO", tooltip, default=empty or None, choices=names, off=empty or None, **changes)


def settings(inputs: Iterable[Input], values: Mapping[str, Any]) -> dict[str, Any]:
    """option name -> value for every widget that sets one, without those that are off."""
    return {
        entry.option: values[entry.name]
        for entry in inputs
        if entry.option and values[entry.name] is not None and (entry.off is None or values[entry.name] != entry.off)
    }


def applicable(inputs: Iterable[Input], values: Mapping[str, Any], tool: str, title: str) -> dict[str, Any]:
    """As `settings`, for a node that serves several architectures: without what `tool` does not have. UserError where such a widget
    was set. title: what to call the architecture."""
    known = options_for(tool)
    entries = [entry for entry in inputs if entry.option]
    for entry in entries:
        if entry.option not in known and values[entry.name] not in (None, entry.default, entry.off):
            raise UserError(f"{entry.name} has no effect for {title}: set it back to {entry.default!r}")
    return settings([entry for entry in entries if entry.option in known], values)


def _with_off(tooltip: str, off: float) -> str:
    """Says which value of the widget leaves the option unset: behind its default, or, where that means nothing happens, as "off"."""
    if f" {off:g}: " in tooltip or f"Default: {off:g}." in tooltip:
        return tooltip
    said, count = re.subn(r"(Default: .*?)\.(?= [A-Z]|$)", rf"\g<1> ({off:g} = default).", tooltip, count=1)
    return said if count else f"{tooltip} {off:g} = off."


def _kind(option: Option) -> str:
    if option.choices:
        return "COMBO"
    if option.kind is bool:
        return "BOOLEAN"
    if option.kind is int:
        return "INT"
    return "FLOAT" if option.kind is float else "STRING"


def _offer_choices(option: Option, fields: dict[str, Any]) -> None:
    """Leave out what is not supported; offer `UNSET` first where the option may be left unset."""
    choices = tuple(choice for choice in option.choices or () if choice not in option.unsupported_choices)
    if option.default is None:
        choices, fields["off"] = (UNSET, *choices), UNSET
        fields["default"] = fields["default"] or UNSET
    fields["choices"] = choices


def _bound(fields: dict[str, Any]) -> None:
    """Every number gets limits: the web page would choose its own."""
    limit = _LARGEST if fields["kind"] == "INT" else _FLOAT_LIMIT
    fields["minimum"] = -limit if fields["minimum"] is None else fields["minimum"]
    fields["maximum"] = limit if fields["maximum"] is None else fields["maximum"]
