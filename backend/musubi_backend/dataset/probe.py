"""Size, length and frame rate of media without decoding them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .buckets import Size
from .config import VideoDataset
from .container import missing_bytes
from .frames import resampled, resampled_count
from .items import Entry, MediaItem, plan
from .media import images_in
from .pictures import open_picture
from .problems import Problem, UnusableMedium

if TYPE_CHECKING:
    from av.container import InputContainer

    from ..architectures.card import Card


@dataclass(frozen=True)
class Facts:
    """What is known about a medium without decoding it.

    size    (width, height) in pixels
    count   frames after the change of frame rate, up to those that are needed; 1 for a picture
    fps     as the file says; None for pictures and folders of frames
    """

    size: Size
    count: int = 1
    fps: float | None = None


@dataclass(frozen=True)
class Foreseen:
    """One item with the cache entries that decoding it will give."""

    item: MediaItem
    facts: Facts
    entries: tuple[Entry, ...]


def foresee(item: MediaItem, card: Card) -> Foreseen | Problem:
    """What will become of an item, without decoding it: to preview a dataset, and to skip what is cached."""
    try:
        facts = probe(item, card)
    except UnusableMedium as unusable:
        return unusable.problem
    entries = plan(item, card, facts.size, facts.count)
    return entries if isinstance(entries, Problem) else Foreseen(item, facts, tuple(entries))


def probe(item: MediaItem, card: Card) -> Facts:
    """Facts about an item. UnusableMedium for damaged, cut off or empty files."""
    if not isinstance(item.dataset, VideoDataset):
        return Facts(image_size(item.path))
    source_fps, limit = item.dataset.source_fps, item.dataset.rules.limit
    if item.path.is_dir():
        pictures = frames_of_folder(item.path)
        return Facts(image_size(pictures[0]), resampled_count(len(pictures), source_fps, card.fps, limit))
    with open_video(item.path) as container:
        stream = container.streams.video[0]
        count = 0
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        for _, keep in zip(packets, resampled(source_fps, card.fps, limit), strict=False):
            count += keep
        context = stream.codec_context
        return Facts((context.width, context.height), count, float(stream.average_rate) if stream.average_rate else None)


def image_size(path: Path) -> Size:
    """(width, height) from the header of a picture. UnusableMedium when it is none."""
    with open_picture(path) as image:
        width, height = image.size
        return width, height


def frames_of_folder(folder: Path) -> list[Path]:
    """The pictures of a folder that stands for a clip, in order. UnusableMedium when there are none."""
    pictures = images_in(folder)
    if not pictures:
        raise UnusableMedium(folder, "a folder without pictures is no clip")
    return pictures


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """The opened file with a video stream. UnusableMedium for what FFmpeg cannot read, here or in the block, and for cut-off files."""
    import av

    try:
        if path.stat().st_size == 0:
            raise UnusableMedium(path, "the file is empty (0 bytes)")
        missing = missing_bytes(path)
        if missing:
            raise UnusableMedium(path, f"the file is cut off: {missing} bytes are missing at the end; copy or download it again")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnusableMedium(path, "there is no video in this file")
            yield container
    except av.FFmpegError as error:
        raise UnusableMedium(path, f"the video cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnusableMedium(path, f"cannot be read: {error.strerror or error}") from error
