"""Images and clips as Qwen2.5-VL sees them: sizes in multiples of 28, rows of patches in the order its patch merger expects.

Our own few lines instead of transformers' processors, whose video part needs torchvision; a test compares the two.
Source of the layout: arXiv 2502.13923, section 2.1; mean and deviation are CLIP's (arXiv 2103.00020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PATCH, TEMPORAL, MERGE = 14, 2, 2
FACTOR = PATCH * MERGE  # one token is 28 x 28 pixels
LONGEST_SHAPE = 200  # the model was not made for narrower strips
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """One image or clip, ready for the vision tower.

    patches           float32 [t * h * w, 3 * 2 * 14 * 14]
    grid              (t, h, w): patches in time (two frames each; 1 for an image), down and across
    seconds_per_grid  time from one step of t to the next; None for an image
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds_per_grid: float | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it takes in the prompt."""
        return math.prod(self.grid) // MERGE**2


def fitting_size(size: tuple[int, int], smallest: int, largest: int) -> tuple[int, int]:
    """(width, height) in multiples of 28 nearest to `size`, its area from `smallest` to `largest` square pixels where that is possible.
    ValueError for shapes narrower than 1:200."""
    width, height = size
    if max(size) > LONGEST_SHAPE * min(size):
        raise ValueError(f"{width}x{height} pixels are narrower than 1:{LONGEST_SHAPE}")
    fitted = [max(FACTOR, round(side / FACTOR) * FACTOR) for side in size]
    if math.prod(fitted) > largest:
        shrink = math.sqrt(width * height / largest)
        fitted = [max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in size]
    elif math.prod(fitted) < smallest:
        enlarge = math.sqrt(smallest / (width * height))
        fitted = [math.ceil(side * enlarge / FACTOR) * FACTOR for side in size]
    return fitted[0], fitted[1]


def of_image(image: Image, smallest: int, largest: int) -> Pixels:
    """An RGB image, brought to an area between the two numbers of square pixels. ValueError as `fitting_size`."""
    size = fitting_size(image.size, smallest, largest)
    return Pixels(*_patches([_normalised(image, size)] * TEMPORAL))


def of_clip(frames: Sequence[Image], fps: float, smallest: int, largest: int) -> Pixels:
    """RGB frames taken `fps` times a second; an odd last one counts twice. ValueError as `fitting_size`."""
    size = fitting_size(frames[0].size, smallest, largest)
    arrays = [_normalised(frame, size) for frame in frames]
    arrays += arrays[-1:] * (-len(arrays) % TEMPORAL)
    return Pixels(*_patches(arrays), TEMPORAL / fps)


def _normalised(image: Image, size: tuple[int, int]) -> np.ndarray:
    """float32 [3, H, W]."""
    import numpy as np
    from PIL import Image

    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(resized, dtype=np.float32) / 255
    normalised: np.ndarray = (values - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    result: np.ndarray = normalised.transpose(2, 0, 1)
    return result


def _patches(frames: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """[3, H, W] per frame -> rows of patches: those of one 2 x 2 block, which become one token, follow each other."""
    import numpy as np

    video = np.stack(frames)
    _, channels, height, width = video.shape
    grid = (len(frames) // TEMPORAL, height // PATCH, width // PATCH)
    blocks = video.reshape(grid[0], TEMPORAL, channels, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH)
    blocks = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # t, block down, block across, down, across, channel, frame, y, x
    return np.ascontiguousarray(blocks).reshape(math.prod(grid), -1), grid
