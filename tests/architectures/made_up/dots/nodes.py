"""What the nodes of Dots show and check."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..widgets import START, FamilyNodes, Own, Shared, Size, Widget


def _facts_of(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    return {"fps": 8} if inputs["kind"] == "slow" else {}


def _problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if any(letter.isdigit() for letter in values.get("prompt", "")):
        yield "prompt", "prompt: letters are counted, digits are not; write numbers as words"


def _check(models: Mapping[str, Any], inputs: Mapping[str, Any], have: Collection[str]) -> None:
    if START.option in have:
        raise UserError(f"dots in a {inputs['pattern']} start from nothing: disconnect start_image")


def _values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"infer_steps": 8} if inputs["pattern"] == "ring" else {}


NODES = FamilyNodes(
    generates="Generate a video of dots from text, to show what a family of models needs to say of its nodes.",
    variant=Own("kind", "COMBO", "Which dots they are", default="quick", choices=("quick", "slow")),
    facts=("fps",),
    facts_of=_facts_of,
    trainer=(Widget("guidance_scale", 2.0),),
    sources=(START,),
    generator=(
        Widget("prompt", multiline=True),
        Size(32, 32),
        Widget("video_length", 5, step=4),
        Own("pattern", "COMBO", "How the dots lie", default="grid", choices=("grid", "ring")),
        Widget("seed", 0, maximum=2**32 - 1),
        Shared.LORAS,
        Shared.IMAGES,
        Shared.DEVICE,
    ),
    problems=_problems,
    check=_check,
    values=_values,
)
