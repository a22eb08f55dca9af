"""Images and clips from files to what Qwen2.5-VL sees."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

from PIL import Image

from ..dataset.clips import frame_rate, frames_of
from ..dataset.images import read_image
from ..dataset.problems import UnusableMedium
from ..dataset.timing import timing_of
from ..encoders.qwen_vl_pixels import FACTOR, Pixels, of_clip, of_image

_SMALLEST = 256 * FACTOR**2  # smaller images are enlarged to this, as in musubi-tuner: 256 tokens
_LARGEST_FRAME = 768 * FACTOR**2  # the model was trained with frames of up to 768 tokens (arXiv 2502.13923)


def image_pixels(path: Path, largest: int) -> Pixels:
    """An image, its colours as training takes them, within `largest` square pixels. UnusableMedium."""
    try:
        return of_image(Image.fromarray(read_image(path)), min(_SMALLEST, largest), largest)
    except ValueError as error:
        raise UnusableMedium(path, str(error)) from error


def clip_pixels(path: Path, count: int, largest: int) -> Pixels:
    """Up to `count` frames spread evenly over a clip, the first and the last among them. UnusableMedium."""
    total = timing_of(path).frames
    fps = float(frame_rate(path) or 24)
    wanted = chosen_frames(total, count)
    frames = []
    with closing(frames_of(path)) as found:
        for number, frame in enumerate(islice(found, wanted[-1] + 1)):
            if number in wanted:
                frames.append(Image.fromarray(frame.pixels()))
    if not frames:
        raise UnusableMedium(path, "not a single frame could be decoded")
    largest = min(largest, _LARGEST_FRAME)
    try:
        return of_clip(frames, len(frames) * fps / total, min(_SMALLEST, largest), largest)
    except ValueError as error:
        raise UnusableMedium(path, str(error)) from error


def chosen_frames(total: int, count: int) -> list[int]:
    """Up to `count` different frame numbers below `total`, evenly spread, ascending."""
    if count >= total:
        return list(range(total))
    return [round(number * (total - 1) / (count - 1)) for number in range(count)]
