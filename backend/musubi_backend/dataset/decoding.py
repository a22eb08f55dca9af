"""From media files to the pixels of cache entries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..counted import counted
from ..errors import UserError
from .buckets import Size
from .clips import ClipFrame, frames_of
from .config import ImageDataset, VideoDataset
from .images import fit, read_image
from .items import Entry, MediaItem, caching_buckets, control_size, unmet_targets
from .probe import Foreseen, foresee, rate_of
from .problems import Problem, UnusableMedium, unexpected
from .timing import Rate, Timing, decoded_timing, timing_of

if TYPE_CHECKING:
    import numpy as np

    from ..architectures.card import Card


logger = logging.getLogger(__name__)


@dataclass
class DecodedEntry:
    """The pixels of one cache entry, resized to its bucket.

    pixels     uint8 [F, H, W, 3]; F is 1 for an image
    controls   one array like `pixels` per control image, or one for the control clip
    control_alphas   per control image its transparency as uint8 [H, W], else None, for architectures that use it as a mask
    targets    further images of the item (`multiple_target`), each [1, H, W, 3]
    is_last    no other entry of the item follows
    """

    entry: Entry
    pixels: np.ndarray
    controls: list[np.ndarray] = field(default_factory=list)
    control_alphas: list[np.ndarray | None] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    is_last: bool = False

    def detached(self) -> DecodedEntry:
        """The same with pixels of its own, so that those of the other windows of its clip can be freed."""
        return replace(self, pixels=_own(self.pixels), controls=[_own(control) for control in self.controls])

    @property
    def batch_key(self) -> tuple[int, ...]:
        """Entries with equal keys can be encoded together."""
        return self.entry.batch_key([(control.shape[2], control.shape[1]) for control in self.controls])


def decode(item: MediaItem, card: Card) -> list[DecodedEntry] | Problem:
    """The entries of one item with their pixels, or a Problem."""
    foreseen = foresee(item, card)
    return foreseen if isinstance(foreseen, Problem) else decode_foreseen(foreseen, card)


def decode_foreseen(foreseen: Foreseen, card: Card) -> list[DecodedEntry] | Problem:
    """As `decode`, of an item that was looked at, or a part of it."""
    item = foreseen.item
    try:
        dataset = item.dataset
        result = _decode_image(foreseen, dataset, card) if isinstance(dataset, ImageDataset) else _decode_clip(foreseen, dataset, card)
        if not isinstance(result, Problem):
            result[-1].is_last = foreseen.is_last
        return result
    except UnusableMedium as unusable:
        return unusable.problem
    except UserError as error:  # a control image of impossible shape
        return Problem(item.path, str(error))
    except Exception as error:  # one damaged file must not cost the other items, whatever a library makes of it
        logger.debug("decoding %s", item.path, exc_info=True)
        return unexpected(item.path, error)


def parts_of(foreseen: Foreseen, card: Card, room: int) -> list[Foreseen] | Problem:
    """The item in parts whose pixels take about `room` bytes each, or one window: where windows overlap, a long clip takes as many bytes
    as it has frames. The clip is decoded again for each, so its frames are counted by decoding first."""
    item = foreseen.item
    if isinstance(item.dataset, ImageDataset) or len(_grouped(foreseen, room)) == 1:
        return [foreseen]
    try:
        counted = foresee(item, card, decoded_timing(item.path, folder=item.dataset.cache_folder))
    except UnusableMedium as unusable:
        return unusable.problem
    if isinstance(counted, Problem):
        return counted
    groups = _grouped(counted, room)
    return [replace(counted, entries=tuple(group), part=(number, len(groups))) for number, group in enumerate(groups)]


def _grouped(foreseen: Foreseen, room: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = []
    frames: set[int] = set()
    most = (room - _bytes_while_made(foreseen)) // _bytes_per_frame(foreseen)
    for entry in foreseen.entries:
        window = range(entry.name.start, entry.name.start + (entry.frames or 1))
        if not groups or len(frames) + sum(number not in frames for number in window) > most:
            groups.append([])
            frames = set()
        groups[-1].append(entry)
        frames.update(window)
    return groups


def held_bytes(foreseen: Foreseen) -> int:
    """About how much memory the pixels of an item take while they are made and until they are encoded."""
    item = foreseen.item
    frames = len(_needed(foreseen.entries)) if isinstance(item.dataset, VideoDataset) else 1 + len(item.targets)
    return _bytes_while_made(foreseen) + frames * _bytes_per_frame(foreseen)


def _bytes_while_made(foreseen: Foreseen) -> int:
    """Of a frame in its own size, as it is read and converted."""
    return 8 * foreseen.facts.size[0] * foreseen.facts.size[1]


def _bytes_per_frame(foreseen: Foreseen) -> int:
    width, height = foreseen.entries[0].bucket
    return 3 * width * height * (1 + len(foreseen.item.controls))


def read_clip(path: Path, size: Size, frames: int) -> list[np.ndarray]:
    """The first frames of a clip (file or folder of images), at most so many, each uint8 [H, W, 3] covering `size` and cut.
    UnusableMedium."""
    with closing(frames_of(path)) as found:
        result = [fit(frame.pixels(), size) for frame in islice(found, frames)]
    if not result:
        raise UnusableMedium(path, "not a single frame could be decoded")
    return result


def _decode_image(foreseen: Foreseen, dataset: ImageDataset, card: Card) -> list[DecodedEntry]:
    item, (entry,) = foreseen.item, foreseen.entries
    result = DecodedEntry(entry, fit(read_image(item.path), entry.bucket)[None])
    for path in item.targets:
        result.targets.append(fit(read_image(path), entry.bucket)[None])
    for path in item.controls:
        control = read_image(path, keep_alpha=card.control_masks)
        size = control_size(dataset, card, (control.shape[1], control.shape[0]), entry.bucket)
        control = fit(control, size)
        result.controls.append(control[None, ..., :3])
        result.control_alphas.append(control[..., 3] if control.shape[-1] == 4 else None)
    return [result]


def _decode_clip(foreseen: Foreseen, dataset: VideoDataset, card: Card) -> list[DecodedEntry] | Problem:
    item, count, entries = foreseen.item, foreseen.facts.count, foreseen.entries
    needed = _needed(entries)
    rate, bucket, choose = rate_of(dataset, card), entries[0].bucket, caching_buckets(dataset, card).choose
    pixels = _read(item.path, needed, rate, foreseen.facts.timing, lambda frame: fit(frame.pixels(), bucket))
    if len(pixels) < len(needed):
        return _decode_shorter(foreseen, dataset, card)
    unmet = unmet_targets(item, count)
    if unmet and foreseen.is_last:
        logger.warning(f"{item.path}: {counted(count, 'frame')}, no window of {', '.join(map(str, unmet))}")
    controls = []
    for path in item.controls:
        timing = timing_of(path, rate, dataset.cache_folder)
        last = rate.count(timing) - 1

        def fitted(frame: ClipFrame) -> np.ndarray:
            return fit(fit(frame.pixels(), choose(frame.size)), bucket)  # as musubi-tuner does, bit for bit

        control = _read(path, [min(number, last) for number in needed], rate, timing, fitted)
        if not len(control):
            raise UnusableMedium(path, "not a single frame could be decoded")
        controls.append(_lengthened(control, len(needed)))
    place = {number: index for index, number in enumerate(needed)}
    return [_window(entry, place[entry.name.start], pixels, controls) for entry in entries]


def _decode_shorter(foreseen: Foreseen, dataset: VideoDataset, card: Card) -> list[DecodedEntry] | Problem:
    """The entries of a clip that gave fewer frames than its file promises: by the frames that are there, which is kept for later."""
    item = foreseen.item
    dataset.cache_folder.mkdir(parents=True, exist_ok=True)
    timing = decoded_timing(item.path, folder=dataset.cache_folder)
    found = foresee(item, card, timing)
    if isinstance(found, Problem):
        return found
    if found.facts.count >= foreseen.facts.count or foreseen.part[1] > 1:
        return Problem(item.path, "the video cannot be read: it gives another number of frames each time")
    logger.warning(
        f"{item.path}: {counted(foreseen.facts.count, 'frame was', 'frames were')} promised, {found.facts.count} could be decoded"
    )
    return _decode_clip(found, dataset, card)


def _own(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.base is None else pixels.copy()


def _needed(entries: Sequence[Entry]) -> list[int]:
    """The numbers of the frames in any window, in rising order."""
    return sorted({entry.name.start + number for entry in entries for number in range(entry.frames or 1)})


def _read(path: Path, needed: Sequence[int], rate: Rate, timing: Timing, fitted: Callable[[ClipFrame], np.ndarray]) -> np.ndarray:
    """uint8 [N, H, W, 3]: the frames with these rising numbers, counted after the change of frame rate; fewer where the clip ends
    before. The others are decoded and dropped."""
    import numpy as np

    result: np.ndarray | None = None
    filled = 0
    with closing(frames_of(path)) as frames:
        for number, frame in enumerate(rate.taken(frames, timing)):
            if number < needed[filled]:
                continue
            pixels = fitted(frame)
            if result is None:
                result = np.empty((len(needed), *pixels.shape), np.uint8)
            while filled < len(needed) and needed[filled] == number:
                result[filled] = pixels
                filled += 1
            if filled == len(needed):
                break
    return np.empty((0, 0, 0, 3), np.uint8) if result is None else result[:filled]


def _lengthened(pixels: np.ndarray, count: int) -> np.ndarray:
    """The last frame repeated up to `count` frames."""
    import numpy as np

    missing = count - len(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing > 0 else pixels


def _window(entry: Entry, place: int, pixels: np.ndarray, controls: Sequence[np.ndarray]) -> DecodedEntry:
    part = slice(place, place + (entry.frames or 1))
    return DecodedEntry(entry, pixels[part], controls=[control[part] for control in controls])
