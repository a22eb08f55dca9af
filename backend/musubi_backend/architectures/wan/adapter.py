"""Wan2.1 answers the architecture protocol. Model and encoder code is imported when a method needs it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UserError
from ..protocol import Architecture
from .card import CARD

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...inference.sampling import SampleRequest
    from ...inference.schedulers import Solver
    from ..protocol import Batch, LatentDecoder, LatentEncoder, TextEncoder
    from .model import WanTransformer


class Wan(Architecture):
    card = CARD

    def latent_encoder(self, args: Namespace, device: torch.device) -> LatentEncoder:
        from .encode import WanLatentEncoder

        return WanLatentEncoder.load(args, device)

    def text_encoder(self, args: Namespace, device: torch.device) -> TextEncoder:
        from .encode import WanTextEncoder

        return WanTextEncoder.load(args, device)

    def latent_decoder(self, args: Namespace, device: torch.device) -> LatentDecoder:
        from .encode import WanLatentDecoder

        return WanLatentDecoder.load(args, device)

    def compute_dtype(self, args: Namespace) -> torch.dtype:
        from .load import compute_dtype

        return compute_dtype(args)

    def transformer(self, args: Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer:
        from .load import load_transformer

        return load_transformer(args, device, dtype)

    def predict(
        self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, args: Namespace, skip_blocks: Sequence[int] = ()
    ) -> Tensor:
        prediction: Tensor = transformer(noisy, timesteps, batch["t5"], skip_blocks=skip_blocks)
        return prediction

    def fitted(self, request: SampleRequest, args: Namespace) -> SampleRequest:
        self.latent_shape(request.width, request.height, request.frames)
        task = CARD.task(args.task)
        if task.frames == 1 and request.frames != 1:
            raise UserError(f"--video_length {request.frames}: task {task.name} makes single images; leave it out or give 1")
        return request

    def solver(self, request: SampleRequest) -> Solver:
        from ...inference.schedulers import wan_solver

        return wan_solver(request.solver, request.steps, request.flow_shift)

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        """Wan patches latents by 2x2, so pixels come in steps of 16; frames are 4n+1."""
        channels, stride, compression = CARD.latent_channels, CARD.frame_stride, CARD.spatial_compression
        step = compression * 2
        if width % step or height % step or width < step or height < step:
            nearest = "x".join(str(max(step, round(side / step) * step)) for side in (width, height))
            raise UserError(f"size {width}x{height} does not fit {CARD.title}: sides are multiples of {step}; nearest is {nearest}")
        if (frames - 1) % stride or frames < 1:
            fitting = max(0, round((frames - 1) / stride)) * stride + 1
            raise UserError(f"{frames} frames do not fit {CARD.title}: it makes {stride}n+1 frames; nearest is {fitting}")
        return (channels, (frames - 1) // stride + 1, height // compression, width // compression)


ADAPTER = Wan()
