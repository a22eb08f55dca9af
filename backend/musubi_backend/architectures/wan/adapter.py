"""Wan2.1 answers the architecture protocol. Model and encoder code is imported when a method needs it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ...inference.usual import UsualSampling
from .card import CARD

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...cache.forms import CacheForms
    from ...dataset.items import Entry, MediaItem
    from ...layers.experts import Experts
    from ..protocol import Batch, ConditionEncoder, LatentDecoder, LatentEncoder, TextEncoder
    from ..request import SampleRequest
    from ..sampler import Sampler
    from .model import WanTransformer


class Wan(UsualSampling):
    card = CARD

    def unusable(self, item: MediaItem, args: Namespace) -> str | None:
        from .cache_forms import unusable

        return unusable(item, args)

    def cached_names(self, item: MediaItem, args: Namespace) -> Collection[str]:
        from .cache_forms import cached_names

        return cached_names(item, args)

    def cached_frames(self, entry: Entry, args: Namespace) -> int:
        return 1 + len(entry.item.controls) if args.one_frame else super().cached_frames(entry, args)

    def cache_forms(self, args: Namespace) -> CacheForms:
        from .cache_forms import cache_forms
        from .load import geometry

        return cache_forms(CARD.task(args.task), geometry(args))

    def latent_encoder(self, args: Namespace, device: torch.device) -> LatentEncoder:
        from .encode import OneFrameEncoder, WanLatentEncoder

        return OneFrameEncoder.load(args, device) if args.one_frame else WanLatentEncoder.load(args, device)

    def condition_encoder(self, args: Namespace, device: torch.device) -> ConditionEncoder | None:
        from .conditions import WanConditionEncoder

        task = CARD.task(args.task)
        return WanConditionEncoder.load(args, device, task) if task.start_image or task.control else None

    def text_encoder(self, args: Namespace, device: torch.device) -> TextEncoder:
        from .encode import WanTextEncoder

        return WanTextEncoder.load(args, device)

    def latent_decoder(self, args: Namespace, device: torch.device) -> LatentDecoder:
        from .encode import WanLatentDecoder

        return WanLatentDecoder.load(args, device)

    def compute_dtype(self, args: Namespace) -> torch.dtype:
        from .load import compute_dtype

        return compute_dtype(args)

    def boundary(self, args: Namespace) -> float | None:
        from .fitting import boundary

        return boundary(args)

    def transformer(self, args: Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer | Experts:
        from .load import load_transformer

        return load_transformer(args, device, dtype)

    def predict(
        self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, args: Namespace, skip_blocks: Sequence[int] = ()
    ) -> Tensor:
        from .inputs import model_inputs

        prediction: Tensor = transformer(noisy, timesteps, batch["t5"], *model_inputs(batch, CARD.task(args.task)), skip_blocks)
        return prediction

    def fitted(self, request: SampleRequest, args: Namespace) -> SampleRequest:
        from .fitting import fitted

        return fitted(request, args, CARD.task(args.task))

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        from .fitting import latent_shape

        return latent_shape(width, height, frames)

    def noise_shape(self, request: SampleRequest, args: Namespace) -> tuple[int, int, int, int]:
        from .fitting import noise_shape

        return noise_shape(request, CARD.task(args.task))

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
        args: Namespace,
        device: torch.device,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        latents = super().sample(transformer, request, texts, conditions, args=args, device=device, progress=progress)
        if request.one_frame is None:
            return latents
        from .one_frame import OneFrame

        place = OneFrame.parse(request.one_frame).place
        return latents[:, place : place + 1].contiguous()


ADAPTER = Wan()
