"""From media files to the pixels of cache entries, decoded ahead of the encoder in background threads."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .buckets import Size
from .config import ImageDataset, VideoDataset
from .frames import resampled
from .items import Entry, MediaItem, caching_buckets, control_size, plan, unmet_targets
from .pictures import fit, read_picture
from .probe import frames_of_folder, open_video
from .problems import Problem, UnusableMedium

if TYPE_CHECKING:
    import numpy as np

    from ..architectures.card import Card


logger = logging.getLogger(__name__)


@dataclass
class DecodedEntry:
    """The pixels of one cache entry, resized to its bucket.

    pixels     uint8 [F, H, W, 3]; F is 1 for a picture
    alpha      uint8 [H, W] of a picture with transparency, else None
    controls   one array like `pixels` per control picture, or one for the control clip
    control_alphas   per control picture its transparency like `alpha`, for architectures that use it as a mask
    targets    further pictures of the item (`multiple_target`), each [1, H, W, 3]
    """

    entry: Entry
    pixels: np.ndarray
    alpha: np.ndarray | None = None
    controls: list[np.ndarray] = field(default_factory=list)
    control_alphas: list[np.ndarray | None] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)

    @property
    def batch_key(self) -> tuple[int, ...]:
        """Entries with equal keys can be encoded together."""
        return self.entry.batch_key([(control.shape[2], control.shape[1]) for control in self.controls])


def decoded(items: Iterable[MediaItem], card: Card, workers: int = 1) -> Iterator[tuple[MediaItem, list[DecodedEntry] | Problem]]:
    """Every item with its entries or the reason why there are none, in the order of `items`.

    At most `workers` + 1 items are decoded or waiting at a time, so memory stays bounded however long the data set is.
    """
    pending: deque[tuple[MediaItem, Future[list[DecodedEntry] | Problem]]] = deque()
    queue = iter(items)
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode") as pool:
        try:
            for item in queue:
                pending.append((item, pool.submit(decode, item, card)))
                if len(pending) > max(1, workers):
                    yield _next(pending)
            while pending:
                yield _next(pending)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decode(item: MediaItem, card: Card) -> list[DecodedEntry] | Problem:
    """The entries of one item with their pixels, or a Problem."""
    try:
        if isinstance(item.dataset, ImageDataset):
            return _decode_picture(item, item.dataset, card)
        return _decode_clip(item, item.dataset, card)
    except UnusableMedium as unusable:
        return unusable.problem
    except UserError as error:  # a control picture of impossible shape
        return Problem(item.path, str(error))


def read_clip(
    path: Path, bucket_for: Callable[[Size], Size], *, source_fps: float | None = None, target_fps: float = 16.0, limit: int | None = None
) -> tuple[list[np.ndarray], Size]:
    """The frames of a clip (file or folder of pictures) and its own size.

    path         video file, or folder of pictures in the order of their names
    bucket_for   from the size of the first frame to the size all frames are brought to
    source_fps, target_fps, limit   as in `frames.resampled`; decoding stops at the last frame needed

    Each frame is uint8 [H, W, 3], resized at once so that only small frames are held. UnusableMedium.
    """
    result: list[np.ndarray] = []
    size, bucket = (0, 0), (0, 0)
    with closing(_frames(path)) as frames:
        for keep, frame in zip(resampled(source_fps, target_fps, limit), frames, strict=False):
            if not keep:
                continue
            if not result:
                size = (frame.shape[1], frame.shape[0])
                bucket = bucket_for(size)
            result.append(fit(frame, bucket))
    if not result:
        raise UnusableMedium(path, "not a single frame could be decoded")
    return result, size


def _frames(path: Path) -> Generator[np.ndarray, None, None]:
    if path.is_dir():
        yield from map(read_picture, frames_of_folder(path))
        return
    with open_video(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _decode_picture(item: MediaItem, dataset: ImageDataset, card: Card) -> list[DecodedEntry] | Problem:
    pixels = read_picture(item.path, keep_alpha=True)
    entries = plan(item, card, (pixels.shape[1], pixels.shape[0]))
    if isinstance(entries, Problem):
        return entries
    (entry,) = entries
    pixels = fit(pixels, entry.bucket)
    result = DecodedEntry(entry, pixels[None, ..., :3], pixels[..., 3] if pixels.shape[-1] == 4 else None)
    for path in item.targets:
        result.targets.append(fit(read_picture(path, keep_alpha=True), entry.bucket)[None, ..., :3])
    for path in item.controls:
        control = read_picture(path, keep_alpha=True)
        size = control_size(dataset, card, (control.shape[1], control.shape[0]), entry.bucket)
        control = fit(control, size)
        result.controls.append(control[None, ..., :3])
        result.control_alphas.append(control[..., 3] if control.shape[-1] == 4 else None)
    return [result]


def _decode_clip(item: MediaItem, dataset: VideoDataset, card: Card) -> list[DecodedEntry] | Problem:
    import numpy as np

    read = partial(read_clip, source_fps=dataset.source_fps, target_fps=float(card.fps), limit=dataset.rules.limit)
    choose = caching_buckets(dataset, card).choose
    frames, size = read(item.path, choose)
    entries = plan(item, card, size, len(frames))
    if isinstance(entries, Problem):
        return entries
    unmet = unmet_targets(item, len(frames))
    if unmet:
        logger.warning(f"{item.path}: {len(frames)} frames, no window of {', '.join(map(str, unmet))}")
    clip = np.stack(frames)
    frames.clear()
    controls = []
    for path in item.controls:
        control, _ = read(path, choose)  # to its own bucket first, then to the clip's: as musubi-tuner does, bit for bit
        control = [fit(frame, entries[0].bucket) for frame in control]
        control += [control[-1]] * (len(clip) - len(control))
        controls.append(np.stack(control[: len(clip)]))
    return [_window(entry, clip, controls) for entry in entries]


def _window(entry: Entry, clip: np.ndarray, controls: list[np.ndarray]) -> DecodedEntry:
    part = slice(entry.name.start, entry.name.start + (entry.frames or 1))
    return DecodedEntry(entry, clip[part], controls=[control[part] for control in controls])


def _next(pending: deque[tuple[MediaItem, Future[list[DecodedEntry] | Problem]]]) -> tuple[MediaItem, list[DecodedEntry] | Problem]:
    item, future = pending.popleft()
    return item, future.result()
