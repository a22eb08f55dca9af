"""Pictures and clips from files to what Qwen2.5-VL sees."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..dataset.pictures import read_picture
from ..dataset.probe import open_video
from ..dataset.problems import UnusableMedium
from ..encoders.qwen_vl_pixels import FACTOR, Pixels, of_clip, of_picture

_SMALLEST = 256 * FACTOR**2  # smaller pictures are enlarged to this, as in musubi-tuner: 256 tokens
_LARGEST_FRAME = 768 * FACTOR**2  # the model was trained with frames of up to 768 tokens (arXiv 2502.13923)


def picture_pixels(path: Path, largest: int) -> Pixels:
    """A picture, its colours as training takes them, within `largest` square pixels. UnusableMedium."""
    try:
        return of_picture(Image.fromarray(read_picture(path)), min(_SMALLEST, largest), largest)
    except ValueError as error:
        raise UnusableMedium(path, str(error)) from error


def clip_pixels(path: Path, count: int, largest: int) -> Pixels:
    """Up to `count` frames spread evenly over a clip, the first and the last among them. UnusableMedium."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        total = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        fps = float(stream.average_rate or 24)
    if not total:
        raise UnusableMedium(path, "there is not a single frame in this file")
    wanted = chosen_frames(total, count)
    with open_video(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = []
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_image())
            if number >= wanted[-1]:
                break
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
