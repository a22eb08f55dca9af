"""What each phase of a training needs as an image: a bar of parts on each other, beside a line for what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.memory.estimate import GB, PARTS, size

_WIDTH, _RIGHT, _BAR, _GAP, _MARGIN, _ROW = 720, 90, 38, 18, 12, 26
_LETTERS = 18  # pixels high: a node shows the image at half its width
_PAPER, _INK, _LIMIT = "#ffffff", "#222222", "#b3421f"
_COLOURS = ("#4878a8", "#e0a030", "#58a868", "#a868a8", "#c86858", "#b09070", "#68a8a8", "#999999")


def draw(path: Path, phases: Sequence[Mapping[str, Any]], limit: int | None, title: str) -> None:
    """Write a PNG. phases: "name", "total" and "parts" (bytes by name) of each; limit: bytes there are, None where that is not known."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_LETTERS)
    used = [part for part in PARTS if any(phase["parts"].get(part) for phase in phases)]
    left = 2 * _MARGIN + max((font.getlength(str(phase["name"])) for phase in phases), default=0)
    title_lines = _wrapped(title, font.getlength)
    first = _MARGIN + _ROW * (len(title_lines) + 1)
    legend = first + len(phases) * (_BAR + _GAP) + 8
    image = Image.new("RGB", (_WIDTH, legend + _ROW * ((len(used) + 2) // 3) + 8), _PAPER)
    pen = ImageDraw.Draw(image)

    def write(x: float, y: float, text: str, colour: str = _INK, anchor: str = "lm") -> None:
        pen.text((x, y), text, colour, font, anchor=anchor)

    for number, line in enumerate(title_lines):
        write(_MARGIN, _MARGIN + _ROW * (number + 0.5), line)
    across = (_WIDTH - left - _RIGHT) / (max([phase["total"] for phase in phases] + [limit or 0]) or 1)
    for row, phase in enumerate(phases):
        top, x = first + row * (_BAR + _GAP), left
        write(_MARGIN, top + _BAR / 2, str(phase["name"]))
        for part in used:
            wide = phase["parts"].get(part, 0) * across
            if wide >= 1:
                pen.rectangle([x, top, x + wide, top + _BAR], fill=_colour(part))
            x += wide
    if limit is not None:
        x = left + limit * across
        pen.line([(x, first - 6), (x, legend - 12)], fill=_LIMIT, width=2)
        write(x, first - _ROW / 2 - 4, size(limit), _LIMIT, "mm")
    for row, phase in enumerate(phases):  # above the line, which may go through them
        middle, x = first + row * (_BAR + _GAP) + _BAR / 2, left
        for part in used:
            wide, inside = phase["parts"].get(part, 0) * across, f"{phase['parts'].get(part, 0) / GB:.1f}"
            long = font.getlength(inside)
            if wide > long + 12:
                pen.rectangle([x + wide / 2 - long / 2 - 3, middle - 11, x + wide / 2 + long / 2 + 3, middle + 11], fill=_colour(part))
                write(x + wide / 2, middle, inside, _PAPER, "mm")
            x += wide
        total = size(phase["total"])
        pen.rectangle([x + 6, middle - 11, x + 10 + font.getlength(total), middle + 11], fill=_PAPER)
        write(x + 8, middle, total)
    for number, part in enumerate(used):
        x, y = _MARGIN + 236 * (number % 3), legend + _ROW * (number // 3)
        pen.rectangle([x, y, x + 16, y + 16], fill=_colour(part))
        write(x + 24, y + 8, part)
    with replacing(path) as part_file, part_file.open("wb") as file:
        image.save(file, "PNG")


def _wrapped(text: str, length: Callable[[str], float]) -> list[str]:
    """Its words in as many lines as they need."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= _WIDTH - 2 * _MARGIN or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _colour(part: str) -> str:
    return _COLOURS[PARTS.index(part) % len(_COLOURS)]
