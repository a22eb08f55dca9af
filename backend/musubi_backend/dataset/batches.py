"""The training side: cached items paired, put into buckets, ordered, and collated into batches. The media are not needed."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import tensor_keys
from ..cache.forms import CacheForms
from ..cache.headers import check_cache, check_form, control_shapes, latent_shape
from ..cache.names import LatentName, latent_files, parse_latent_name, text_name
from ..counted import counted
from ..errors import UserError
from .buckets import Buckets, Size
from .config import DatasetConfig, ImageDataset, VideoDataset
from .describe import metadata, settings_text
from .items import caching_buckets, training_buckets
from .order import Key, mixed, shuffled_batches, sortable
from .problems import Problem, listing

if TYPE_CHECKING:
    from torch import Tensor

    from ..architectures.card import Card
    from ..weights.safetensors_file import Header

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedItem:
    """One image or window that can be trained.

    key       bucket: items of equal keys have latents of equal shapes
    latents   its latent cache
    text      its text cache (shared by all windows of a clip)
    """

    key: Key
    latents: Path
    text: Path

    @property
    def name(self) -> str:
        """How messages name this item."""
        return self.latents.name


@dataclass(frozen=True)
class BatchDescription:
    """One batch before it is read: its items, and their positions in 0..1 when timesteps are drawn in strata."""

    items: tuple[CachedItem, ...]
    timesteps: tuple[float, ...] | None = None

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.items]


@dataclass(frozen=True)
class CachedDataset:
    """Everything there is to train on. Build with `open`.

    items       all items, each as often as its data set repeats it
    problems    caches that are there but cannot be trained
    """

    config: DatasetConfig
    items: tuple[CachedItem, ...]
    problems: tuple[Problem, ...]
    strata: int | None
    card: Card
    forms: CacheForms
    _buckets: tuple[dict[Key, list[CachedItem]], ...]

    @classmethod
    def open(
        cls,
        config: DatasetConfig,
        card: Card,
        forms: CacheForms,
        *,
        num_timestep_buckets: int | None = None,
    ) -> CachedDataset:
        """Find and check the caches of every data set by their headers. forms: what their tensors must be like.
        UserError when there are none, or one is damaged, cannot be trained or is of another architecture; caches without text are
        warned about and left out."""
        buckets, problems = [], []
        for dataset in config.datasets:
            logger.info(settings_text(dataset))
            found, wrong = _cached_items(dataset, card, forms)
            for problem in wrong:
                logger.warning(problem.reason)
            problems += wrong
            buckets.append(_bucketed(dataset, found))
        items = tuple(item for one in buckets for members in one.values() for item in members)
        if not items:
            listed = f"\n{listing(problems)}" if problems else ""
            folders = ", ".join(str(dataset.cache_folder) for dataset in config.datasets)
            raise UserError(
                f"No training items found in the dataset ({config.path}; looked for {card.cache_id} caches in {folders}). "
                f"Run the latent caching and the text encoder caching first.{listed}"
            )
        return cls(config, items, tuple(problems), num_timestep_buckets, card, forms, tuple(buckets))

    @property
    def parts(self) -> Iterator[tuple[ImageDataset | VideoDataset, list[CachedItem]]]:
        """Each data set with its items."""
        for dataset, buckets in zip(self.config.datasets, self._buckets, strict=True):
            yield dataset, [item for members in buckets.values() for item in members]

    def without(self, items: Set[CachedItem]) -> CachedDataset:
        """What is left when these are not trained on."""
        left = [
            {key: kept for key, members in one.items() if (kept := [item for item in members if item not in items])}
            for one in self._buckets
        ]
        return replace(self, items=tuple(item for item in self.items if item not in items), _buckets=tuple(left))

    def batches(self, seed: int, epoch: int) -> list[BatchDescription]:
        """All batches of one epoch in their order, a pure function of (seed, epoch)."""
        result = []
        for dataset, buckets in zip(self.config.datasets, self._buckets, strict=True):
            for _, items, timesteps in shuffled_batches(buckets, dataset.batch_size, seed + epoch, self.strata):
                result.append(BatchDescription(items, timesteps))
        return mixed(result, seed, epoch)

    def collate(self, batch: BatchDescription) -> dict[str, Any]:
        """Read a batch: base name -> [B, ...] tensor, or a list of tensors where lengths differ; with strata also "timesteps",
        a list of positions in 0..1. Reading fails with a UserError naming the cache file."""
        entries = [self._read(item) for item in batch.items]
        result: dict[str, Any] = {}
        for name in entries[0]:
            tensors = [entry[name] for entry in entries if name in entry]
            if len(tensors) < len(entries):
                without = next(item for item, entry in zip(batch.items, entries, strict=True) if name not in entry)
                raise UserError(f"{without.latents} or {without.text} lacks {name}, which others have; delete it and cache again")
            result[tensor_keys.base_name(name)] = tensors if tensor_keys.is_variable_length(name) else _stacked(name, tensors, batch)
        if batch.timesteps is not None:
            result["timesteps"] = list(batch.timesteps)
        return result

    def _read(self, item: CachedItem) -> dict[str, Tensor]:
        """The tensors of one item, named without dtype and shape but still with `varlen_`. Looked at again, as caches may be made anew
        while a training runs."""
        from ..cache.files import load_trained

        return {**load_trained(item.latents, self.card, self.forms.latents), **load_trained(item.text, self.card, self.forms.texts)}

    def metadata(self) -> list[dict[str, Any]]:
        """The data sets as the LoRA's `ss_datasets` tells them."""
        return [metadata(dataset) for dataset in self.config.datasets]

    def digest(self) -> str:
        """Equal for equal contents and order: names and sizes of all caches, batch sizes and strata."""
        parts = [f"{dataset.batch_size}" for dataset in self.config.datasets] + [f"{self.strata}"]
        parts += [f"{item.key} {path.name} {path.stat().st_size}" for item in self.items for path in (item.latents, item.text)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cached_items(dataset: ImageDataset | VideoDataset, card: Card, forms: CacheForms) -> tuple[list[CachedItem], list[Problem]]:
    """The usable caches of one data set, sorted by name, and those that are not usable."""
    video = isinstance(dataset, VideoDataset)
    buckets = training_buckets(dataset, card)
    found, problems, resized = [], [], []
    texts: dict[Path, bool] = {}
    for path in latent_files(dataset.cache_folder, card.cache_id):
        name = parse_latent_name(path.name, card.cache_id, video=video)
        if name is None:
            kind = "clip" if video else "image"
            problems.append(Problem(path, f"not the cache of a {kind}: {path}; each dataset needs a cache folder of its own"))
            continue
        text = path.with_name(text_name(name.stem, card.cache_id))
        if text not in texts:
            texts[text] = text.is_file()
            if texts[text]:
                check_form(text, check_cache(text, card), forms.texts)
        if not texts[text]:
            problems.append(Problem(path, f"Text encoder output cache file not found: {text}"))
            continue
        header = check_cache(path, card)
        check_form(path, header, forms.latents)
        _check_frames(path, header, name, card)
        key, as_cached = _key(dataset, card, buckets, name, header)
        found.append(CachedItem(key, path, text))
        if not as_cached:
            resized.append(path)
    if resized:
        logger.warning(
            f"{dataset.label}: {len(resized)} of {counted(len(found), 'cache has', 'caches have')} another size than the settings give "
            f"now, like {resized[0]}; they are trained as they are. Cache again to change that."
        )
    return found, problems


def _check_frames(path: Path, header: Header, name: LatentName, card: Card) -> None:
    """UserError where a cache does not hold as many frames as its name says; a section's file does not say how many it has."""
    shape = latent_shape(header)
    if name.frames is None or card.sections or shape is None or len(shape) < 3:
        return
    wanted = (name.frames - 1) // card.frame_stride + 1
    if shape[0] != wanted:
        raise UserError(
            f"{path} holds {counted(shape[0], 'latent frame')}, and a window of {counted(name.frames, 'frame')} has {wanted}; "
            "delete it and cache again"
        )


def _key(dataset: ImageDataset | VideoDataset, card: Card, buckets: Buckets, name: LatentName, header: Header) -> tuple[Key, bool]:
    """The bucket of one cache, and whether caching with the settings of now would give it the size it has. Where its latents have not
    the bucket's size, their own becomes part of the key, so that a batch can always be stacked."""
    bucket = buckets.choose((name.width, name.height))
    key: Key = (*bucket, name.frames) if name.frames is not None else bucket
    if isinstance(dataset, ImageDataset):
        key = (*key, *_image_settings(dataset, card), *control_shapes(header))
    shape = latent_shape(header)
    assert shape is not None  # latents are always needed
    if shape[-2:] != _latent_size(bucket, card) or (len(shape) > 2 and shape[0] != _usual_frames(dataset, card, name)):
        key = (*key, f"latents {'x'.join(map(str, shape))}")
    if isinstance(dataset, VideoDataset):  # a clip's cache is named after the bucket it went to, which caching does with buckets off too
        return key, _would_be_cached_as((name.width, name.height), shape, dataset, card)
    return key, shape[-2:] == _latent_size(bucket, card)


def _would_be_cached_as(size: Size, shape: tuple[int, ...], dataset: VideoDataset, card: Card) -> bool:
    """Can caching with the settings of now give a clip latents of this shape in a file with this size in its name?"""
    return shape[-2:] == _latent_size(size, card) and caching_buckets(dataset, card).choose(size) == size


def _usual_frames(dataset: ImageDataset | VideoDataset, card: Card, name: LatentName) -> int:
    """Latent frames of an item of this name."""
    if name.frames is None:
        return 1
    return dataset.fp_latent_window_size if card.sections else (name.frames - 1) // card.frame_stride + 1


def _latent_size(size: Size, card: Card) -> tuple[int, int]:
    """(width, height) in pixels -> (height, width) of the latents."""
    return size[1] // card.spatial_compression, size[0] // card.spatial_compression


def _image_settings(dataset: ImageDataset, card: Card) -> tuple[int, ...]:
    """What besides sizes keeps images apart: the settings of FramePack and of one-frame training."""
    if not card.window_in_bucket:
        return ()
    one_frame = dataset.fp_1f_clean_indices
    return (dataset.fp_latent_window_size, *((len(one_frame), dataset.fp_1f_no_post) if one_frame is not None else ()))


def _bucketed(dataset: ImageDataset | VideoDataset, items: Sequence[CachedItem]) -> dict[Key, list[CachedItem]]:
    """Items by key, each repeated as often as the data set says; the sizes are logged."""
    buckets: dict[Key, list[CachedItem]] = defaultdict(list)
    for item in items:
        buckets[item.key] += [item] * dataset.num_repeats
    for key in sorted(buckets, key=sortable):
        logger.info(f"bucket: {key}, count: {len(buckets[key])}")
    logger.info(f"total batches: {sum(-(-len(members) // dataset.batch_size) for members in buckets.values())}")
    return dict(buckets)


def _stacked(name: str, tensors: list[Tensor], batch: BatchDescription) -> Tensor:
    import torch

    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{item.name} {shape}" for item, shape in zip(batch.items, shapes, strict=True))
        raise UserError(f"{name} has different shapes in one batch ({listed}); cache these items again, or use batch_size = 1")
    return torch.stack(tensors)
