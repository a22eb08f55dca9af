"""The loss of a training as a small SVG image, and as core ComfyUI's LOSS_MAP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..backend.musubi_backend.atomic import write_text

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 44
_SMOOTHING = 0.95


def loss_map(losses: Sequence[float]) -> dict[str, list[float]]:
    """Finite losses with at least two different values: core's LossGraph node divides by their range."""
    finite = [float(loss) for loss in losses if math.isfinite(loss)] or [0.0]
    if len(set(finite)) < 2:
        finite.append(finite[0] + max(1e-6, abs(finite[0]) * 1e-6))
    return {"loss": finite}


def write_image(path: Path, losses: Sequence[float], title: str) -> None:
    """Draw the losses and their running mean."""
    values = loss_map(losses)["loss"]
    low, high = min(values), max(values)
    smooth, mean = [], values[0]
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        smooth.append(mean)
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n'
        f'<text x="{_MARGIN}" y="20">{_escaped(title)}: loss over {len(values)} steps</text>\n'
        f'<text x="4" y="{_MARGIN + 4}">{high:.3g}</text><text x="4" y="{_HEIGHT - _MARGIN + 4}">{low:.3g}</text>\n'
        f'<polyline fill="none" stroke="#9bd" points="{_points(values, low, high)}"/>\n'
        f'<polyline fill="none" stroke="#036" stroke-width="2" points="{_points(smooth, low, high)}"/>\n'
        "</svg>\n",
    )


def _points(values: Sequence[float], low: float, high: float) -> str:
    across, up = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    last = max(1, len(values) - 1)
    return " ".join(
        f"{_MARGIN + across * index / last:.1f},{_HEIGHT - _MARGIN - up * (value - low) / (high - low):.1f}"
        for index, value in enumerate(values)
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
