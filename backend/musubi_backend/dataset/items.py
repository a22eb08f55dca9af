"""The media of a dataset and the cache entries that come out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache.names import LatentName, latent_name, text_name
from ..counted import counted
from . import frames
from .buckets import Buckets, Size, best_fit, floor_to
from .config import Dataset, ImageDataset, VideoDataset
from .problems import Problem

if TYPE_CHECKING:
    from ..architectures.card import Card


@dataclass(frozen=True)
class MediaItem:
    """One image or clip with its caption.

    path      image, video file or folder of frames
    stem      what its caches are named after
    targets   further images of the same item (`multiple_target`)
    controls  control images, or the one control clip (file or folder)
    """

    dataset: ImageDataset | VideoDataset
    path: Path
    stem: str
    caption: str
    targets: tuple[Path, ...] = ()
    controls: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is encoded at once: an image, or one window of a clip.

    name      size and window as in the file name
    bucket    (width, height) of the pixels that are encoded
    sections  how many files the window becomes, each with its section number; None for one file without a number
    """

    item: MediaItem
    name: LatentName
    bucket: Size
    sections: int | None = None

    @property
    def frames(self) -> int | None:
        """Frames of the window; None for an image."""
        return self.name.frames

    def latent_paths(self, card: Card) -> list[Path]:
        """Its cache files, in the order of their sections."""
        names = [self.name] if self.sections is None else [replace(self.name, section=number) for number in range(self.sections)]
        return [self.item.dataset.cache_folder / latent_name(name, card.cache_id) for name in names]

    def batch_key(self, control_sizes: Sequence[Size] = ()) -> tuple[int, ...]:
        """Entries with equal keys have pixels of equal shapes and can be encoded together."""
        key = (*self.bucket, self.frames or 1)
        return (*key, *(side for size in control_sizes for side in size))


def longest_name(item: MediaItem, card: Card) -> LatentName:
    """A name as long as any latent cache of this item may have."""
    if isinstance(item.dataset, ImageDataset):
        return LatentName(item.stem, 99999, 99999)
    return LatentName(item.stem, 9999, 9999, 99999, 999, 9999 if card.sections else None)


def text_path(item: MediaItem, card: Card) -> Path:
    """Where the text cache of an item lies."""
    return item.dataset.cache_folder / text_name(item.stem, card.cache_id)


def caching_buckets(dataset: Dataset, card: Card) -> Buckets:
    """The buckets used while caching: clips are always bucketed and may be enlarged, whatever the file says."""
    if isinstance(dataset, VideoDataset):
        return Buckets.of(dataset.resolution, step=card.bucket_step)
    return training_buckets(dataset, card)


def training_buckets(dataset: Dataset, card: Card) -> Buckets:
    """The buckets used while training, with the file's flags."""
    return Buckets.of(dataset.resolution, enabled=dataset.enable_bucket, no_upscale=dataset.bucket_no_upscale, step=card.bucket_step)


def plan(item: MediaItem, card: Card, size: Size, count: int = 1) -> list[Entry] | Problem:
    """The cache entries of one item. `size`: of the medium in pixels; `count`: frames after the change of frame rate (those
    beyond `rules.limit` need not be counted). A Problem when nothing can be made of the item."""
    dataset = item.dataset
    bucket = caching_buckets(dataset, card).choose(size)
    if min(bucket) < 8:
        return Problem(item.path, f"{size[0]}x{size[1]} pixels are too small: the bucket would be {bucket[0]}x{bucket[1]}")
    if isinstance(dataset, ImageDataset):
        return [Entry(item, LatentName(item.stem, *size), bucket)]
    cuts = list(dict.fromkeys(frames.windows(count, dataset.rules)))
    if not cuts:
        rate = f" at {card.fps} frames per second" if dataset.source_fps else ""
        return Problem(
            item.path, f"too short: {counted(count, 'frame')}{rate}, the smallest of target_frames is {min(dataset.rules.targets)}"
        )
    entries = [
        Entry(item, LatentName(item.stem, *bucket, start, length), bucket, _sections(dataset, card, length)) for start, length in cuts
    ]
    short = next((entry for entry in entries if entry.sections == 0), None)
    if short is not None:
        needed = dataset.fp_latent_window_size * card.frame_stride + 1
        return Problem(
            item.path, f"Not enough frames for {card.title}: a section needs {needed}, the window that was cut has {short.frames}"
        )
    return entries


def _sections(dataset: Dataset, card: Card, frames: int) -> int | None:
    """How many whole sections lie behind the first frame of a window; None where windows are not cut."""
    return (frames - 1) // card.frame_stride // dataset.fp_latent_window_size if card.sections else None


def unmet_targets(item: MediaItem, count: int) -> tuple[int, ...]:
    """The target frames that a clip of `count` frames is too short for."""
    if not isinstance(item.dataset, VideoDataset) or item.dataset.frame_extraction == "full":
        return ()
    return tuple(target for target in item.dataset.rules.targets if target > count)


def control_size(dataset: ImageDataset, card: Card, control: Size, bucket: Size) -> Size:
    """The size a control image is brought to."""
    limit = dataset.control_resolution
    if dataset.no_resize_control:
        if limit is None:
            return floor_to(control[0], card.bucket_step), floor_to(control[1], card.bucket_step)
        return best_fit(control, limit, card.bucket_step) if control[0] * control[1] > limit[0] * limit[1] else control
    return best_fit(control, limit, card.bucket_step) if limit is not None else bucket
