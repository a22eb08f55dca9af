"""`demo_models`: tiny models, so that captioning, caching, training and generating can be tried in seconds without a download.

Nothing in them was trained. The transformers pass their input through and are easy to teach by LoRA (`teachable`); the VAEs really
encode and decode, blurred (`wavelet`); the other encoders are random, with tokenizers made from a few captions.
All files carry the layout and the dtype of the real ones.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..architectures import cards, part_of
from ..errors import UserError
from ..options.settings import Settings
from ..weights.safetensors_file import read_header, save_atomic
from . import captioning
from .parts import Part

if TYPE_CHECKING:
    from ..architectures.card import Card, Task
    from .parts import Content

logger = logging.getLogger(__name__)

_MODULES = {card_id: module for card_id in cards() if (module := part_of(card_id, "demo")) is not None}

KINDS: dict[str, dict[str, Part]] = {kind: parts for module in (*_MODULES.values(), captioning) for kind, parts in module.KINDS.items()}
"""What `--kind` can make: part (the name of its option) -> file. Each architecture lists its kinds in its folder."""


def kind_for(card: Card, task: Task) -> str:
    """Which demo models stand in for the real ones of a task. UserError where there are none."""
    if card.id not in _MODULES:
        raise UserError(f"there are no tiny models of {card.title}; there are {', '.join(KINDS)}")
    kind: str = _MODULES[card.id].kind_for(task)
    return kind


_TAG = "musubi_demo"
_VERSION = "3"


@dataclass(frozen=True)
class DemoModelSettings(Settings):
    """`demo_models`: which models, and where."""

    output: str = ""
    seed: int = 0
    kind: str = next(iter(KINDS))


def run(args: Namespace) -> None:
    """Write the files of `--kind` into `--output`; those already made with the same seed are left alone."""
    settings = DemoModelSettings.read(args)
    write_models(Path(settings.output), settings.seed, settings.kind)


def write_models(folder: Path, seed: int = 0, kind: str = next(iter(KINDS))) -> dict[str, Path]:
    """The demo models of one kind in `folder`, by the name of their option: {"dit": ..., "vae": ..., "t5": ...}. UserError when the
    folder cannot be written."""
    parts = KINDS[kind]
    for part in parts.values():
        _write(folder / part.file, partial(part.content, seed), f"{_VERSION}, seed {seed}")
        if part.beside is not None:
            part.beside(folder)
    return {name: folder / part.file for name, part in parts.items()}


def _write(path: Path, make: Callable[[], Content], tag: str) -> None:
    if path.is_file() and _tag_of(path) == tag:
        logger.info("Already there: %s", path)
        return
    tensors, metadata = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic(tensors, path, {**metadata, _TAG: tag})
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
    logger.info("Written: %s (%.1f MB)", path, path.stat().st_size / 1e6)


def _tag_of(path: Path) -> str | None:
    """The tag of a demo file; None for anything else, which is then replaced only if it is unreadable or a demo file."""
    try:
        header = read_header(path)
    except UserError:
        return None
    if _TAG not in header.metadata:
        raise UserError(f"{path} exists and is not a demo model; give another folder to --output")
    return header.metadata[_TAG]
