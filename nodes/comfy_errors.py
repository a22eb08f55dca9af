"""Mistakes as ComfyUI shows them: one row for each, at the input it is on; and in a run, the sentence alone.

ComfyUI repeats what a node's `validate_inputs` returns for every input that the node was given, and has no way to name one. So the
rows of this pack's nodes are put right where they come out of ComfyUI's own validation; other nodes' are not looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import execution

from . import comfy_language
from .spec import Problem
from .translations import translated

_REPEATED = "custom_validation_failed"
_NOT_POSSIBLE = "Not possible"
_found: ContextVar[list[Problem]] = ContextVar("mistakes of the node that ComfyUI validates now")


class RunError(Exception):
    """Shown by ComfyUI as "MusubiTuner: <sentence>": it puts the module and name of the class before the message."""


RunError.__module__, RunError.__qualname__ = "builtins", "MusubiTuner"


def report(problems: Sequence[Problem]) -> bool | str:
    """What `validate_inputs` returns."""
    if problems and (found := _found.get(None)) is not None:
        found.extend(problems)
    return "\n".join(problem.text for problem in problems) or True


def show_each_once() -> None:
    """Follow ComfyUI's validation of a node with ours."""
    validate = execution.validate_inputs

    @functools.wraps(validate)
    async def validate_inputs(*arguments: Any, **named: Any) -> Any:
        found: list[Problem] = []
        token = _found.set(found)
        try:
            outcome = await validate(*arguments, **named)
        finally:
            _found.reset(token)
        if found:
            rows: list[dict[str, Any]] = outcome[1]
            rows[:] = [row for row in rows if row["type"] != _REPEATED]
            said = {row["extra_info"].get("input_name") for row in rows}  # ComfyUI could not convert the value, for one
            rows += [_row(problem) for problem in found if problem.input not in said]
        return outcome

    execution.validate_inputs = validate_inputs


def _row(problem: Problem) -> dict[str, Any]:
    said = translated(_NOT_POSSIBLE, comfy_language.of_request())
    return {"type": _REPEATED, "message": said, "details": problem.text, "extra_info": {"input_name": problem.input}}
