"""The decay of an averaged LoRA as an image: what stays at each checkpoint, and how much each one counts in the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.lora.ema_schedule import shares

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 360, 56, 40, 48
_PAPER, _INK, _FAINT, _BAR, _CURVE = "#ffffff", "#222222", "#dddddd", "#9cc3e6", "#b3421f"
_LONGEST_NAME = 14


def draw(path: Path, names: Sequence[str], betas: Sequence[float], title: str) -> None:
    """Write a PNG. names: of the checkpoints, oldest first; betas: the decay before each but the first."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(image)
    parts = shares(betas)
    top = max(parts)
    step = (_WIDTH - 2 * _LEFT) / max(1, len(names))
    pen.text((_LEFT, 12), title, fill=_INK)
    for level in (0.0, 0.5, 1.0):
        pen.line([(_LEFT, _y(level)), (_WIDTH - _LEFT, _y(level))], fill=_FAINT)
        pen.text((8, _y(level) - 6), f"{level:.1f}", fill=_CURVE)
        pen.text((_WIDTH - _LEFT + 6, _y(level) - 6), f"{level * top:.0%}", fill=_INK)
    centres = [_LEFT + (index + 0.5) * step for index in range(len(names))]
    for centre, part in zip(centres, parts, strict=True):
        pen.rectangle([centre - 0.38 * step, _y(part / top), centre + 0.38 * step, _y(0)], fill=_BAR)
    points = [(centre, _y(beta)) for centre, beta in zip(centres[1:], betas, strict=True)]
    if len(points) > 1:
        pen.line(points, fill=_CURVE, width=2)
    for x, y in points:
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_CURVE)
    for index in _labelled(len(names), step):
        pen.text((centres[index] - 3 * min(len(names[index]), _LONGEST_NAME), _y(0) + 8), names[index][-_LONGEST_NAME:], fill=_INK)
    pen.text(
        (_LEFT, _HEIGHT - 18), "red: beta, what stays of the average so far    blue: share of each checkpoint in the result", fill=_INK
    )
    with replacing(path) as part_file, part_file.open("wb") as file:
        image.save(file, "PNG")


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _labelled(count: int, step: float) -> list[int]:
    """Which names have room under their bars: the first, the last, and some between."""
    every = max(1, round(6.5 * _LONGEST_NAME / step))
    return sorted({*range(0, max(1, count - every), every), count - 1}) if count else []
