"""The loss of a training as a small SVG image, and as core ComfyUI's LOSS_MAP."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.counted import counted

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 44
_SMOOTHING = 0.95


def loss_map(losses: Sequence[float]) -> dict[str, list[float]]:
    """Finite losses with at least two different values: core's LossGraph node divides by their range."""
    finite = [float(loss) for loss in losses if math.isfinite(loss)] or [0.0]
    if len(set(finite)) < 2:
        finite.append(finite[0] + max(1e-6, abs(finite[0]) * 1e-6))
    return {"loss": finite}


def write_image(path: Path, losses: Mapping[int, float], title: str, validation: Mapping[int, float] | None = None) -> None:
    """Draw the losses by step and their running mean; the validation losses by step above them, with a ring around the lowest."""
    steps = sorted(losses)
    values = loss_map([losses[step] for step in steps])["loss"]
    measured = {step: value for step, value in sorted((validation or {}).items()) if math.isfinite(value)}
    low, high = min(*values, *measured.values()), max(*values, *measured.values())
    smooth, mean = [], values[0]
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        smooth.append(mean)
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n'
        f'<text x="{_MARGIN}" y="20">{_escaped(title)}: loss over {counted(len(values), "step")}</text>\n'
        f'<text x="4" y="{_MARGIN + 4}">{high:.3g}</text><text x="4" y="{_HEIGHT - _MARGIN + 4}">{low:.3g}</text>\n'
        f'<polyline fill="none" stroke="#9bd" points="{_points(values, low, high)}"/>\n'
        f'<polyline fill="none" stroke="#036" stroke-width="2" points="{_points(smooth, low, high)}"/>\n'
        f"{_validated(measured, steps, len(values), low, high)}"
        "</svg>\n",
    )


def _validated(measured: Mapping[int, float], steps: Sequence[int], count: int, low: float, high: float) -> str:
    """The line of the validation losses, and which is best; "" where there are none."""
    if not measured:
        return ""
    places = [_place(bisect_left(steps, step), value, count, low, high) for step, value in measured.items()]
    best = min(measured, key=measured.__getitem__)
    x, y = places[list(measured).index(best)].split(",")
    dots = "".join(f'<circle cx="{one.split(",")[0]}" cy="{one.split(",")[1]}" r="2.5" fill="#c50"/>' for one in places)
    return (
        f'<polyline fill="none" stroke="#c50" stroke-width="1.5" points="{" ".join(places)}"/>{dots}\n'
        f'<circle cx="{x}" cy="{y}" r="6" fill="none" stroke="#c50"/>\n'
        f'<text x="{_WIDTH - _MARGIN}" y="20" text-anchor="end" fill="#c50">validation, best {measured[best]:.4g} at step {best}</text>\n'
    )


def _points(values: Sequence[float], low: float, high: float) -> str:
    return " ".join(_place(index, value, len(values), low, high) for index, value in enumerate(values))


def _place(index: int, value: float, count: int, low: float, high: float) -> str:
    """Of the n-th of so many values. Validation may be measured before the first and, of a run that goes on, after the last."""
    x = _MARGIN + (_WIDTH - 2 * _MARGIN) * min(index, count - 1) / max(1, count - 1)
    return f"{x:.1f},{_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (value - low) / (high - low):.1f}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
