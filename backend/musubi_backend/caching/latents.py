"""The verb that caches latents: decode, encode and save every item of a dataset, for any architecture.

Threads decode ahead while the encoder loads and works. With `--skip_existing` the headers of media and caches, and the notes on what
the caches were made from (`sources`), decide what is left to do, so a complete cache is recognised without decoding more than the first
frame of each clip, and without torch.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import exhausted, job
from ..cache.headers import latents_problem
from ..cache.names import latent_files, parse_latent_name
from ..counted import counted
from ..dataset.ahead import decoded
from ..dataset.decoding import DecodedEntry
from ..dataset.discovery import Discovery
from ..dataset.items import Entry, MediaItem
from ..dataset.probe import foresee
from ..dataset.problems import Problem
from ..device import pick_device
from ..threads import decoders
from .common import REMEDY, FittingCaches, Progress, deciding, encoding, find_items, log_skipped, remove_old, report, try_caches
from .settings import CachingSettings, LatentSettings
from .sources import Made, Sources, dataset_settings, latents_key

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..architectures.protocol import Architecture, LatentEncoder

    Decoded = tuple[MediaItem, list[DecodedEntry] | Problem]

logger = logging.getLogger(__name__)

READ_AHEAD = 512 * 2**20
"""Bytes of pixels that may wait for the encoder to be loaded."""

DECIDING = (
    "vae_dtype", "vae_tiling", "vae_chunk_size", "vae_spatial_tile_sample_min_size",
    "last_frame", "one_frame", "one_frame_no_2x", "one_frame_no_4x", "f1",
)  # fmt: skip
"""Options that change the numbers in latent caches of the same name, shape and tensors."""


@dataclass
class _Work:
    """One dataset: what is left to encode, the cache files it will have, and the notes on what they are made from.

    made      per item (by stem) what its caches are made from, once its media were looked at
    unwritten per item that was decoded its caches, how many entries are not written yet, and whether all of it was decoded
    """

    discovery: Discovery
    items: list[MediaItem]
    sources: Sources
    encoders: Mapping[str, Any]
    made: dict[str, Made] = field(default_factory=dict)
    unwritten: dict[str, tuple[list[Path], int, bool]] = field(default_factory=dict)
    wanted: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return len(self.discovery.items) - len(self.items) - len(self.problems)

    def look_at(self, item: MediaItem, card: Card) -> Made:
        """What the caches of an item are made from, as it lies there now: to be asked before it is decoded."""
        settings = {**self.encoders, **dataset_settings(item, card, one_frame=self.encoders.get("one_frame", False))}
        self.made[item.stem] = Made(self.sources.media([item.path, *item.targets, *item.controls]), settings)
        return self.made[item.stem]

    def expect(self, item: MediaItem, entries: Sequence[DecodedEntry], card: Card) -> None:
        """An item, or one more part of it, was decoded."""
        paths = [path for entry in entries for path in entry.entry.latent_paths(card)]
        self.wanted.update(paths)
        before, left, _ = self.unwritten.get(item.stem, ([], 0, False))
        self.unwritten[item.stem] = [*before, *paths], left + len(entries), entries[-1].is_last

    def written(self, item: MediaItem, card: Card) -> None:
        """One more entry of an item is cached; when it was the last, what it was made from is noted."""
        paths, left, is_whole = self.unwritten[item.stem]
        self.unwritten[item.stem] = paths, left - 1, is_whole
        if left == 1 and is_whole:
            self.sources.made(latents_key(item, card), paths, self.made[item.stem])


def _lacks(entry: Entry, architecture: Architecture) -> bool:
    """Must a cache file of this entry be made (again)?"""
    card, name = architecture.card, entry.name
    problem = partial(
        latents_problem, card=card, width=name.width, height=name.height, bucket=entry.bucket, frames=entry.frames,
        latent_frames=architecture.cached_frames(entry), needs=architecture.cached_names(entry.item),
    )  # fmt: skip
    return any(problem(path) is not None or architecture.cached_otherwise(path) for path in entry.latent_paths(card))


def run(args: Namespace, architecture: Architecture) -> None:
    """Cache the latents of `--dataset_config`. Items that cannot be decoded do not stop the others: they are listed in the UserError
    at the end. StopRequested when the job was asked to stop."""
    settings, architecture, card = LatentSettings.read(args), architecture.configured(vars(args)), architecture.card
    discoveries = find_items(settings.caching, card)
    if settings.preview.debug_mode is not None:
        from .preview import show

        show(discoveries, card, settings.preview, decoders(settings.num_workers))
        return
    discoveries = _usable(discoveries, architecture, settings.caching)
    encoders = deciding(vars(args), ("vae", card.image_encoder or ""), DECIDING)
    work = [_left_to_do(discovery, architecture, settings.caching, encoders) for discovery in discoveries]
    for one in work:
        if one.items:
            try_caches(one.discovery.dataset.cache_folder, [])
    _Caching(settings, architecture).run(work)
    report([problem for one in work for problem in one.problems], f"All others are cached. {REMEDY}", settings.caching)


def _usable(discoveries: Sequence[Discovery], architecture: Architecture, settings: CachingSettings) -> list[Discovery]:
    """Without the items that the architecture has no use for, after naming them."""
    judged = [(one, [(item, architecture.unusable(item)) for item in one.items]) for one in discoveries]
    bad = [Problem(item.path, reason) for _, items in judged for item, reason in items if reason]
    report(bad, f"Nothing was cached. {REMEDY}", settings)
    return [replace(one, items=tuple(item for item, reason in items if not reason)) for one, items in judged]


def _left_to_do(discovery: Discovery, architecture: Architecture, settings: CachingSettings, encoders: Mapping[str, Any]) -> _Work:
    card = architecture.card
    work = _Work(discovery, [], Sources(discovery.dataset.cache_folder), encoders)
    if not settings.skip_existing:
        work.items.extend(discovery.items)
        return work
    fitting = FittingCaches(work.sources)
    for item in discovery.items:
        foreseen = foresee(item, card)
        if isinstance(foreseen, Problem):
            work.problems.append(foreseen)
            continue
        if any(_lacks(entry, architecture) for entry in foreseen.entries):
            work.items.append(item)
            continue
        paths = [path for entry in foreseen.entries for path in entry.latent_paths(card)]
        if fitting.stay(latents_key(item, card), paths, work.look_at(item, card)):
            work.wanted.update(paths)
        else:
            work.items.append(item)
    fitting.log()
    return work


class _Caching:
    """The encoder, loaded in the background at the first need, and the entries that wait for a full batch."""

    def __init__(self, settings: LatentSettings, architecture: Architecture) -> None:
        self.settings, self.architecture, self.card = settings, architecture, architecture.card
        self.loader: Future[LatentEncoder] | None = None
        self.doing = ""
        self.progress: Progress | None = None

    def run(self, work: Sequence[_Work]) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="load-encoder") as pool:
            if any(one.items for one in work):
                self.loader = pool.submit(self._load)
            for number, one in enumerate(work):
                logger.info("Encoding dataset [%d]", number)
                self.doing = encoding(number, len(work))
                job.phase(self.doing)
                log_skipped(one.skipped, "items")
                try:
                    self._dataset(one)
                    self._remove_old(one)
                finally:
                    one.sources.save()

    def _load(self) -> LatentEncoder:
        import torch

        if self.settings.disable_cudnn_backend:
            logger.info("Disabling cuDNN PyTorch backend.")
            torch.backends.cudnn.enabled = False
        encoder = self.architecture.latent_encoder(pick_device(self.settings.caching.device))
        job.phase(self.doing)  # it told of its loading
        if self.progress is not None:
            self.progress.tell()
        return encoder

    def _dataset(self, work: _Work) -> None:
        if not work.items or self.loader is None:
            return
        size = self.settings.caching.batch_size or work.discovery.dataset.batch_size
        waiting: defaultdict[tuple[int, ...], list[DecodedEntry]] = defaultdict(list)
        total = len(work.discovery.items) - len(work.problems)
        work.sources.begin(latents_key(item, self.card) for item in work.items)
        with Progress(total, work.skipped, self.settings.caching) as self.progress:
            progress = self.progress
            for item, entries in _ahead(decoded(self._looked_at(work), self.card, decoders(self.settings.num_workers)), self.loader):
                progress.stop_if_asked()
                if isinstance(entries, Problem):
                    logger.error("%s", entries)
                    work.problems.append(entries)
                    continue
                work.expect(item, entries, self.card)
                for entry in entries:
                    batch = waiting[entry.batch_key]
                    batch.append(entry)
                    if len(batch) == size:
                        self._encode(batch, work, progress)
                        batch.clear()
                for batch in waiting.values():
                    batch[:] = [entry.detached() for entry in batch]
            for batch in waiting.values():
                if batch:
                    progress.stop_if_asked()
                    self._encode(batch, work, progress)

    def _looked_at(self, work: _Work) -> Iterator[MediaItem]:
        """The items to decode, each looked at just before: what changes while it is decoded is noticed the next time."""
        for item in work.items:
            work.look_at(item, self.card)
            yield item

    def _encode(self, batch: Sequence[DecodedEntry], work: _Work, progress: Progress) -> None:
        from ..cache.files import save_latents

        assert self.loader is not None  # there are items, so it was started
        encoder = self.loader.result()
        first = batch[0].entry
        names = ", ".join(entry.entry.item.path.name for entry in batch)
        with exhausted.during(f"encoding {names} ({first.bucket[0]}x{first.bucket[1]}, {counted(first.frames or 1, 'frame')})"):
            encoded = encoder.encode(list(batch))
        for entry, files in zip(batch, encoded, strict=True):
            name = entry.entry.name
            for path, tensors in zip(entry.entry.latent_paths(self.card), files, strict=True):
                save_latents(path, tensors, self.card, width=name.width, height=name.height, frame_count=entry.entry.frames)
            work.written(entry.entry.item, self.card)
            if entry.is_last:
                progress.item_done()

    def _remove_old(self, work: _Work) -> None:
        files = latent_files(work.discovery.dataset.cache_folder, self.card.cache_id)
        # only what is named like a cache: a LoRA called style_wan.safetensors may lie in the same folder
        existing = [path for path in files if parse_latent_name(path.name, self.card.cache_id, video=False)]
        if not work.problems:
            remove_old(existing, work.wanted, self.settings.caching)
        elif any(path not in work.wanted for path in existing):
            logger.info("Old cache files are left where they are, because not every item could be read")


def _ahead(stream: Iterator[Decoded], loader: Future[LatentEncoder]) -> Iterator[Decoded]:
    """`stream`, read ahead while the encoder is being loaded; its error is raised as soon as it is known."""
    buffer: list[Decoded] = []
    held = 0
    for item in stream:
        if loader.done():
            loader.result()
            yield from buffer
            buffer.clear()
            yield item
            continue
        buffer.append(item)
        held += sum(entry.pixels.nbytes for entry in item[1]) if not isinstance(item[1], Problem) else 0
        if held > READ_AHEAD:
            loader.result()
    yield from buffer
