"""The verb that caches text encoder outputs: every caption of a dataset, for any architecture. Media are never opened."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..dataset.discovery import Discovery
from ..dataset.items import MediaItem, text_path
from ..device import pick_device
from ..errors import UserError
from ..weights.safetensors_file import read_header
from .caching import Progress, find_items, log_skipped, out_of_memory, remove_old
from .headers import text_problem
from .names import text_files

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..architectures.protocol import Architecture, TextEncoder

logger = logging.getLogger(__name__)


def run(args: Namespace, architecture: Architecture) -> None:
    """Cache the captions of `--dataset_config`. With `--skip_existing` only those that are new or have changed; when there are none,
    no model is loaded. StopRequested when the job was asked to stop."""
    card = architecture.card
    discoveries = find_items(args, card)
    work = [(discovery, _left_to_do(discovery, card, args.skip_existing)) for discovery in discoveries]
    encoder = architecture.text_encoder(args, pick_device(args.device)) if any(items for _, items in work) else None
    for number, (discovery, items) in enumerate(work):
        logger.info("Encoding dataset [%d]", number)
        log_skipped(len(discovery.items) - len(items), "captions")
        if encoder is not None and items:
            _encode_all(encoder, items, discovery, args, card)
        wanted = {text_path(item, card) for item in discovery.items}
        remove_old(text_files(discovery.dataset.cache_folder, card.id), wanted, args)


def _left_to_do(discovery: Discovery, card: Card, skip_existing: bool) -> list[MediaItem]:
    if not skip_existing:
        return list(discovery.items)
    return [item for item in discovery.items if text_problem(text_path(item, card), card, caption=item.caption, needs=card.text_keys)]


def _encode_all(encoder: TextEncoder, items: Sequence[MediaItem], discovery: Discovery, args: Namespace, card: Card) -> None:
    size = args.batch_size or discovery.dataset.batch_size
    total = len(discovery.items)
    with Progress(total, total - len(items)) as progress:
        for start in range(0, len(items), size):
            progress.stop_if_asked()
            _encode(encoder, items[start : start + size], card)
            for _ in items[start : start + size]:
                progress.item_done()


def _encode(encoder: TextEncoder, batch: Sequence[MediaItem], card: Card) -> None:
    from .files import save_text

    try:
        encoded = encoder.encode([item.caption for item in batch])
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError("out of memory while encoding captions: use --batch_size 1, or --device cpu") from error
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
