"""What each phase of a training needs as an image: a bar of parts on each other, beside a line for what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.memory.estimate import GB, PARTS, size

_WIDTH, _LEFT, _RIGHT, _TOP, _BAR, _GAP = 720, 150, 70, 48, 34, 18
_PAPER, _INK, _LIMIT = "#ffffff", "#222222", "#b3421f"
_COLOURS = ("#4878a8", "#e0a030", "#58a868", "#a868a8", "#c86858", "#b09070", "#68a8a8", "#999999")


def draw(path: Path, phases: Sequence[Mapping[str, Any]], limit: int | None, title: str) -> None:
    """Write a PNG. phases: "name", "total" and "parts" (bytes by name) of each; limit: bytes there are, None where that is not known."""
    from PIL import Image, ImageDraw

    used = [part for part in PARTS if any(phase["parts"].get(part) for phase in phases)]
    legend = _TOP + len(phases) * (_BAR + _GAP) + 8
    image = Image.new("RGB", (_WIDTH, legend + 20 * ((len(used) + 2) // 3) + 8), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((12, 12), title, fill=_INK)
    across = (_WIDTH - _LEFT - _RIGHT) / (max([phase["total"] for phase in phases] + [limit or 0]) or 1)
    for row, phase in enumerate(phases):
        top, x = _TOP + row * (_BAR + _GAP), float(_LEFT)
        pen.text((12, top + _BAR / 2 - 6), str(phase["name"]), fill=_INK)
        for part in used:
            wide = phase["parts"].get(part, 0) * across
            if wide >= 1:
                pen.rectangle([x, top, x + wide, top + _BAR], fill=_colour(part))
                if wide > 30:
                    pen.text((x + 4, top + _BAR / 2 - 6), f"{phase['parts'][part] / GB:.1f}", fill=_PAPER)
            x += wide
        pen.text((x + 4, top + _BAR / 2 - 6), size(phase["total"]), fill=_INK)
    if limit is not None:
        x = _LEFT + limit * across
        pen.line([(x, _TOP - 8), (x, legend - 12)], fill=_LIMIT, width=2)
        pen.text((x - 60, _TOP - 20), size(limit), fill=_LIMIT)
    for number, part in enumerate(used):
        x, y = 12 + 236 * (number % 3), legend + 20 * (number // 3)
        pen.rectangle([x, y, x + 12, y + 12], fill=_colour(part))
        pen.text((x + 18, y), part, fill=_INK)
    with replacing(path) as part_file, part_file.open("wb") as file:
        image.save(file, "PNG")


def _colour(part: str) -> str:
    return _COLOURS[PARTS.index(part) % len(_COLOURS)]
