"""Dots answers the architecture protocol: latents are shrunk images, a caption is its letters counted, two blocks look at each dot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...dataset.decoding import DecodedEntry
from ...inference.samplers import wan_sampler
from ...inference.usual import UsualSampling
from ...layers.blocks import run_block
from ...layers.linear import Linear
from ...weights.loader import open_weights
from ..loading import load_frozen, lora_merge
from ..protocol import LatentDecoder, LatentEncoder, TextEncoder
from ..request import SampleRequest
from ..sampler import Sampler
from .card import CARD

if TYPE_CHECKING:
    from ..protocol import Batch, Inputs

LETTERS = 26


class Shrinking:
    """Stands where other architectures have a VAE."""

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        latents = []
        for entry in batch:
            video = torch.from_numpy(entry.pixels).permute(3, 0, 1, 2) / 127.5 - 1.0
            latents.append(F.avg_pool3d(video[:, :: CARD.frame_stride], (1, 8, 8)))
        return [[{"latents": tensor}] for tensor in latents]

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents.repeat_interleave(CARD.frame_stride, dim=1)[:, CARD.frame_stride - 1 :]
        return F.interpolate(frames.float(), scale_factor=8).add(1).div(2).clamp(0, 1).cpu()


class CountedLetters:
    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        counts = [[caption.lower().count(chr(97 + letter)) for letter in range(LETTERS)] for caption in captions]
        return [{"letters": torch.tensor(row, dtype=torch.float32)} for row in counts]

    def cut(self, captions: Sequence[str]) -> list[str]:
        return [""] * len(captions)


class DotsBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.grow, self.shrink = Linear(dim, 2 * dim), Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(F.silu(self.grow(x)))


class DotsTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        (task,) = CARD.tasks
        self.dots, self.text, self.time = Linear(task.in_dim, task.dim), Linear(LETTERS, task.dim), Linear(1, task.dim)
        self.blocks = nn.ModuleList(DotsBlock(task.dim) for _ in range(task.num_layers))
        self.out = Linear(task.dim, task.in_dim)
        self.gradient_checkpointing = False
        self.gradient_checkpointing_cpu_offload = False

    def block_lists(self) -> list[nn.ModuleList]:
        return [self.blocks]

    def set_attention(self, mode: str, split: bool = False) -> None:
        """Dots do not look at each other."""

    def forward(self, noisy: Tensor, timesteps: Tensor, letters: Tensor) -> Tensor:
        x = (
            self.dots(noisy.movedim(1, -1))
            + (self.text(letters) + self.time(timesteps.to(noisy.device)[:, None] / 1000))[:, None, None, None]
        )
        for block in self.blocks:
            x = run_block(block, x, recompute=self.gradient_checkpointing)
        return self.out(x).movedim(-1, 1)


class Dots(UsualSampling):
    card = CARD

    def latent_encoder(self, device: torch.device) -> LatentEncoder:
        return Shrinking()

    def text_encoder(self, device: torch.device) -> TextEncoder:
        return CountedLetters()

    def latent_decoder(self, device: torch.device) -> LatentDecoder:
        return Shrinking()

    def training_dtype(self, precision: str) -> torch.dtype:
        return torch.float32

    def generating_dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32

    def transformer(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            model = DotsTransformer()
        loading, merge = self.settings.loading, lora_merge(self.settings.loras, CARD)
        loaded: nn.Module = load_frozen(model, open_weights(self.weight_file(), ()), loading, merge, CARD, device, dtype)
        return loaded

    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        return (noisy, timesteps, batch["letters"]), {}

    def fitted(self, request: SampleRequest) -> SampleRequest:
        return request

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, ...]:
        return CARD.latent_channels, (frames - 1) // CARD.frame_stride + 1, height // 8, width // 8

    def sampler(self, request: SampleRequest) -> Sampler:
        return wan_sampler(request.sampler, request.steps, request.flow_shift)


ADAPTER = Dots()
