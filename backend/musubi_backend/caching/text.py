"""The verb that caches text encoder outputs: every caption of a dataset, for any architecture. Media are never opened."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import exhausted, job
from ..cache.headers import text_problem
from ..cache.names import text_files
from ..dataset.discovery import Discovery
from ..dataset.items import MediaItem, text_path
from ..dataset.problems import Note, gathered
from ..device import pick_device
from ..errors import UserError
from ..weights.safetensors_file import read_header
from .common import FittingCaches, Progress, deciding, encoding, find_items, log_skipped, remove_old, try_caches
from .settings import CachingSettings
from .sources import Made, Sources, text_key

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..architectures.protocol import Architecture, TextEncoder

logger = logging.getLogger(__name__)


DECIDING = ("fp8_t5", "fp8_llm", "text_encoder_dtype")
"""Options that change the numbers in text caches."""


@dataclass(frozen=True)
class _Work:
    """One dataset: the captions that are left to encode, and the notes on what caches are made from."""

    discovery: Discovery
    items: list[MediaItem]
    sources: Sources


def run(args: Namespace, architecture: Architecture) -> None:
    """Cache the captions of `--dataset_config`. With `--skip_existing` only those that are new or have changed, or whose cache another
    encoder made; when there are none, no model is loaded. StopRequested when the job was asked to stop."""
    settings, architecture, card = CachingSettings.read(args), architecture.configured(vars(args)), architecture.card
    discoveries = find_items(settings, card)
    made = Made((), deciding(vars(args), card.text_encoders, DECIDING))
    work = [_left_to_do(discovery, card, made, settings) for discovery in discoveries]
    for one in work:
        if one.items:
            try_caches(one.discovery.dataset.cache_folder, [])
    encoder = architecture.text_encoder(pick_device(settings.device)) if any(one.items for one in work) else None
    for number, one in enumerate(work):
        items = one.discovery.items
        logger.info("Encoding dataset [%d]", number)
        job.phase(encoding(number, len(work)))
        log_skipped(len(items) - len(one.items), "captions")
        try:
            if encoder is not None and one.items:
                _encode_all(encoder, one, made, settings, card)
            wanted = {text_path(item, card) for item in items}
            remove_old(text_files(one.discovery.dataset.cache_folder, card.cache_id), wanted, settings)
        finally:
            one.sources.save()


def _left_to_do(discovery: Discovery, card: Card, made: Made, settings: CachingSettings) -> _Work:
    work = _Work(discovery, [], Sources(discovery.dataset.cache_folder))
    if not settings.skip_existing:
        work.items.extend(discovery.items)
        return work
    fitting = FittingCaches(work.sources)
    for item in discovery.items:
        path = text_path(item, card)
        lacking = text_problem(path, card, caption=item.caption, needs=card.text_keys)
        if lacking or not fitting.stay(text_key(item, card), [path], made):
            work.items.append(item)
    fitting.log()
    return work


def _encode_all(encoder: TextEncoder, work: _Work, made: Made, settings: CachingSettings, card: Card) -> None:
    items, size = work.items, settings.batch_size or work.discovery.dataset.batch_size
    total = len(work.discovery.items)
    cut = zip(items, encoder.cut([item.caption for item in items]), strict=True)
    for line in gathered(Note(item.path, f"the caption is too long: {left_out}") for item, left_out in cut if left_out):
        logger.warning(line)
    work.sources.begin(text_key(item, card) for item in items)
    with Progress(total, total - len(items), settings) as progress:
        for start in range(0, len(items), size):
            progress.stop_if_asked()
            batch = items[start : start + size]
            _encode(encoder, batch, card)
            for item in batch:
                work.sources.made(text_key(item, card), [text_path(item, card)], made)
                progress.item_done()


def _encode(encoder: TextEncoder, batch: Sequence[MediaItem], card: Card) -> None:
    from ..cache.files import save_text

    with exhausted.during("encoding captions"):
        encoded = encoder.encode([item.caption for item in batch])
    for item, tensors in zip(batch, encoded, strict=True):
        path = text_path(item, card)
        _discard_damaged(path)
        save_text(path, tensors, card, caption=item.caption)


def _discard_damaged(path: Path) -> None:
    """A cache file cut off by a crash of another program would otherwise be merged with."""
    if not path.exists():
        return
    try:
        read_header(path)
    except UserError as error:
        logger.warning("Replacing a damaged cache file: %s", error)
        path.unlink()
