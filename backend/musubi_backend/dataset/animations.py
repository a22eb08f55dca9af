"""Animated WebP and AVIF images as clips: FFmpeg does not read the former, nor the transparency of the latter."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .buckets import Size
from .colours import coding_of
from .images import image_notes, open_image, pixels_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_ENOUGH = 10  # frames that tell the rate: durations are whole milliseconds
_STILL = "animated: only the first frame is taken"


@dataclass(frozen=True)
class AnimationFrame:
    """A frame of an animated image, decoded. time, duration: in seconds; coding: see `colours.coding_of`; said: its notes, of the clip."""

    path: Path
    image: Image
    time: float
    duration: float
    coding: tuple[int, int]
    said: tuple[str, ...]

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]. UnusableMedium."""
        return pixels_of(self.image, self.path, self.coding)

    @property
    def size(self) -> Size:
        """(width, height) as shown."""
        return self.image.size

    def notes(self) -> tuple[str, ...]:
        """What a person should know about how this clip is read."""
        return self.said


def frames_of_animation(path: Path) -> Generator[AnimationFrame, None, None]:
    """The frames in order; where one is damaged, the clip ends. UnusableMedium."""
    with open_image(path) as image:
        said = tuple(note for note in image_notes(path, image) if note != _STILL)
        coding = coding_of(path, image)
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                image.load()
            except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
                if not number:
                    raise
                logger.warning(f"{path}: damaged behind frame {number}; what follows is left out ({type(error).__name__})")
                return
            time, duration = (image.info.get(name, 0) / 1000 for name in ("timestamp", "duration"))
            yield AnimationFrame(path, image.copy(), time, duration, coding, said)


def rate_of_animation(path: Path) -> Fraction | None:
    """Frames per second, by the durations of the first frames; None where they have none. UnusableMedium."""
    with closing(frames_of_animation(path)) as frames:
        durations = [frame.duration for frame in islice(frames, _ENOUGH)]
    whole = sum(durations)
    return Fraction(len(durations) / whole).limit_denominator(1000) if whole else None
