"""What an architecture must answer. The verbs (cache, train, generate) are written once against this class."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import UserError
from . import part_of
from .settings import ArchitectureSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from ..cache.forms import CacheForms
    from ..dataset.decoding import DecodedEntry
    from ..dataset.items import Entry, MediaItem
    from .card import Card, Task
    from .request import LineOption, SampleRequest
    from .sampler import Sampler

    Batch = dict[str, Tensor | list[Tensor]]
    Inputs = tuple[tuple[Any, ...], dict[str, Any]]

A = TypeVar("A", bound="Architecture")


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
    """One model family, as one run wants it: with its own settings, and nothing else that is kept between calls."""

    card: Card
    settings: ArchitectureSettings = ArchitectureSettings()

    def at(self, card: Card) -> Architecture:
        """This architecture with its card as a task has it."""
        chosen = copy.copy(self)
        chosen.card = card
        return chosen

    def configured(self: A, given: Mapping[str, Any]) -> A:
        """This architecture with the settings of a run. given: the values of the tool's options by name."""
        made = copy.copy(self)
        made.settings = self.settings.read(given)
        return made

    @property
    def task(self) -> Task:
        """The chosen variant."""
        return self.card.task(None)

    def unusable(self, item: MediaItem) -> str | None:
        """Why latents of an item cannot be cached with these settings (it lacks control images, ...); None when they can."""
        return None

    def cached_names(self, item: MediaItem) -> Collection[str]:
        """Base names of the tensors that every latent cache of an item holds when it is cached with these settings."""
        return ("latents",)

    def cached_frames(self, entry: Entry) -> int:
        """How many frames the main latents of each cache file of an entry have."""
        return ((entry.frames or 1) - 1) // self.card.frame_stride + 1

    def cached_otherwise(self, path: Path) -> bool:
        """Was a complete latent cache made with other settings than these, so that it must be made again? Reads a few bytes at most."""
        return False

    def cache_forms(self) -> CacheForms:
        """What cached tensors are like that can be trained with these settings; sizes that the transformer fixes are read from the
        header of its file. Called after `training_dtype`."""
        from ..cache.forms import CacheForms, Form, main_latents

        card = self.card
        return CacheForms(main_latents(card.latent_channels, card.latent_rank), {name: Form("any") for name in card.text_keys})

    @abstractmethod
    def latent_encoder(self, device: torch.device) -> LatentEncoder: ...

    @abstractmethod
    def text_encoder(self, device: torch.device) -> TextEncoder: ...

    @abstractmethod
    def latent_decoder(self, device: torch.device) -> LatentDecoder: ...

    def condition_encoder(self, device: torch.device) -> ConditionEncoder | None:
        """Loads what encodes the images of requests; None where the task takes none. It is freed before the transformer is
        loaded."""
        return None

    @abstractmethod
    def training_dtype(self, precision: str) -> torch.dtype:
        """dtype of the frozen transformer's arithmetic in training, from the weight file's header.

        precision: "fp16", "bf16", "auto", or "no" for the architecture's own. UserError where it and the file do not go together.
        """

    @abstractmethod
    def generating_dtype(self, device: torch.device) -> torch.dtype:
        """dtype of the transformer's arithmetic in generating on `device`, from the weight file's header."""

    @abstractmethod
    def transformer(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The frozen transformer in eval mode. It has `.block_lists() -> list[nn.ModuleList]` for checkpointing, streaming
        and compilation, and `.gradient_checkpointing: bool`."""

    def weight_file(self) -> str:
        """The file behind `--dit`, any one where there are several parts. UserError where none is given."""
        if not self.settings.dit:
            raise UserError(f"--dit is required: the {self.card.family} transformer's weight file")
        return self.settings.dit

    def weight_files(self) -> dict[str, str]:
        """The same of each transformer: under "", or those of two experts under `LOW` and `HIGH`."""
        return {"": self.weight_file()}

    def lora_files(self) -> list[str]:
        """The LoRAs that a generator merges into them."""
        return list(self.settings.loras.lora_weight or ())

    def weight_name(self, name: str) -> str:
        """A tensor's name in a weight file, without prefix -> its name in the model."""
        return name

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Cached latents [B, C, F, H, W] -> what the diffusion process runs on."""
        return latents

    @abstractmethod
    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        """What the transformer is called with, for a batch as `predict` gets it."""

    def predict(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Tensor:
        """Velocity prediction. noisy [B, C, F, H, W]; timesteps [B] in 1..1000 (musubi-tuner's scale), on the CPU; batch: the cached
        tensors of the items; skip_blocks: blocks left out, for skip-layer guidance. Returns [B, C, F, H, W]."""
        given, named = self.inputs(transformer, noisy, timesteps, batch, skip_blocks)
        prediction: Tensor = transformer(*given, **named)
        return prediction

    @property
    @abstractmethod
    def line_options(self) -> Mapping[str, LineOption]:
        """The options that a prompt line of the generator may carry."""

    own_settings: frozenset[str] = frozenset()
    """Long names of line options that only this architecture has; their values go into `SampleRequest.own`."""

    @abstractmethod
    def fitted(self, request: SampleRequest) -> SampleRequest:
        """A generator's request as this model can do it: with what its own settings say, and a size taken from the start image where
        the task does so. UserError where the size, the length or the images do not fit, naming the nearest size that does. Reads
        headers of images at most."""

    def fitted_sample(self, request: SampleRequest) -> SampleRequest:
        """The same of a sample in training, whose prompt says everything."""
        return self.fitted(request)

    @abstractmethod
    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, ...]:
        """[C, F', H', W'] of one video, or [C, H', W'] of an image where latents have no frames; UserError names the nearest valid size
        where this one does not fit."""

    def noise_shape(self, request: SampleRequest) -> tuple[int, ...]:
        """[C, F', H', W'] of what is sampled for a fitted request."""
        return self.latent_shape(request.width, request.height, request.frames)

    @abstractmethod
    def sampler(self, request: SampleRequest) -> Sampler:
        """A fresh sampler for one run, with this architecture's sigmas."""

    def boundary(self) -> float | None:
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
