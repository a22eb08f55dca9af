"""Images and videos that a request starts from or is steered by, read and brought to size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..counted import counted
from ..dataset.decoding import read_clip
from ..dataset.images import read_image
from ..dataset.probe import image_size
from ..dataset.problems import UnusableMedium
from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ..dataset.buckets import Size


def size_of(path: str) -> Size:
    """(width, height) as it is shown, from the header. UserError for what is no image."""
    try:
        return image_size(Path(path))
    except UnusableMedium as unusable:
        raise UserError(str(unusable.problem)) from None


def read(path: str, *, keep_alpha: bool = False) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 4] of an image with transparency that is kept. UserError for what is no image."""
    try:
        return read_image(Path(path), keep_alpha=keep_alpha)
    except UnusableMedium as unusable:
        raise UserError(str(unusable.problem)) from None


def first_frames(path: str, size: Size, frames: int, what: str) -> np.ndarray:
    """uint8 [frames, H, W, 3] from a video or a folder of images, each frame covering `size` and cut. UserError when there are fewer;
    `what` says how to call the video."""
    import numpy as np

    try:
        found = read_clip(Path(path), size, frames)
    except UnusableMedium as unusable:
        raise UserError(str(unusable.problem)) from None
    if len(found) < frames:
        raise UserError(f"{what} {path} has {counted(len(found), 'frame')}, and {frames} are to be made; use a longer one, or fewer frames")
    return np.stack(found)
