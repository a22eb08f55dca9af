"""Small images drawn with Pillow: the loss curve of a run and the histogram of `--show_timesteps image`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import atomic

if TYPE_CHECKING:
    from PIL import ImageDraw

Colour = tuple[int, int, int]

_SIZE, _LEFT, _TOP, _RIGHT, _BOTTOM = (960, 480), 80, 40, 20, 40
_INK, _GRID, _PALE, _STRONG, _HELD_OUT = (40, 40, 40), (225, 225, 225), (170, 200, 235), (25, 90, 170), (200, 80, 0)


def loss_curve(path: Path, losses: Sequence[float], title: str, validation: Mapping[int, float]) -> None:
    """Draw the loss of every step, pale, and its running mean over about a twentieth of the run, strong; the validation losses by step
    (0: before the first), with a ring around the lowest. Replaces `path`."""
    width = max(1, len(losses) // 20)
    sums, smooth = 0.0, []
    for index, loss in enumerate(losses):
        sums += loss - (losses[index - width] if index >= width else 0.0)
        smooth.append(sums / min(index + 1, width))
    _plot(path, title, "step", [(losses, _PALE), (smooth, _STRONG)], first=1, measured=validation)


def histogram(path: Path, counts: Sequence[float], title: str) -> None:
    """Draw counts over timesteps as a line. Replaces `path`."""
    _plot(path, title, "timestep", [(counts, _STRONG)], first=0, floor=0.0)


def _plot(
    path: Path,
    title: str,
    unit: str,
    curves: Sequence[tuple[Sequence[float], Colour]],
    first: int,
    floor: float | None = None,
    measured: Mapping[int, float] | None = None,
) -> None:
    from PIL import Image, ImageDraw

    points = {max(0, step - first): value for step, value in (measured or {}).items()}
    values = [*(value for curve, _ in curves for value in curve), *points.values()]
    low, high = (min(values) if floor is None else floor), max(values)
    if high == low:
        low, high = low - 0.5, high + 0.5
    right, bottom = _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM
    count = len(curves[0][0])

    def place(index: float, value: float) -> tuple[float, float]:
        return _LEFT + (right - _LEFT) * index / max(1, count - 1), bottom - (bottom - _TOP) * (value - low) / (high - low)

    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.text((_LEFT, 12), title, fill=_INK, font_size=16)
    for tick in range(5):
        value, index = low + (high - low) * tick / 4, (count - 1) * tick / 4
        x, y = place(index, value)
        draw.line([(_LEFT, y), (right, y)], fill=_GRID)
        draw.text((_LEFT - 8, y), f"{value:.4g}", fill=_INK, anchor="rm", font_size=13)
        draw.text((x, bottom + 8), f"{first + index:.0f}", fill=_INK, anchor="mt", font_size=13)
    draw.text(((_LEFT + right) / 2, _SIZE[1] - 4), unit, fill=_INK, anchor="mb", font_size=13)
    for curve, colour in curves:
        line = [place(index, value) for index, value in enumerate(curve)]
        if len(line) == 1:
            line = [(_LEFT, line[0][1]), (right, line[0][1])]
        draw.line(line, fill=colour, width=2)
    if points:
        _draw_measured(draw, {place(index, value): value for index, value in points.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as part:
        image.save(part, format="PNG")


def _draw_measured(draw: ImageDraw.ImageDraw, values: Mapping[tuple[float, float], float]) -> None:
    """values: by their places."""
    draw.line(list(values), fill=_HELD_OUT, width=2)
    for x, y in values:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_HELD_OUT)
    x, y = min(values, key=values.__getitem__)
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), outline=_HELD_OUT, width=2)
