"""Videos next to each other under their titles, to compare them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TITLE_HEIGHT, GAP = 28, 8
BACKGROUND, INK = (24, 24, 24), (240, 240, 240)


def side_by_side(videos: Sequence[Sequence[np.ndarray]], titles: Sequence[str], height: int = 0) -> Iterator[np.ndarray]:
    """One image at a time of all videos in a row.

    videos: uint8 images [H, W, 3] of each; those of a shorter one stay at its last. titles: one for each, "" for none. height: that all
    are brought to, in pixels; 0, that of the tallest.
    """
    import numpy as np
    from PIL import Image

    height = height or max(video[0].shape[0] for video in videos)
    widths = [max(1, round(height * video[0].shape[1] / video[0].shape[0])) for video in videos]
    lefts = [GAP, *(GAP + left for left in itertools.accumulate(width + GAP for width in widths))]
    top = TITLE_HEIGHT if any(titles) else GAP
    sheet = Image.new("RGB", (lefts[-1] + lefts[-1] % 2, top + height + GAP + (top + height + GAP) % 2), BACKGROUND)
    for title, left, width in zip(titles, lefts, widths, strict=False):
        _write(sheet, title, left, width)
    for number in range(max(map(len, videos))):
        for video, left, width in zip(videos, lefts, widths, strict=False):
            image = Image.fromarray(video[min(number, len(video) - 1)])
            sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        yield np.array(sheet)


def grid(
    rows: Sequence[Sequence[Sequence[np.ndarray]]], captions: Sequence[str], titles: Sequence[str], height: int
) -> Iterator[np.ndarray]:
    """One image at a time of rows of videos (see `side_by_side`), all of one shape, each row below its caption."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    longest = max(len(video) for row in rows for video in row)
    whole = [[[*row[0], *[row[0][-1]] * (longest - len(row[0]))], *row[1:]] for row in rows]
    for images in zip(*(side_by_side(row, titles, height) for row in whole), strict=True):
        parts = []
        for caption, image in zip(captions, images, strict=True):
            strip = Image.new("RGB", (image.shape[1], TITLE_HEIGHT), BACKGROUND)
            ImageDraw.Draw(strip).text((GAP, TITLE_HEIGHT / 2), caption, INK, ImageFont.load_default(15), anchor="lm")
            parts += [np.array(strip), image]
        yield np.concatenate(parts)


def _write(sheet: object, title: str, left: int, width: int) -> None:
    """The title in the middle above its video, in smaller letters where it would be wider."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(sheet)  # type: ignore[arg-type]
    font = next((font for font in map(ImageFont.load_default, (18, 15, 12, 9)) if draw.textlength(title, font) <= width), None)
    draw.text((left + width / 2, TITLE_HEIGHT / 2), title, INK, font or ImageFont.load_default(9), anchor="mm")
