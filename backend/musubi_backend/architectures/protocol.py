"""What an architecture must answer. The verbs (cache, train, generate) are written once against this protocol."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ..inference.sampling import SampleRequest
    from ..inference.schedulers import Solver
    from .card import Card

    Batch = dict[str, Tensor | list[Tensor]]


class LatentEncoder(Protocol):
    """Turns decoded media into latent cache entries."""

    def encode(self, frames: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
        """frames: one uint8 array [F, H, W, 3] per item, all of one size. Returns per item the tensors to cache under
        their base names, e.g. {"latents": [16, F', H/8, W/8]}; the cache file layer adds shape and dtype to the names."""
        ...


class TextEncoder(Protocol):
    """Turns captions into text cache entries and sampling conditions."""

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Per caption the tensors to cache under their base names, e.g. {"varlen_t5": [L, 4096]} without padding."""
        ...


class Architecture(Protocol):
    """One model family. Every method takes the parsed arguments of the running tool; nothing is kept between calls."""

    card: Card

    def latent_encoder(self, args: Namespace, device: torch.device) -> LatentEncoder: ...

    def text_encoder(self, args: Namespace, device: torch.device) -> TextEncoder: ...

    def compute_dtype(self, args: Namespace) -> torch.dtype:
        """dtype of the frozen transformer's arithmetic, from `--mixed_precision` and the weight file's header.
        Raises UserError where the two do not go together."""
        ...

    def transformer(self, args: Namespace, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The frozen transformer in eval mode. It has `.block_lists() -> list[nn.ModuleList]` for checkpointing, streaming
        and compilation, and `.gradient_checkpointing: bool`."""
        ...

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Cached latents [B, C, F, H, W] -> what the diffusion process runs on."""
        ...

    def predict(
        self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, args: Namespace, skip_blocks: Sequence[int] = ()
    ) -> Tensor:
        """Velocity prediction. noisy [B, C, F, H, W]; timesteps [B] in 1..1000 (musubi-tuner's scale); batch: the cached
        tensors of the items; skip_blocks: blocks left out, for skip-layer guidance. Returns [B, C, F, H, W]."""
        ...

    def solver(self, request: SampleRequest) -> Solver:
        """A fresh sampler for one run, with this architecture's sigmas."""
        ...

    def latent_decoder(self, args: Namespace, device: torch.device) -> LatentDecoder: ...

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        """[C, F', H', W'] of one video; UserError names the nearest valid size where this one does not fit."""
        ...


class LatentDecoder(Protocol):
    """Turns latents back into pictures."""

    def decode(self, latents: Tensor) -> Tensor:
        """latents [C, F', H', W'] -> float video [3, F, H, W] in 0..1, on the CPU."""
        ...
