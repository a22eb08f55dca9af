"""The FramePack transformer, in the module layout of its weight files (github.com/lllyasviel/FramePack).

It is HunyuanVideo's transformer with separate linears for queries, keys and values, which also sees images through SigLIP
and a history of clean latents: frames next to the video as they are, older ones in patches of twice and four times the size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import Prepared
from ...layers.linear import Linear
from ...layers.mmdit import (
    EPS,
    DoubleStreamBlock,
    JointTransformer,
    Modulation,
    PatchEmbedding,
    RefinerBlock,
    Shared,
    SingleStreamBlock,
    Stream,
    embed_patches,
    from_patches,
    masked_mean,
    padding_of,
    trimmed,
    with_text,
)
from ...layers.norms import RMSNorm, modulated_norm
from ...layers.rope import Tables, rope_tables
from ...layers.timestep import sinusoids
from .geometry import FramePackGeometry

__all__ = ["Clean", "FramePackGeometry", "FramePackTransformer"]

FREQUENCIES = 256
ROPE_THETA = 256.0


class Clean(NamedTuple):
    """Finished latents that the video is made to follow: latents [B, 16, T, H, W], and their positions in time [B, T]."""

    latents: Tensor
    indices: Tensor


class Projection(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(Projection(dim, hidden), activation, Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Attention(nn.Module):
    """The linears and norms of an attention; what runs them is the block. head_dim None: queries and keys have no norms."""

    def __init__(self, dim: int, head_dim: int | None, added: bool = False, output: bool = True) -> None:
        super().__init__()
        self.to_q = Linear(dim, dim)
        self.to_k = Linear(dim, dim)
        self.to_v = Linear(dim, dim)
        if head_dim is not None:
            self.norm_q = RMSNorm(head_dim, EPS)
            self.norm_k = RMSNorm(head_dim, EPS)
        if added:
            self.add_k_proj = Linear(dim, dim)
            self.add_v_proj = Linear(dim, dim)
            self.add_q_proj = Linear(dim, dim)
        if output:
            self.to_out = nn.ModuleList([Linear(dim, dim)])
        if added and head_dim is not None:
            self.to_add_out = Linear(dim, dim)
            self.norm_added_q = RMSNorm(head_dim, EPS)
            self.norm_added_k = RMSNorm(head_dim, EPS)


class HunyuanVideoTransformerBlock(DoubleStreamBlock):
    def __init__(self, geometry: FramePackGeometry) -> None:
        dim = geometry.dim
        super().__init__(geometry.num_heads)
        self.norm1 = Modulation(dim, 6)
        self.norm1_context = Modulation(dim, 6)
        self.attn = Attention(dim, dim // geometry.num_heads, added=True)
        self.ff = FeedForward(dim, geometry.mlp_dim, nn.GELU(approximate="tanh"))
        self.ff_context = FeedForward(dim, geometry.mlp_dim, nn.GELU(approximate="tanh"))

    def streams(self) -> tuple[Stream, Stream]:
        attn = self.attn
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        return (
            Stream(self.norm1, (attn.to_q, attn.to_k, attn.to_v), attn.norm_q, attn.norm_k, attn.to_out[0], self.ff),  # type: ignore[arg-type]
            Stream(self.norm1_context, added, attn.norm_added_q, attn.norm_added_k, attn.to_add_out, self.ff_context),
        )


class HunyuanVideoSingleTransformerBlock(SingleStreamBlock):
    def __init__(self, geometry: FramePackGeometry) -> None:
        dim = geometry.dim
        super().__init__(geometry.num_heads)
        self.attn = Attention(dim, dim // geometry.num_heads, output=False)
        self.norm = Modulation(dim, 3)
        self.proj_mlp = Linear(dim, geometry.mlp_dim)
        self.proj_out = Linear(dim + geometry.mlp_dim, dim)

    def layers(self) -> tuple[Modulation, tuple[Linear, ...], RMSNorm, RMSNorm, Linear]:
        attn = self.attn
        return self.norm, (attn.to_q, attn.to_k, attn.to_v, self.proj_mlp), attn.norm_q, attn.norm_k, self.proj_out


class TwoLinears(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class Embeddings(nn.Module):
    """Time, text and where there is one the guidance as one vector of the model's width."""

    def __init__(self, text_dim: int, dim: int, guidance: bool = False) -> None:
        super().__init__()
        self.timestep_embedder = TwoLinears(FREQUENCIES, dim)
        self.guidance_embedder = TwoLinears(FREQUENCIES, dim) if guidance else None
        self.text_embedder = TwoLinears(text_dim, dim)

    def forward(self, timesteps: Tensor, text: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timesteps, guidance [B]; text [B, text_dim] -> [B, C]"""
        vector: Tensor = self.timestep_embedder(sinusoids(timesteps, FREQUENCIES, torch.float32).to(text.dtype))
        if self.guidance_embedder is not None and guidance is not None:
            vector = vector + self.guidance_embedder(sinusoids(guidance, FREQUENCIES, torch.float32).to(text.dtype))
        vector = vector + self.text_embedder(text)
        return vector


class RefinerAdaNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, 2 * dim)


class HunyuanVideoIndividualTokenRefinerBlock(RefinerBlock):
    def __init__(self, geometry: FramePackGeometry) -> None:
        dim = geometry.dim
        super().__init__(dim, geometry.num_heads)
        self.attn = Attention(dim, None)
        self.ff = FeedForward(dim, geometry.mlp_dim, nn.SiLU())
        self.norm_out = RefinerAdaNorm(dim)

    def layers(self) -> tuple[Linear, tuple[Linear, ...], Linear, nn.Module]:
        attn = self.attn
        return self.norm_out.linear, (attn.to_q, attn.to_k, attn.to_v), attn.to_out[0], self.ff  # type: ignore[return-value]


class TokenRefiner(nn.Module):
    """Language model outputs -> text tokens of the transformer, aware of the time."""

    def __init__(self, geometry: FramePackGeometry) -> None:
        super().__init__()
        self.time_text_embed = Embeddings(geometry.text_dim, geometry.dim)
        self.proj_in = Linear(geometry.text_dim, geometry.dim)
        self.token_refiner = nn.Module()
        self.token_refiner.refiner_blocks = nn.ModuleList(
            HunyuanVideoIndividualTokenRefinerBlock(geometry) for _ in range(geometry.num_refiner_layers)
        )

    def forward(self, text: Tensor, lengths: tuple[int, ...], timesteps: Tensor) -> Tensor:
        """text [B, L, text_dim]; timesteps [B] -> [B, L, C]"""
        condition = F.silu(self.time_text_embed(timesteps, masked_mean(text, lengths)))
        padding = padding_of(lengths, text.dtype, text.device)
        x: Tensor = self.proj_in(text)
        for block in self.token_refiner.refiner_blocks:  # type: ignore[union-attr]
            x = block(x, condition, padding)
        return x


class ImageProjection(nn.Module):
    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.up = Linear(image_dim, 3 * dim)
        self.down = Linear(3 * dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """[B, N, image_dim] -> [B, N, C]"""
        tokens: Tensor = self.down(F.silu(self.up(features)))
        return tokens


class CleanEmbedding(PatchEmbedding):
    """Patches of the history: as the video's, and of 2 and 4 times their size along every axis."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels, dim)
        self.proj_2x = nn.Conv3d(channels, dim, (2, 4, 4), (2, 4, 4))
        self.proj_4x = nn.Conv3d(channels, dim, (4, 8, 8), (4, 8, 8))


class OutputModulation(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, 2 * dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(condition).unsqueeze(1).chunk(2, dim=-1)
        return modulated_norm(x, 1 + scale, shift, EPS)


class FramePackTransformer(JointTransformer):
    """Predicts the velocity of one section. Built without initial values: load weights, or fill the parameters.

    rope_scaling: (timestep, factor): from that timestep up, positions along height and width are multiplied by the factor, which
    keeps the layout of images larger than those of the training together.
    """

    def __init__(self, geometry: FramePackGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        dim = geometry.dim
        self.x_embedder = PatchEmbedding(geometry.in_dim, dim)
        self.context_embedder = TokenRefiner(geometry)
        self.time_text_embed = Embeddings(geometry.pooled_dim, dim, guidance=True)
        self.transformer_blocks = nn.ModuleList(HunyuanVideoTransformerBlock(geometry) for _ in range(geometry.num_double_layers))
        self.single_transformer_blocks = nn.ModuleList(
            HunyuanVideoSingleTransformerBlock(geometry) for _ in range(geometry.num_single_layers)
        )
        self.norm_out = OutputModulation(dim)
        self.proj_out = Linear(dim, geometry.out_dim * 4)
        self.image_projection = ImageProjection(geometry.image_dim, dim)
        self.clean_x_embedder = CleanEmbedding(geometry.in_dim, dim)
        self.rope_scaling: tuple[float, float] | None = None

    def block_lists(self) -> list[nn.ModuleList]:
        return [self.transformer_blocks, self.single_transformer_blocks]

    def prepared(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        guidance: Tensor,
        image: Tensor | None = None,
        latent_indices: Tensor | None = None,
        clean: Clean | None = None,
        clean_2x: Clean | None = None,
        clean_4x: Clean | None = None,
        skip_blocks: Collection[int] = (),
    ) -> Prepared:
        """Towards the velocity [B, out, F, H, W] in float32.

        latents [B, 16, F, H, W] at the times latent_indices [B, F] (None: 0, 1, ...); timesteps [B], 0..1000; text [B, L, text_dim] with
        text_mask [B, L], tokens before padding; pooled [B, pooled_dim]; guidance [B], times 1000; image [B, N, image_dim].
        clean, clean_2x, clean_4x: the history, see the module. skip_blocks: blocks left out, double blocks counted first.
        """
        dtype, device = self.x_embedder.proj.weight.dtype, self.x_embedder.proj.weight.device
        frames, height, width = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
        if latent_indices is None:
            latent_indices = torch.arange(frames).expand(len(latents), -1)
        parts = [(clean_4x, self.clean_x_embedder.proj_4x, 4), (clean_2x, self.clean_x_embedder.proj_2x, 2)]
        parts += [(clean, self.clean_x_embedder.proj, 1), (Clean(latents, latent_indices), self.x_embedder.proj, 1)]
        given = [(history, embedding, pool) for history, embedding, pool in parts if history is not None]
        scale = self._side_scale(timesteps)
        video = torch.cat([embed_patches(history.latents.to(device, dtype), embedding) for history, embedding, _ in given], dim=1)
        tables = [self._rope(history.indices, height, width, scale, pool, dtype, device) for history, _, pool in given]
        rope = torch.cat([cos for cos, _ in tables], dim=1), torch.cat([sin for _, sin in tables], dim=1)

        timesteps = timesteps.to(device, non_blocking=True)
        condition = F.silu(self.time_text_embed(timesteps, pooled.to(device, dtype), guidance.to(device)))
        text, lengths = trimmed(text.to(device, dtype), text_mask)
        tokens = self.context_embedder(text, lengths, timesteps)
        if image is not None:
            images = self.image_projection(image.to(device, dtype))
            tokens = torch.cat([images, tokens], dim=1)
            lengths = tuple(length + images.shape[1] for length in lengths)
        count = video.shape[1]
        padding = padding_of([count + length for length in lengths], dtype, device)
        shared = Shared(condition, with_text(rope, tokens.shape[1]), count, padding)

        def finish(x: Tensor) -> Tensor:
            own = x[:, count - frames * height * width : count]
            return from_patches(self._output(self.norm_out(own, condition)), frames, height, width)

        return Prepared(self.blocks_but(skip_blocks), torch.cat([video, tokens], dim=1), (shared,), finish)

    def _output(self, x: Tensor) -> Tensor:
        """The last linear, in float32 whatever its weights are: its rounding would show in the image."""
        return F.linear(x.float(), self.proj_out.weight.float(), self.proj_out.bias.float())

    def _side_scale(self, timesteps: Tensor) -> float:
        if self.rope_scaling is None:
            return 1.0
        threshold, factor = self.rope_scaling
        return factor if bool((timesteps >= threshold).all()) else 1.0

    def _rope(self, indices: Tensor, height: int, width: int, scale: float, pool: int, dtype: torch.dtype, device: torch.device) -> Tables:
        """Tables [B, tokens, 1, head_dim] of frames at `indices` [B, T] in a grid of height x width."""
        sides = tuple(row * scale for row in range(height)), tuple(column * scale for column in range(width))
        rows = [tuple(row) for row in indices.tolist()]
        tables = [rope_tables((row, *sides), self.geometry.rope_widths, device, dtype, ROPE_THETA, pool) for row in rows]
        return torch.stack([cos for cos, _ in tables]), torch.stack([sin for _, sin in tables])
