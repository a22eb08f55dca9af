"""What an architecture must answer. The verbs (cache, train, generate) are written once against this class."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from . import part_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from ..cache.forms import CacheForms
    from ..dataset.decoding import DecodedEntry
    from ..dataset.items import Entry, MediaItem
    from .card import Card
    from .request import LineOption, SampleRequest
    from .sampler import Sampler

    Batch = dict[str, Tensor | list[Tensor]]


class LatentEncoder(Protocol):
    """Turns decoded media into latent cache entries."""

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """batch: entries whose pixels have equal shapes. Returns per entry, for each of its cache files (`Entry.latent_paths`),
        the tensors to cache under their base names, e.g. [{"latents": [16, F', H/8, W/8]}]; the cache file layer adds shape
        and dtype to the names."""
        ...


class TextEncoder(Protocol):
    """Turns captions into text cache entries and sampling conditions."""

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Per caption the tensors to cache under their base names, e.g. {"varlen_t5": [L, 4096]} without padding."""
        ...

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Per caption what `encode` leaves out of it because it is too long, "" where that is nothing."""
        ...


class ConditionEncoder(Protocol):
    """Turns the images and videos of a request into what `predict` finds in its batch next to the text."""

    def encode(self, request: SampleRequest) -> dict[str, Tensor]:
        """Tensors of one sample under the names a cached batch has them ("latents_image" [20, F', H', W'], "clip" [257, 1280]).
        UserError naming the file that cannot be used."""
        ...


class LatentDecoder(Protocol):
    """Turns latents back into images."""

    def decode(self, latents: Tensor) -> Tensor:
        """latents [C, F', H', W'] -> float video [3, F, H, W] in 0..1, on the CPU."""
        ...


class Architecture(ABC):
    """One model family. Every method takes the parsed arguments of the running tool; nothing is kept between calls."""

    card: Card

    def at(self, card: Card) -> Architecture:
        """This architecture with its card as a task has it."""
        chosen = copy.copy(self)
        chosen.card = card
        return chosen

    def unusable(self, item: MediaItem, args: Namespace) -> str | None:
        """Why latents of an item cannot be cached with these arguments (it lacks control images, ...); None when they can."""
        return None

    def cached_names(self, item: MediaItem, args: Namespace) -> Collection[str]:
        """Base names of the tensors that every latent cache of an item holds when it is cached with these arguments."""
        return ("latents",)

    def cached_frames(self, entry: Entry, args: Namespace) -> int:
        """How many frames the main latents of each cache file of an entry have."""
        return ((entry.frames or 1) - 1) // self.card.frame_stride + 1

    def cached_otherwise(self, path: Path, args: Namespace) -> bool:
        """Was a complete latent cache made with other settings than these, so that it must be made again? Reads a few bytes at most."""
        return False

    def cache_forms(self, args: Namespace) -> CacheForms:
        """What cached tensors are like that can be trained with these arguments; sizes that the transformer fixes are read from the
        header of its file. Called after `compute_dtype`."""
        from ..cache.forms import CacheForms, Form, main_latents

        card = self.card
        return CacheForms(main_latents(card.latent_channels, card.latent_rank), {name: Form("any") for name in card.text_keys})

    @abstractmethod
    def latent_encoder(self, args: Namespace, device: torch.device) -> LatentEncoder: ...

    @abstractmethod
    def text_encoder(self, args: Namespace, device: torch.device) -> TextEncoder: ...

    @abstractmethod
    def latent_decoder(self, args: Namespace, device: torch.device) -> LatentDecoder: ...

    def condition_encoder(self, args: Namespace, device: torch.device) -> ConditionEncoder | None:
        """Loads what encodes the images of requests; None where the task takes none. It is freed before the transformer is
        loaded."""
        return None

    @abstractmethod
    def compute_dtype(self, args: Namespace) -> torch.dtype:
        """dtype of the frozen transformer's arithmetic, from `--mixed_precision` and the weight file's header.
        Raises UserError where the two do not go together."""

    @abstractmethod
    def transformer(self, args: Namespace, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The frozen transformer in eval mode. It has `.block_lists() -> list[nn.ModuleList]` for checkpointing, streaming
        and compilation, and `.gradient_checkpointing: bool`."""

    def weight_file(self, args: Namespace) -> str:
        """The file behind `--dit`, any one where there are several parts."""
        path: str = args.dit
        return path

    def weight_name(self, name: str) -> str:
        """A tensor's name in a weight file, without prefix -> its name in the model."""
        return name

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Cached latents [B, C, F, H, W] -> what the diffusion process runs on."""
        return latents

    @abstractmethod
    def predict(
        self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, args: Namespace, skip_blocks: Sequence[int] = ()
    ) -> Tensor:
        """Velocity prediction. noisy [B, C, F, H, W]; timesteps [B] in 1..1000 (musubi-tuner's scale), on the CPU; batch: the cached
        tensors of the items; skip_blocks: blocks left out, for skip-layer guidance. Returns [B, C, F, H, W]."""

    @property
    @abstractmethod
    def line_options(self) -> Mapping[str, LineOption]:
        """The options that a prompt line of the generator may carry."""

    own_settings: frozenset[str] = frozenset()
    """Long names of line options that only this architecture has; their values go into `SampleRequest.own`."""

    @abstractmethod
    def fitted(self, request: SampleRequest, args: Namespace) -> SampleRequest:
        """The request as this model can do it: a size taken from the start image where the task does so. UserError where the
        size, the length or the images do not fit, naming the nearest size that does. Reads headers of images at most."""

    @abstractmethod
    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, ...]:
        """[C, F', H', W'] of one video, or [C, H', W'] of an image where latents have no frames; UserError names the nearest valid size
        where this one does not fit."""

    def noise_shape(self, request: SampleRequest, args: Namespace) -> tuple[int, ...]:
        """[C, F', H', W'] of what is sampled for a fitted request."""
        return self.latent_shape(request.width, request.height, request.frames)

    @abstractmethod
    def sampler(self, request: SampleRequest) -> Sampler:
        """A fresh sampler for one run, with this architecture's sigmas."""

    def boundary(self, args: Namespace) -> float | None:
        """Sigma (timestep / 1000) from which `SampleRequest.guidance_high_noise` holds; None for models without one."""
        return None

    def texts(self, request: SampleRequest) -> list[str]:
        """The texts of a request that must be encoded before it is sampled."""
        return [request.prompt, request.negative_prompt] if request.needs_negative else [request.prompt]

    @abstractmethod
    def sample(
        self,
        transformer: nn.Module,
        request: SampleRequest,
        texts: Mapping[str, Mapping[str, Tensor]],
        conditions: Mapping[str, Tensor],
        *,
        args: Namespace,
        device: torch.device,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Latents [C, F', H', W'] of one request.

        texts: what the text encoder gave for each of `texts(request)`; conditions: what the condition encoder gave; all without
        batch dimension.
        """

    def steps(self, request: SampleRequest) -> int:
        """How often `sample` reports progress."""
        return request.steps

    @abstractmethod
    def describe(self, request: SampleRequest) -> dict[str, str]:
        """What a result was made with, under musubi-tuner's metadata names."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.card.id}>"


def load(card_id: str) -> Architecture:
    """The adapter of one architecture. Imports torch lazily, when its methods are called."""
    module = part_of(card_id, "adapter")
    if module is None:
        raise KeyError(f"the architecture {card_id!r} has no adapter.py")
    adapter: Architecture = module.ADAPTER
    return adapter
