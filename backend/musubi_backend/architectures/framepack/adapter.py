"""FramePack answers the architecture protocol. Model and encoder code is imported when a method needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ...cache.headers import first_number
from ...dataset.config import ImageDataset
from ...inference.usual import UsualSampling
from ..sizes import video_latent_shape
from .card import CARD
from .section_texts import parse_sections
from .settings import FramePackSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from ...cache.forms import CacheForms
    from ...dataset.items import Entry, MediaItem
    from ..protocol import Batch, ConditionEncoder, Inputs, LatentDecoder, LatentEncoder, TextEncoder
    from ..request import LineOption, SampleRequest
    from ..sampler import Sampler
    from .model import FramePackTransformer

_PLAIN = ("latents", "latents_clean", "latent_indices", "clean_latent_indices", "image_embeddings")
_MIDDLE, _FAR = ("latents_clean_2x", "clean_latent_2x_indices"), ("latents_clean_4x", "clean_latent_4x_indices")


class FramePack(UsualSampling):
    card = CARD
    settings: FramePackSettings = FramePackSettings()

    def unusable(self, item: MediaItem) -> str | None:
        image = isinstance(item.dataset, ImageDataset)
        if not self.settings.items.one_frame:
            return "FramePack trains on clips; images need --one_frame" if image else None
        if not isinstance(item.dataset, ImageDataset):
            return "--one_frame makes caches of images, not of clips"
        if item.dataset.fp_1f_target_index is None:
            return f"{item.dataset.label}: fp_1f_target_index is missing, the time of the frame, for example 1"
        if item.dataset.no_resize_control or item.dataset.control_resolution is not None:
            return f"{item.dataset.label}: control images must have the image's size; remove no_resize_control and control_resolution"
        return None if item.controls else "--one_frame needs a control image: set control_directory, or control_path in the JSONL file"

    def cached_names(self, item: MediaItem) -> Collection[str]:
        items = self.settings.items
        if not items.one_frame:
            return (*_PLAIN, *_MIDDLE, *_FAR)
        return (*_PLAIN, *(() if items.one_frame_no_2x else _MIDDLE[1:]), *(() if items.one_frame_no_4x else _FAR[1:]))

    def cached_frames(self, entry: Entry) -> int:
        return 1 if entry.sections is None else entry.item.dataset.fp_latent_window_size

    def cached_otherwise(self, path: Path) -> bool:
        """Caches of F1 and of plain FramePack hold the same names: only in F1's does the oldest history come right after the start."""
        first = None if self.settings.items.one_frame else first_number(path, "clean_latent_4x_indices")
        return first is not None and (first == 1) != self.settings.items.f1

    def cache_forms(self) -> CacheForms:
        from .cache_forms import cache_forms
        from .load import geometry

        return cache_forms(geometry(self.settings))

    def latent_encoder(self, device: torch.device) -> LatentEncoder:
        from .encode import FramePackLatentEncoder

        return FramePackLatentEncoder.load(self.settings, device)

    def text_encoder(self, device: torch.device) -> TextEncoder:
        from .encode import FramePackTextEncoder

        return FramePackTextEncoder.load(self.settings, device)

    def latent_decoder(self, device: torch.device) -> LatentDecoder:
        from .encode import FramePackLatentDecoder

        return FramePackLatentDecoder.load(self.settings, device)

    def condition_encoder(self, device: torch.device) -> ConditionEncoder:
        from .encode import FramePackConditionEncoder

        return FramePackConditionEncoder.load(self.settings, device)

    def training_dtype(self, precision: str) -> torch.dtype:
        from .load import trained_dtype

        return trained_dtype(self.settings, precision)

    def generating_dtype(self, device: torch.device) -> torch.dtype:
        from .load import generated_dtype

        return generated_dtype(self.settings, device)

    def transformer(self, device: torch.device, dtype: torch.dtype) -> FramePackTransformer:
        from .load import load_transformer

        return load_transformer(self.settings, device, dtype)

    def weight_file(self) -> str:
        from .load import weight_file

        return weight_file(self.settings)

    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        """In training the embedded guidance of the distilled model is `--guidance_scale`, as in musubi-tuner."""
        from .sample import GUIDANCE, model_inputs

        if GUIDANCE not in batch:
            batch = {**batch, GUIDANCE: noisy.new_full((len(noisy),), 1000.0 * self.settings.guidance_scale)}
        return model_inputs(noisy, timesteps, batch, skip_blocks)

    @property
    def line_options(self) -> Mapping[str, LineOption]:
        from .requests import LINE_OPTIONS

        return LINE_OPTIONS

    own_settings = frozenset(("video_seconds", "video_sections", "magcache_retention_ratio", "magcache_threshold", "magcache_k"))

    def fitted(self, request: SampleRequest) -> SampleRequest:
        from .requests import fitted

        return fitted(request, self.settings)

    def fitted_sample(self, request: SampleRequest) -> SampleRequest:
        from .requests import fitted_sample

        return fitted_sample(request, self.settings)

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        return video_latent_shape(CARD, width, height, frames)

    def sampler(self, request: SampleRequest) -> Sampler:
        from .sample import sampler

        return sampler(request)

    def texts(self, request: SampleRequest) -> list[str]:
        prompts = list(parse_sections(request.prompt or " ").values())
        return [*prompts, request.negative_prompt] if request.guidance.scale != 1.0 else prompts

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
        from .sample import sample

        return sample(self, transformer, request, texts, conditions, settings=self.settings, device=device, progress=progress)

    def steps(self, request: SampleRequest) -> int:
        sections: int = request.own["sections"]
        return request.steps * max(1, sections)

    def describe(self, request: SampleRequest) -> dict[str, str]:
        from .requests import describe

        return describe(request)


ADAPTER = FramePack()
