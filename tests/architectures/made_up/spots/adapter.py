"""Spots answers the architecture protocol for images: latents [C, H, W], one or two text encoders, control images when it edits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...dataset.decoding import DecodedEntry
from ...dataset.items import MediaItem
from ...errors import UserError
from ...inference.samplers import wan_sampler
from ...inference.usual import UsualSampling
from ...layers.blocks import run_block
from ...layers.linear import Linear
from ...weights.loader import open_weights
from ..card import Task
from ..loading import load_frozen, lora_merge
from ..protocol import ConditionEncoder, LatentDecoder, LatentEncoder, TextEncoder
from ..request import SampleRequest
from ..sampler import Sampler
from .card import CARD
from .settings import SpotsSettings

if TYPE_CHECKING:
    from ..protocol import Batch, Inputs

DIM, LETTERS, WORDS = 16, 26, 8


def shrunk(pixels: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> [3, H/8, W/8]."""
    return F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1) / 127.5 - 1.0, 8)


def control_name(index: int) -> str:
    return f"latents_control_{index}"


class Shrinking:
    """Stands where other architectures have a VAE. edits: control images are encoded too."""

    def __init__(self, edits: bool = False) -> None:
        self.edits = edits

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        controls = [{control_name(n): shrunk(control[0]) for n, control in enumerate(entry.controls) if self.edits} for entry in batch]
        return [[{"latents": shrunk(entry.pixels[0]), **found}] for entry, found in zip(batch, controls, strict=True)]

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[None].float(), scale_factor=8)[0].add(1).div(2).clamp(0, 1).cpu()[:, None]


class Controls:
    """The control images of a request, as they are cached."""

    def encode(self, request: SampleRequest) -> dict[str, Tensor]:
        opened = [Image.open(path).convert("RGB").resize((request.width, request.height)) for path in request.images.controls]
        return {control_name(index): shrunk(np.asarray(image)) for index, image in enumerate(opened)}


class Counting:
    """What counts letters and, for editing, words too."""

    def __init__(self, weights: Sequence[str]) -> None:
        self.scales = [open_weights(path).read(name) for path, name in zip(weights, ("letters", "words"), strict=False)]

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        return [dict(zip(("letters", "words"), self._counted(caption.lower()), strict=False)) for caption in captions]

    def _counted(self, caption: str) -> list[Tensor]:
        letters = [float(caption.count(chr(97 + letter))) for letter in range(LETTERS)]
        words = [float(sum(len(word) == length for word in caption.split())) for length in range(WORDS)]
        return [torch.tensor(counts) * scale for counts, scale in zip((letters, words), self.scales, strict=False)]

    def cut(self, captions: Sequence[str]) -> list[str]:
        return [""] * len(captions)


class SpotsBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.ModuleDict({"proj_in": Linear(DIM, 2 * DIM), "proj_out": Linear(2 * DIM, DIM)})

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.ff["proj_in"](x)
        changed: Tensor = self.ff["proj_out"](F.silu(wide))
        return x + changed


class SpotsTransformer(nn.Module):
    def __init__(self, edits: bool) -> None:
        super().__init__()
        self.spots, self.letters = Linear(3, DIM), Linear(LETTERS, DIM)
        if edits:
            self.control, self.words = Linear(3, DIM), Linear(WORDS, DIM)
        self.blocks = nn.ModuleList(SpotsBlock() for _ in range(2))
        self.final = nn.ModuleDict({"proj": Linear(DIM, 3)})
        self.gradient_checkpointing = False
        self.gradient_checkpointing_cpu_offload = False

    def block_lists(self) -> list[nn.ModuleList]:
        return [self.blocks]

    def set_attention(self, mode: str, split: bool = False) -> None:
        """Spots do not look at each other."""

    def forward(self, noisy: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        x = self.spots(noisy.movedim(1, -1)) + self.letters(batch["letters"])[:, None, None]
        if "words" in batch:
            x = x + self.words(batch["words"])[:, None, None] + self.control(batch[control_name(0)].movedim(1, -1))
        for block in self.blocks:
            x = run_block(block, x, recompute=self.gradient_checkpointing)
        velocity: Tensor = self.final["proj"](x).movedim(-1, 1)
        return velocity


class Spots(UsualSampling):
    card = CARD
    settings: SpotsSettings = SpotsSettings()

    def unusable(self, item: MediaItem) -> str | None:
        return None if item.controls or not self.edits else "it has no control image"

    def cached_names(self, item: MediaItem) -> Collection[str]:
        return ("latents", *((control_name(0),) if self.edits else ()))

    def cache_forms(self):  # type: ignore[no-untyped-def]  # as the protocol has it
        forms = super().cache_forms()
        if self.edits:
            forms.latents[control_name(0)] = forms.latents["latents"]  # type: ignore[index]
        return forms

    @property
    def edits(self) -> bool:
        return self.settings.model_version == "edit"

    @property
    def task(self) -> Task:
        return CARD.task(self.settings.model_version)

    def latent_encoder(self, device: torch.device) -> LatentEncoder:
        return Shrinking(self.edits)

    def text_encoder(self, device: torch.device) -> TextEncoder:
        return Counting([path for path in (self.settings.alphabet, self.settings.dictionary if self.edits else None) if path])

    def condition_encoder(self, device: torch.device) -> ConditionEncoder | None:
        return Controls() if self.edits else None

    def latent_decoder(self, device: torch.device) -> LatentDecoder:
        return Shrinking()

    def training_dtype(self, precision: str) -> torch.dtype:
        return torch.float32

    def generating_dtype(self, device: torch.device) -> torch.dtype:
        return torch.float32

    def transformer(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            model = SpotsTransformer(self.edits)
        loading, merge = self.settings.loading, lora_merge(self.settings.loras, CARD)
        loaded: nn.Module = load_frozen(model, open_weights(self.weight_file(), ()), loading, merge, self.card, device, dtype)
        return loaded

    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        return (noisy, batch), {}

    def fitted(self, request: SampleRequest) -> SampleRequest:
        controls = request.images.controls or self.settings.control_image_path or ()
        if self.edits and not controls:
            raise UserError("Spots that edit need --control_image_path")
        return replace(request, images=replace(request.images, controls=controls))

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, ...]:
        return CARD.latent_channels, height // 8, width // 8

    def sampler(self, request: SampleRequest) -> Sampler:
        return wan_sampler(request.sampler, request.steps, request.flow_shift)


ADAPTER = Spots()
