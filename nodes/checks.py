"""The values of a node's inputs: what is wrong with them, in words, and all that a run needs."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from ..backend.musubi_backend.errors import UserError
from .spec import Host, Input, Node, NodeSpec, Problem

OWN_KINDS = "MUSUBITUNER_"
"""What the kinds of sockets begin with that only nodes of this pack fill."""
_LONGEST = 1000  # characters of a sentence about a value


def check(node: Node, host: Host, constants: dict[str, Any], *, listed: bool = True) -> list[Problem]:
    """All checks of widget values: type, range, choice, then the node's own. At most one problem for each input.

    listed: also look up choices that the host lists (model files).
    """
    problems: dict[str, Problem] = {}
    for spec in node.spec.inputs:
        if spec.kind.startswith(OWN_KINDS) and spec.name in constants:  # its paths and settings were checked by the node that made it
            said: str | None = f"{spec.name}: connect it to a node of this pack; a value written into the prompt is not taken"
        elif spec.is_widget and spec.name in constants and (listed or not callable(spec.choices)):
            said = _check_value(spec, host, constants[spec.name])
        else:
            continue
        if said:
            problems[spec.name] = Problem(spec.name, said)
    for problem in node.validate(host, **{name: value for name, value in constants.items() if name not in problems}):
        problems.setdefault(problem.input, Problem(problem.input, _of_readable_length(problem.text)))
    return list(problems.values())


def _of_readable_length(text: str) -> str:
    """A sentence that repeats a long value, without its middle."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


def complete(spec: NodeSpec, given: dict[str, Any], but: Collection[str] = ()) -> dict[str, Any]:
    """`given` with defaults for absent widgets, numbers in their type, and None for absent sockets. UserError for unknown names, and for
    required sockets without a value, except `but`."""
    unknown = sorted(set(given) - {entry.name for entry in spec.inputs})
    if unknown:
        raise UserError(f"{spec.display_name} has no input {', '.join(unknown)}; it has {', '.join(entry.name for entry in spec.inputs)}")
    values: dict[str, Any] = {}
    for entry in spec.inputs:
        value = given.get(entry.name, entry.default if entry.is_widget else None)
        if entry.kind == "FLOAT" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is None and not entry.is_widget and not entry.optional and entry.name not in but:
            raise UserError(f"{spec.display_name}: input {entry.name} is not connected")
        values[entry.name] = value
    return values


def prepared(node: Node, host: Host, given: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a run, checked again: values that came over a link were not there when the prompt was checked. UserError if wrong."""
    values = complete(node.spec, given)
    widgets = {entry.name: values[entry.name] for entry in node.spec.inputs if entry.is_widget and values[entry.name] is not None}
    problems = check(node, host, widgets, listed=False)  # a name that no list has is rejected where its file is looked up
    if problems:
        raise UserError("\n".join(problem.text for problem in problems))
    return values


def prechecked(node: Node, host: Host, given: dict[str, Any]) -> None:
    """UserError where the inputs that are not made late are wrong."""
    late = {entry.name for entry in node.spec.inputs if entry.late}
    problem = node.precheck(host, **{name: value for name, value in complete(node.spec, given, but=late).items() if name not in late})
    if problem:
        raise UserError(problem)


def choices_of(entry: Input, host: Host) -> list[str]:
    """The values a COMBO offers now."""
    if callable(entry.choices):
        return entry.choices(host)
    return list(entry.choices or ())


# names of files that are no UTF-8 come as U+DC80 to U+DCFF; other halves cannot be passed on
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_TYPES: dict[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "BOOLEAN": (bool,), "STRING": (str,), "COMBO": (str,)}


def _check_value(entry: Input, host: Host, value: Any) -> str | None:
    if not _fits(entry.kind, value):
        return f"{entry.name}: {value!r} is not {_kind_in_words(entry.kind)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{entry.name}: {value} is not a finite number"
    if entry.off is not None and value == entry.off and entry.kind != "COMBO":
        return None
    if entry.minimum is not None and value < entry.minimum:
        return f"{entry.name}: {value} is below the minimum {entry.minimum:g}"
    if entry.maximum is not None and value > entry.maximum:
        return f"{entry.name}: {value} is above the maximum {entry.maximum:g}"
    if entry.kind == "STRING" and "\0" in value:
        return f"{entry.name} holds a NUL character"
    if entry.kind == "STRING" and _HALF.search(value):
        return f"{entry.name} holds half a character, {_HALF.findall(value)[0]!a}: write it anew"
    if entry.kind == "STRING" and entry.option and value == "--":
        return f"{entry.name}: '--' alone cannot be passed on; write something else"
    if entry.kind == "COMBO":
        known = choices_of(entry, host)
        if value.replace("\\", "/") not in {name.replace("\\", "/") for name in known}:
            listed = ", ".join(known[:12]) + (", …" if len(known) > 12 else "") if known else "nothing yet"
            return f"{entry.name}: {value!r} is not there; available: {listed}"
    return None


def _fits(kind: str, value: object) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "BOOLEAN" or not isinstance(value, bool))


def _kind_in_words(kind: str) -> str:
    return {"INT": "a whole number", "FLOAT": "a number", "BOOLEAN": "true or false", "STRING": "text", "COMBO": "one of the choices"}[kind]
