"""Wan2.1 answers the architecture protocol. Model and encoder code is imported when a method needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ...inference.usual import UsualSampling
from ..card import HIGH, LOW, Task
from .card import CARD
from .settings import WanSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...cache.forms import CacheForms
    from ...dataset.items import Entry, MediaItem
    from ...layers.experts import Experts
    from ..protocol import Batch, ConditionEncoder, Inputs, LatentDecoder, LatentEncoder, TextEncoder
    from ..request import SampleRequest
    from ..sampler import Sampler
    from .model import WanTransformer


class Wan(UsualSampling):
    card = CARD
    settings: WanSettings = WanSettings()

    @property
    def task(self) -> Task:
        return CARD.task(self.settings.task)

    def unusable(self, item: MediaItem) -> str | None:
        from .cache_forms import unusable

        return unusable(item, self.settings.images)

    def cached_names(self, item: MediaItem) -> Collection[str]:
        from .cache_forms import cached_names

        return cached_names(item, self.settings.images)

    def cached_frames(self, entry: Entry) -> int:
        return 1 + len(entry.item.controls) if self.settings.images.one_frame else super().cached_frames(entry)

    def cache_forms(self) -> CacheForms:
        from .cache_forms import cache_forms
        from .load import geometry

        return cache_forms(self.task, geometry(self.settings))

    def latent_encoder(self, device: torch.device) -> LatentEncoder:
        from .encode import OneFrameEncoder, WanLatentEncoder

        vae, images = self.settings.vae, self.settings.images
        return (OneFrameEncoder if images.one_frame else WanLatentEncoder).load(vae, images, device)

    def condition_encoder(self, device: torch.device) -> ConditionEncoder | None:
        from .conditions import WanConditionEncoder

        task = self.task
        return WanConditionEncoder.load(self.settings, device, task) if task.start_image or task.control else None

    def text_encoder(self, device: torch.device) -> TextEncoder:
        from .encode import WanTextEncoder

        return WanTextEncoder.load(self.settings.text, device)

    def latent_decoder(self, device: torch.device) -> LatentDecoder:
        from .encode import WanLatentDecoder

        return WanLatentDecoder.load(self.settings.vae, device, self.settings.video.trim_tail_frames)

    def training_dtype(self, precision: str) -> torch.dtype:
        from .load import trained_dtype

        return trained_dtype(self.settings, precision)

    def generating_dtype(self, device: torch.device) -> torch.dtype:
        from .load import generated_dtype

        return generated_dtype(self.settings, device)

    def weight_files(self) -> dict[str, str]:
        high = self.settings.experts.dit_high_noise
        return {LOW: self.weight_file(), HIGH: high} if high else super().weight_files()

    def lora_files(self) -> list[str]:
        return [*super().lora_files(), *(self.settings.experts.lora_weight_high_noise or ())]

    def boundary(self) -> float | None:
        from .fitting import boundary

        return boundary(self.settings)

    def transformer(self, device: torch.device, dtype: torch.dtype) -> WanTransformer | Experts:
        from .load import load_transformer

        return load_transformer(self.settings, device, dtype)

    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        from .inputs import model_inputs

        return (noisy, timesteps, batch["t5"], *model_inputs(batch, self.task), skip_blocks), {}

    def fitted(self, request: SampleRequest) -> SampleRequest:
        from .fitting import fitted

        return fitted(request, self.settings, self.task)

    def fitted_sample(self, request: SampleRequest) -> SampleRequest:
        from .fitting import fitted_sample

        return fitted_sample(request, self.settings, self.task)

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        from .fitting import latent_shape

        return latent_shape(width, height, frames)

    def noise_shape(self, request: SampleRequest) -> tuple[int, int, int, int]:
        from .fitting import noise_shape

        return noise_shape(request, self.task)

    def sampler(self, request: SampleRequest) -> Sampler:
        from ...inference.samplers import wan_sampler

        return wan_sampler(request.sampler, request.steps, request.flow_shift)

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
        latents = super().sample(transformer, request, texts, conditions, device=device, progress=progress)
        if request.one_frame is None:
            return latents
        from .one_frame import OneFrame

        place = OneFrame.parse(request.one_frame).place
        return latents[:, place : place + 1].contiguous()


ADAPTER = Wan()
