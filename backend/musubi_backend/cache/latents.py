"""The verb that caches latents: decode, encode and save every item of a dataset, for any architecture.

Threads decode ahead while the encoder loads and works. With `--skip_existing` the headers of media and caches decide what is left
to do, so a complete cache is recognised without decoding anything and without torch.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..dataset.decoding import DecodedEntry, decoded
from ..dataset.discovery import Discovery
from ..dataset.items import Entry, MediaItem
from ..dataset.probe import foresee
from ..dataset.problems import Problem
from ..device import pick_device
from ..errors import UserError
from .caching import Progress, find_items, log_skipped, out_of_memory, refuse, remove_old, threads
from .headers import latents_problem
from .names import latent_files, parse_latent_name

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture, LatentEncoder

    Decoded = tuple[MediaItem, list[DecodedEntry] | Problem]

logger = logging.getLogger(__name__)

READ_AHEAD = 512 * 2**20
"""Bytes of pixels that may wait for the encoder to be loaded."""


@dataclass
class _Work:
    """One dataset: what is left to encode, and the cache files it will have."""

    discovery: Discovery
    items: list[MediaItem]
    wanted: set[Path] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        return len(self.discovery.items) - len(self.items) - len(self.problems)


def run(args: Namespace, architecture: Architecture) -> None:
    """Cache the latents of `--dataset_config`. Items that cannot be decoded do not stop the others: they are listed in the UserError
    at the end. StopRequested when the job was asked to stop."""
    card = architecture.card
    discoveries = find_items(args, card)
    if args.debug_mode is not None:
        from .preview import show

        show(discoveries, card, args)
        return
    reasons = ((item.path, architecture.unusable(item, args)) for discovery in discoveries for item in discovery.items)
    refuse([Problem(path, reason) for path, reason in reasons if reason], "Nothing was cached.")
    work = [_left_to_do(discovery, architecture, args) for discovery in discoveries]
    _Caching(args, architecture).run(work)
    refuse(
        [problem for one in work for problem in one.problems],
        "All others are cached. Mend or remove them and run again with --skip_existing.",
    )


def _left_to_do(discovery: Discovery, architecture: Architecture, args: Namespace) -> _Work:
    work, card = _Work(discovery, []), architecture.card
    if not args.skip_existing:
        work.items.extend(discovery.items)
        return work
    for item in discovery.items:
        foreseen = foresee(item, card)
        if isinstance(foreseen, Problem):
            work.problems.append(foreseen)
            continue
        if any(_is_lacking(entry, architecture, args) for entry in foreseen.entries):
            work.items.append(item)
        else:
            work.wanted.update(path for entry in foreseen.entries for path in entry.latent_paths(card))
    return work


def _is_lacking(entry: Entry, architecture: Architecture, args: Namespace) -> bool:
    """Must a cache file of this entry be made (again)?"""
    card, name = architecture.card, entry.name
    problem = partial(
        latents_problem, card=card, width=name.width, height=name.height, bucket=entry.bucket, frames=entry.frames,
        latent_frames=architecture.cached_frames(entry, args), needs=architecture.cached_names(entry.item, args),
    )  # fmt: skip
    return any(problem(path) is not None or architecture.cached_otherwise(path, args) for path in entry.latent_paths(card))


class _Caching:
    """The encoder, loaded in the background at the first need, and the entries that wait for a full batch."""

    def __init__(self, args: Namespace, architecture: Architecture) -> None:
        self.args, self.architecture, self.card = args, architecture, architecture.card
        self.loader: Future[LatentEncoder] | None = None

    def run(self, work: Sequence[_Work]) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="load-encoder") as pool:
            if any(one.items for one in work):
                self.loader = pool.submit(self._load)
            for number, one in enumerate(work):
                logger.info("Encoding dataset [%d]", number)
                log_skipped(one.skipped, "items")
                self._dataset(one)
                self._remove_old(one)

    def _load(self) -> LatentEncoder:
        import torch

        if self.args.disable_cudnn_backend:
            logger.info("Disabling cuDNN PyTorch backend.")
            torch.backends.cudnn.enabled = False
        return self.architecture.latent_encoder(self.args, pick_device(self.args.device))

    def _dataset(self, work: _Work) -> None:
        if not work.items or self.loader is None:
            return
        size = self.args.batch_size or work.discovery.dataset.batch_size
        waiting: defaultdict[tuple[int, ...], list[tuple[DecodedEntry, bool]]] = defaultdict(list)
        total = len(work.discovery.items) - len(work.problems)
        with Progress(total, work.skipped) as progress:
            for _, entries in _ahead(decoded(work.items, self.card, threads(self.args)), self.loader):
                progress.stop_if_asked()
                if isinstance(entries, Problem):
                    logger.error("%s", entries)
                    work.problems.append(entries)
                    continue
                for number, entry in enumerate(entries, start=1):
                    work.wanted.update(entry.entry.latent_paths(self.card))
                    batch = waiting[entry.batch_key]
                    batch.append((entry, number == len(entries)))
                    if len(batch) == size:
                        self._encode(batch, progress)
                        batch.clear()
            for batch in waiting.values():
                if batch:
                    progress.stop_if_asked()
                    self._encode(batch, progress)

    def _encode(self, batch: Sequence[tuple[DecodedEntry, bool]], progress: Progress) -> None:
        from .files import save_latents

        assert self.loader is not None  # there are items, so it was started
        encoder = self.loader.result()
        first = batch[0][0].entry
        try:
            encoded = encoder.encode([entry for entry, _ in batch])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            names = ", ".join(entry.entry.item.path.name for entry, _ in batch)
            raise UserError(
                f"out of memory while encoding {names} ({first.bucket[0]}x{first.bucket[1]}, {first.frames or 1} frames): "
                "use --batch_size 1, fewer frames, a smaller resolution, or --vae_cache_cpu"
            ) from error
        for (entry, is_last), files in zip(batch, encoded, strict=True):
            name = entry.entry.name
            for path, tensors in zip(entry.entry.latent_paths(self.card), files, strict=True):
                save_latents(path, tensors, self.card, width=name.width, height=name.height, frame_count=entry.entry.frames)
            if is_last:
                progress.item_done()

    def _remove_old(self, work: _Work) -> None:
        files = latent_files(work.discovery.dataset.cache_folder, self.card.id)
        # only what is named like a cache: a LoRA called style_wan.safetensors may lie in the same folder
        existing = [path for path in files if parse_latent_name(path.name, self.card.id, video=False)]
        if not work.problems:
            remove_old(existing, work.wanted, self.args)
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
