"""Which items are not trained on, so that their loss can be measured (`validation_split`).

Whole media are held out: all windows and sections of a clip, also where several data sets read it from one folder, lie on one side. Which
ones follows from a seed and their names, so new files change little of it, and moved folders nothing.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from ..cache.names import parse_text_name
from ..errors import UserError
from ..seeds import derived_seed
from .batches import CachedDataset, CachedItem


class _Medium(NamedTuple):
    """source: the folder or list that it comes from."""

    source: Path
    stem: str


def hold_out(dataset: CachedDataset, seed: int) -> tuple[CachedDataset, tuple[CachedItem, ...]]:
    """The data set that is trained on, and the items that are not, each once, in the order of the draw.

    UserError where a share is asked for of less than two media, where nothing would be left to train on, and where data sets of one
    folder have different shares.
    """
    if not any(one.validation_split for one in dataset.config.datasets):
        return dataset, ()
    items: dict[_Medium, list[CachedItem]] = defaultdict(list)
    shares: dict[_Medium, float] = {}
    for settings, found in dataset.parts:
        assert settings.source is not None, "looked at when the file was read"
        source = Path(settings.source[1]).resolve()
        for item in dict.fromkeys(found):
            medium = _Medium(source, parse_text_name(item.text.name, dataset.card.cache_id) or item.text.name)
            if shares.setdefault(medium, settings.validation_split) != settings.validation_split:
                raise UserError(
                    f"{settings.label}: validation_split is {settings.validation_split:g}, and {shares[medium]:g} in another dataset with "
                    f"{source}; give both the same, or some of {medium.stem} would be trained on"
                )
            items[medium].append(item)
    chosen = [
        medium for share in sorted(set(shares.values())) for medium in _drawn([one for one in shares if shares[one] == share], share, seed)
    ]
    if len(chosen) == len(shares):
        raise UserError(f"{dataset.config.path}: validation_split leaves nothing to train on; lower it, or add a dataset without it")
    held = tuple(item for medium in chosen for item in items[medium])
    return dataset.without(set(held)), held


def _drawn(media: list[_Medium], share: float, seed: int) -> list[_Medium]:
    """That share of them: at least one, and not all unless it is 1."""
    ranked = sorted(media, key=lambda medium: derived_seed(seed, "validation", medium.stem))
    if share in (0, 1):
        return ranked if share else []
    if len(ranked) < 2:
        raise UserError(
            f"validation_split {share:g} holds out a part of the images and clips, and there is only {ranked[0].stem}: add more, or leave "
            "it out"
        )
    return ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)]
