"""The curves of a training as an image: loss, validation where there is any, learning rate, and where it saved and sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_WIDTH, _HEIGHT = 1280, 720
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 96, 32, 64, 48, 28
_RATE_HEIGHT = 110
_PAPER, _INK, _GRID = (255, 255, 255), (34, 34, 34), (226, 226, 226)
_RAW, _SMOOTH, _RATE, _VALIDATION, _SAVE, _SAMPLE = (
    (170, 204, 232),
    (0, 62, 112),
    (122, 92, 20),
    (190, 60, 30),
    (60, 140, 70),
    (130, 90, 170),
)


@dataclass(frozen=True)
class Curve:
    """Finite values at rising steps."""

    steps: Sequence[int] = ()
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Curves:
    """What is drawn. saves, samples: steps at which there was one."""

    loss: Curve
    rate: Curve = Curve()
    validation: Curve = Curve()
    saves: Sequence[int] = ()
    samples: Sequence[int] = ()


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """A running mean that begins at the first value: each value counts `weight` times as much as the one after it. As the page has it."""
    total, weights, means = 0.0, 0.0, []
    for value in values:
        total, weights = weight * total + (1 - weight) * value, weight * weights + (1 - weight)
        means.append(total / weights)
    return means


def draw(curves: Curves, title: str, smoothing: float, logarithmic: bool) -> np.ndarray:
    """A uint8 image [720, 1280, 3]. smoothing: weight of `smoothed`, below 1; logarithmic: of the loss."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(16), ImageFont.load_default(22)
    pen.text((_LEFT, 30), title, _INK, large, anchor="lm")
    steps = [*curves.loss.steps, *curves.validation.steps, *curves.rate.steps]
    across = _Axis(min(steps, default=0), max(steps, default=1), _LEFT, _WIDTH - _RIGHT)
    with_rate = len(set(curves.rate.values)) > 1
    foot = _HEIGHT - _BOTTOM - (_RATE_HEIGHT + _BETWEEN) * with_rate
    logarithmic = logarithmic and min([*curves.loss.values, *curves.validation.values], default=0) > 0
    losses = [*curves.loss.values, *curves.validation.values]
    up = _Axis(min(losses, default=0.0), max(losses, default=1.0), foot, _TOP, logarithmic)
    _grid(pen, up, small)
    for marked, colour in ((curves.samples, _SAMPLE), (curves.saves, _SAVE)):
        for step in marked:
            pen.line([(across.at(step), _TOP), (across.at(step), foot)], fill=colour)
    _line(pen, curves.loss, across, up, _RAW, 1)
    _line(pen, Curve(curves.loss.steps, smoothed(curves.loss.values, smoothing)), across, up, _SMOOTH, 3)
    _line(pen, curves.validation, across, up, _VALIDATION, 3)
    if with_rate:
        rates = _Axis(0.0, max(curves.rate.values), _HEIGHT - _BOTTOM, foot + _BETWEEN)
        _grid(pen, rates, small, count=2)
        _line(pen, curves.rate, across, rates, _RATE, 2)
    for tick in across.ticks(8):
        pen.text((across.at(tick), _HEIGHT - _BOTTOM + 8), f"{tick:g}", _INK, small, anchor="ma")
    legend = [("loss", _SMOOTH), *([("validation", _VALIDATION)] if curves.validation.steps else [])]
    legend += [("saved", _SAVE)] if curves.saves else []
    legend += [("sampled", _SAMPLE)] if curves.samples else []
    legend += [("learning rate", _RATE)] if with_rate else []
    right = float(_WIDTH - _RIGHT)
    for name, colour in reversed(legend):
        pen.text((right, 30), name, colour, small, anchor="rm")
        right -= pen.textlength(name, small) + 20
    return np.array(image)


@dataclass(frozen=True)
class _Axis:
    """From a range of values to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(one) for one in (self.low, self.high, value)) if self.logarithmic else (self.low, self.high, value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * share

    def ticks(self, count: int) -> list[float]:
        """About so many round values in the range, or its ends where it is too narrow for any."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if self.low <= factor * 10.0**power <= self.high]
            return found or [self.low, self.high]
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / count
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        return [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _grid(pen: Any, up: _Axis, font: Any, count: int = 5) -> None:
    for tick in up.ticks(count):
        pen.line([(_LEFT, up.at(tick)), (_WIDTH - _RIGHT, up.at(tick))], fill=_GRID)
        pen.text((_LEFT - 10, up.at(tick)), f"{tick:.4g}", _INK, font, anchor="rm")


def _line(pen: Any, curve: Curve, across: _Axis, up: _Axis, colour: tuple[int, int, int], width: int) -> None:
    """The curve; of many points in one column of pixels their lowest and highest, so that a spike stays visible."""
    columns: dict[int, list[float]] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        columns.setdefault(round(across.at(step)), []).append(up.at(value))
    points = [(float(x), y) for x, ys in sorted(columns.items()) for y in dict.fromkeys((ys[0], min(ys), max(ys), ys[-1]))]
    if len(points) == 1:
        x, y = points[0]
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    elif points:
        pen.line(points, fill=colour, width=width, joint="curve")
