"""A contact sheet: what the items of a dataset look like when they are trained on, with buckets, frame windows and captions.

An image is shown as it is cut for its bucket; a clip by the first, the middle and the last of the frames that training takes from, with a
bar under them in which every frame window is a stripe.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..counted import counted
from .buckets import Size
from .clips import frames_of
from .config import VideoDataset
from .images import fit, read_image
from .probe import Foreseen, rate_of
from .problems import Problem, UnusableMedium

if TYPE_CHECKING:
    import numpy as np

    from ..architectures.card import Card

    Box = tuple[int, int, int, int]

_BACKGROUND, _INK, _FAINT, _BAD, _STRIPE = "#1c1c1e", "#f2f2f2", "#9a9a9e", "#ff6b5e", "#4da3ff"
_GAP, _LINE, _BAR, _CAPTION_LINES, _MOST_STRIPES = 12, 16, 4, 3, 6
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Tile:
    """One item on the sheet: images to show side by side, or none and the reason."""

    title: str
    facts: str
    caption: str
    shown: tuple[Image.Image, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()
    frames: int = 1
    problem: str = ""


def tile_of(found: Foreseen | Problem, number: int, card: Card, width: int) -> Tile:
    """The tile of one item, its media decoded. What cannot be decoded becomes its problem."""
    if isinstance(found, Problem):
        return Tile(f"{number}  {found.path.name}", "", "", problem=found.reason)
    item, bucket = found.item, found.entries[0].bucket
    title = f"{number}  {item.path.name}"
    try:
        if not isinstance(item.dataset, VideoDataset):
            pixels = read_image(item.path)
            facts = f"{found.facts.size[0]}x{found.facts.size[1]} to {bucket[0]}x{bucket[1]}"
            return Tile(title, facts, item.caption, (_small(pixels, bucket, (width, _height(width))),))
        count = found.facts.count
        wanted = sorted({0, (count - 1) // 2, count - 1})
        room = (width // len(wanted), _height(width))
        shown = [_small(frame, bucket, room) for frame in _frames(found, wanted, item.dataset, card)]
    except UnusableMedium as unusable:
        return Tile(title, "", item.caption, problem=unusable.problem.reason)
    windows = tuple((entry.name.start or 0, entry.frames or 1) for entry in found.entries)
    lengths = ", ".join(map(str, sorted({length for _, length in windows})))
    facts = f"{bucket[0]}x{bucket[1]}, {counted(count, 'frame')}: {counted(len(windows), 'window')} of {lengths}"
    return Tile(title, facts, item.caption, tuple(shown), windows, count)


def draw(tiles: Sequence[Tile], width: int) -> tuple[Image.Image, list[Box]]:
    """(the sheet, the place (left, top, width, height) of every tile's images on it). width: of one tile, in pixels."""
    columns = max(1, min(_MOST_COLUMNS, math.ceil(math.sqrt(len(tiles)))))
    height = _height(width)
    cell = (width + _GAP, height + _GAP + _BAR * _MOST_STRIPES + _LINE * (2 + _CAPTION_LINES) + _GAP)
    rows = max(1, math.ceil(len(tiles) / columns))
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LINE - 4)
    boxes = []
    for number, tile in enumerate(tiles):
        left, top = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        boxes.append((left, top, width, height))
        _paste(sheet, tile.shown, left, top, width, height)
        _stripes(pen, tile, left, top + height + 2, width)
        below = top + height + 4 + _BAR * _MOST_STRIPES
        letters = max(8, int(width / font.getlength("n")))
        pen.text((left, below), _plain(tile.title)[:letters], _INK, font)
        pen.text((left, below + _LINE), tile.facts[:letters], _FAINT, font)
        words, colour = (tile.problem, _BAD) if tile.problem else (tile.caption, _INK)
        for line, text in enumerate(textwrap.wrap(_plain(words), letters, max_lines=_CAPTION_LINES, placeholder=" ...")):
            pen.text((left, below + _LINE * (2 + line)), text, colour, font)
    return sheet, boxes


def _height(width: int) -> int:
    return round(width * 0.625)


def _small(pixels: np.ndarray, bucket: Size, room: Size) -> Image.Image:
    """The part of an image that its bucket keeps, as large as the room allows."""
    scale = min(room[0] / bucket[0], room[1] / bucket[1])
    return Image.fromarray(fit(pixels, (max(1, round(bucket[0] * scale)), max(1, round(bucket[1] * scale)))))


def _frames(found: Foreseen, wanted: Sequence[int], dataset: VideoDataset, card: Card) -> list[np.ndarray]:
    """The frames with these numbers, counted after the change of frame rate. UnusableMedium."""
    path = found.item.path
    with closing(frames_of(path)) as frames:
        taken = rate_of(dataset, card).taken(frames, found.facts.timing)
        shown = [frame.pixels() for number, frame in enumerate(islice(taken, wanted[-1] + 1)) if number in wanted]
    if not shown:
        raise UnusableMedium(path, "not a single frame could be decoded")
    return shown


def _paste(sheet: Image.Image, images: Sequence[Image.Image], left: int, top: int, width: int, height: int) -> None:
    for number, image in enumerate(images):
        room = width // len(images)
        sheet.paste(image, (left + number * room + (room - image.width) // 2, top + (height - image.height) // 2))


def _stripes(pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, width: int) -> None:
    """Windows over the length of the clip, in as many rows as there is room for; the rest are drawn in the last row."""
    if not tile.windows:
        return
    pen.rectangle((left, top, left + width - 1, top + 1), _FAINT)
    for number, (start, length) in enumerate(tile.windows):
        y = top + 3 + _BAR * min(number, _MOST_STRIPES - 2)
        ends = [left + round(width * frame / max(1, tile.frames)) for frame in (start, start + length)]
        pen.rectangle((ends[0], y, max(ends[0], ends[1] - 1), y + _BAR - 2), _STRIPE)


def _plain(text: str) -> str:
    """What the built-in font can write; the list next to the sheet has the rest."""
    return " ".join(text.encode("latin-1", "replace").decode("latin-1").split())
