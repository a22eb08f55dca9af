"""The largest batch of a training on the device "meta": of cached items, or as it will be when they are cached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..cache.forms import FRAMES, HEIGHT, WIDTH, Form
from ..dataset.config import load_config
from ..dataset.discovery import discover
from ..dataset.items import Entry
from ..dataset.probe import foresee
from ..dataset.problems import Problem
from ..device import for_model
from ..errors import UserError

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture
    from ..dataset.batches import BatchDescription, CachedDataset

META = torch.device("meta")

_TOKENS = 729
"""Of an image, where a cache does not say: SigLIP's, and more than CLIP's 257."""
USUAL = {"tokens": 256, "clean frames": 2}
"""Of captions, and of the history of a section."""

Batch = Mapping[str, Any]


def largest(dataset: CachedDataset) -> BatchDescription:
    """The batch of the largest latents."""
    return max(dataset.batches(0, 1), key=lambda batch: sum(item.latents.stat().st_size for item in batch.items))


def largest_batch(dataset: CachedDataset) -> Batch:
    """The same as the loop gives it to a model, but on "meta"."""
    return on_meta(dataset.collate(largest(dataset)))


def on_meta(batch: Batch) -> Batch:
    return {name: _on_meta(value) for name, value in batch.items()}


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return for_model(value, META)
    return [_on_meta(one) for one in value] if isinstance(value, list) else value


def foreseen_batch(config_path: str, architecture: Architecture) -> Batch:
    """The largest batch of a dataset as it will be when it is cached, with captions as long as they may be. UserError where nothing of
    the dataset can be used, which says why."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for dataset in load_config(config_path).datasets:
        found = discover(dataset, architecture.card)
        problems += found.problems
        for item in found.items:
            why = architecture.unusable(item)
            foreseen = Problem(item.path, why) if why else foresee(item, architecture.card)
            if isinstance(foreseen, Problem):
                problems.append(foreseen)
            else:
                entries += foreseen.entries
    if not entries:
        reasons = "".join(f". {problem}" for problem in problems[:1])
        others = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise UserError(f"no item of {config_path} can be used{reasons}{others}")
    card = architecture.card
    shrink = card.spatial_compression

    def numbers(entry: Entry) -> int:
        return entry.bucket[0] * entry.bucket[1] * architecture.cached_frames(entry) * entry.item.dataset.batch_size

    chosen = max(entries, key=numbers)
    sides = {FRAMES: architecture.cached_frames(chosen), HEIGHT: chosen.bucket[1] // shrink, WIDTH: chosen.bucket[0] // shrink, **USUAL}
    forms = architecture.cache_forms()
    names = architecture.cached_names(chosen.item)
    of_item = {name: form for name, form in forms.latents.items() if not form.optional or name in names} | dict(forms.texts)
    return {name: like(form, sides, chosen.item.dataset.batch_size) for name, form in of_item.items()}


def like(form: Form, sides: Mapping[str, int], count: int) -> Any:
    """`count` tensors of a form, stacked, or as a list where their lengths differ: on "meta", or with values that count or mask tokens."""
    assert form.shapes is not None, "what a model is given has a shape"
    wanted = form.shapes[0]
    shape = [
        side[-1] if isinstance(side, range) else sides.get(side, _TOKENS) if isinstance(side, str) else side or _TOKENS for side in wanted
    ]
    if form.kind == "floats":
        one = torch.empty(shape, device=META)
    else:
        one = torch.ones(shape, dtype=torch.bool) if form.kind == "mask" else torch.arange(shape[0])
    several = [one] * count
    return several if any(isinstance(side, range) for side in wanted) else torch.stack(several)
