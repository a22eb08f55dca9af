"""Size, length and frame rate of media: from headers, packets and the first frame."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..counted import counted
from .buckets import Size
from .clips import frame_rate, frames_of
from .config import VideoDataset
from .images import image_notes, open_image, upright_size
from .items import Entry, MediaItem, plan
from .problems import Problem, UnusableMedium, unexpected
from .timing import Rate, Timing, timing_of

if TYPE_CHECKING:
    from ..architectures.card import Card

logger = logging.getLogger(__name__)

_SAME_RATE = 0.02


@dataclass(frozen=True)
class Facts:
    """What is known about a medium.

    size    (width, height) in pixels as it is shown: upright, with square pixels
    count   frames after the change of frame rate, up to those that are needed; 1 for an image
    fps     as the file says; None for images and folders of frames
    timing  of a clip
    notes   what a person should know about how it is read
    """

    size: Size
    count: int = 1
    fps: float | None = None
    timing: Timing = field(default_factory=lambda: Timing(1))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreseen:
    """One item, or a part of a long one, with the cache entries that decoding it will give.

    part   its number and how many there are
    """

    item: MediaItem
    facts: Facts
    entries: tuple[Entry, ...]
    part: tuple[int, int] = (0, 1)

    @property
    def is_last(self) -> bool:
        """Does the item end with it?"""
        return self.part[0] == self.part[1] - 1


def foresee(item: MediaItem, card: Card, timing: Timing | None = None) -> Foreseen | Problem:
    """What will become of an item: to preview a dataset, to decode what is needed of it, and to skip what is cached. timing: of a clip,
    where it is known."""
    try:
        facts = probe(item, card, timing)
    except UnusableMedium as unusable:
        return unusable.problem
    except Exception as error:  # as in `decode_foreseen`
        logger.debug("looking at %s", item.path, exc_info=True)
        return unexpected(item.path, error)
    entries = plan(item, card, facts.size, facts.count)
    return entries if isinstance(entries, Problem) else Foreseen(item, facts, tuple(entries))


def probe(item: MediaItem, card: Card, timing: Timing | None = None) -> Facts:
    """Facts about an item. UnusableMedium for damaged, cut off or empty files."""
    if not isinstance(item.dataset, VideoDataset):
        with open_image(item.path) as image:
            return Facts(upright_size(image), notes=image_notes(item.path, image))
    rate = rate_of(item.dataset, card)
    timing = timing or timing_of(item.path, rate, item.dataset.cache_folder)
    fps = frame_rate(item.path)
    with closing(frames_of(item.path)) as frames:
        first = next(frames, None)
        if first is None:
            raise UnusableMedium(item.path, "not a single frame could be decoded")
        return Facts(first.size, rate.count(timing), float(fps) if fps else None, timing, (*first.notes(), *_rate_notes(rate, timing, fps)))


def rate_of(dataset: VideoDataset, card: Card) -> Rate:
    """Which frames a dataset takes from its clips."""
    return Rate(dataset.source_fps, float(card.fps), dataset.rules.limit)


def image_size(path: Path) -> Size:
    """(width, height) of an image as it is shown, from its header. UnusableMedium when it is none."""
    with open_image(path) as image:
        return upright_size(image)


def _rate_notes(rate: Rate, timing: Timing, fps: Fraction | None) -> tuple[str, ...]:
    if timing.variable and rate.source is not None:
        return (f"variable frame rate: frames are taken by their times, {rate.target:g} per second",)
    if timing.variable:
        return ("variable frame rate: every frame is taken, whenever it is shown; with source_fps they are taken by their times",)
    if rate.source is not None and fps is not None and abs(rate.source / float(fps) - 1) > _SAME_RATE:
        return (f"source_fps is {rate.source:g}, the file says about {counted(round(fps), 'frame')} per second",)
    return ()
