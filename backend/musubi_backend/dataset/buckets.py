"""Aspect-ratio buckets: which size an image or clip is resized to. Pure functions on (width, height), equal to musubi-tuner's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class Buckets:
    """The sizes of one dataset. Build with `Buckets.of`."""

    area: int
    step: int
    sizes: tuple[Size, ...]
    no_upscale: bool

    @classmethod
    def of(cls, resolution: Size, *, enabled: bool = True, no_upscale: bool = False, step: int = 16) -> Buckets:
        """All sizes whose area is about that of `resolution` and whose sides are multiples of `step`, sorted.

        Not enabled: the one size `resolution` itself, and `no_upscale` has no meaning. Otherwise the smaller side runs from
        half the square root of the area up to the root.
        """
        area = resolution[0] * resolution[1]
        if not enabled:
            return cls(area, step, (resolution,), False)
        root = int(math.sqrt(area))
        first = floor_to(root // 2, step)
        if first <= 0:
            least = f"{2 * step}x{2 * step}"
            raise UserError(f"resolution {resolution[0]}x{resolution[1]} is too small for buckets in steps of {step}; use at least {least}")
        sides = [(side, floor_to(area // side, step)) for side in range(first, root + step, step)]
        return cls(area, step, tuple(sorted({*sides, *((h, w) for w, h in sides)})), no_upscale)

    def choose(self, image: Size) -> Size:
        """The bucket whose aspect ratio is nearest to the image's (the first on ties), or with `no_upscale` and an image no
        larger than the area, the image's own size rounded down to the step."""
        width, height = image
        if self.no_upscale and width * height <= self.area:
            return floor_to(width, self.step), floor_to(height, self.step)
        return _nearest(self.sizes, width / height)


def best_fit(image: Size, resolution: Size, step: int = 16) -> Size:
    """A size of about `resolution`'s area fitted to the image's own aspect ratio (for control images)."""
    area = resolution[0] * resolution[1]
    ratio = image[0] / image[1]
    middle = floor_to(int(math.sqrt(area * ratio)), step)
    candidates = [(width, floor_to(area // width, step)) for width in range(middle - 2 * step, middle + 3 * step, step) if width > 0]
    usable = [(width, height) for width, height in candidates if height > 0]
    if not usable:
        raise UserError(f"an image of {image[0]}x{image[1]} is too elongated for {resolution[0]}x{resolution[1]} pixels in steps of {step}")
    return _nearest(usable, ratio)


def floor_to(number: int, step: int) -> int:
    """`number` rounded down to a multiple of `step`."""
    return number - number % step


def _nearest(sizes: Sequence[Size], ratio: float) -> Size:
    return min(sizes, key=lambda size: abs(size[0] / size[1] - ratio))
