"""The HunyuanVideo transformer, in the module layout of its weight files (github.com/Tencent-Hunyuan/HunyuanVideo).

Queries, keys and values come from one linear, and in single blocks the feed-forward's hidden layer too: a LoRA has one pair
of factors for all of them, as in musubi-tuner's files.
"""

from __future__ import annotations

from collections.abc import Collection

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
from ...layers.rope import Tables, grid_positions, rope_tables
from ...layers.timestep import sinusoids
from .geometry import HunyuanGeometry

__all__ = ["HunyuanGeometry", "HunyuanTransformer"]

FREQUENCIES = 256
ROPE_THETA = 256.0


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = activation
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class MMDoubleStreamBlock(DoubleStreamBlock):
    def __init__(self, geometry: HunyuanGeometry) -> None:
        dim, head_dim = geometry.dim, geometry.dim // geometry.num_heads
        super().__init__(geometry.num_heads)
        self.img_mod = Modulation(dim, 6)
        self.img_attn_qkv = Linear(dim, 3 * dim)
        self.img_attn_q_norm = RMSNorm(head_dim, EPS)
        self.img_attn_k_norm = RMSNorm(head_dim, EPS)
        self.img_attn_proj = Linear(dim, dim)
        self.img_mlp = Mlp(dim, geometry.mlp_dim, nn.GELU(approximate="tanh"))
        self.txt_mod = Modulation(dim, 6)
        self.txt_attn_qkv = Linear(dim, 3 * dim)
        self.txt_attn_q_norm = RMSNorm(head_dim, EPS)
        self.txt_attn_k_norm = RMSNorm(head_dim, EPS)
        self.txt_attn_proj = Linear(dim, dim)
        self.txt_mlp = Mlp(dim, geometry.mlp_dim, nn.GELU(approximate="tanh"))

    def streams(self) -> tuple[Stream, Stream]:
        return (
            Stream(self.img_mod, (self.img_attn_qkv,), self.img_attn_q_norm, self.img_attn_k_norm, self.img_attn_proj, self.img_mlp),
            Stream(self.txt_mod, (self.txt_attn_qkv,), self.txt_attn_q_norm, self.txt_attn_k_norm, self.txt_attn_proj, self.txt_mlp),
        )


class MMSingleStreamBlock(SingleStreamBlock):
    def __init__(self, geometry: HunyuanGeometry) -> None:
        dim, head_dim = geometry.dim, geometry.dim // geometry.num_heads
        super().__init__(geometry.num_heads)
        self.linear1 = Linear(dim, 3 * dim + geometry.mlp_dim)
        self.linear2 = Linear(dim + geometry.mlp_dim, dim)
        self.q_norm = RMSNorm(head_dim, EPS)
        self.k_norm = RMSNorm(head_dim, EPS)
        self.modulation = Modulation(dim, 3)

    def layers(self) -> tuple[Modulation, tuple[Linear, ...], RMSNorm, RMSNorm, Linear]:
        return self.modulation, (self.linear1,), self.q_norm, self.k_norm, self.linear2


class TimeEmbedding(nn.Module):
    """A number as a vector of the model's width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, dim), nn.SiLU(), Linear(dim, dim))

    def forward(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] -> [B, C] in `dtype`, which is the weights'"""
        vectors: Tensor = self.mlp(sinusoids(numbers, FREQUENCIES, torch.float32).to(dtype))
        return vectors


class TwoLinears(nn.Module):
    """Two linears with a SiLU between them, under the names the weight files give them."""

    def __init__(self, width: int, dim: int, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], Linear(width, dim))
        self.add_module(names[1], Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        out: Tensor = second(F.silu(first(x)))
        return out


class IndividualTokenRefinerBlock(RefinerBlock):
    def __init__(self, geometry: HunyuanGeometry) -> None:
        dim = geometry.dim
        super().__init__(dim, geometry.num_heads)
        self.self_attn_qkv = Linear(dim, 3 * dim)
        self.self_attn_proj = Linear(dim, dim)
        self.mlp = Mlp(dim, geometry.mlp_dim, nn.SiLU())
        self.adaLN_modulation = nn.Sequential(nn.Identity(), Linear(dim, 2 * dim))

    def layers(self) -> tuple[Linear, tuple[Linear, ...], Linear, nn.Module]:
        return self.adaLN_modulation[1], (self.self_attn_qkv,), self.self_attn_proj, self.mlp  # type: ignore[return-value]


class TokenRefiner(nn.Module):
    """Language model outputs -> text tokens of the transformer, aware of the time."""

    def __init__(self, geometry: HunyuanGeometry) -> None:
        super().__init__()
        dim = geometry.dim
        self.input_embedder = Linear(geometry.text_dim, dim)
        self.t_embedder = TimeEmbedding(dim)
        self.c_embedder = TwoLinears(geometry.text_dim, dim, ("linear_1", "linear_2"))
        self.individual_token_refiner = nn.Module()
        self.individual_token_refiner.blocks = nn.ModuleList(
            IndividualTokenRefinerBlock(geometry) for _ in range(geometry.num_refiner_layers)
        )

    def forward(self, text: Tensor, lengths: tuple[int, ...], timesteps: Tensor) -> Tensor:
        """text [B, L, text_dim]; timesteps [B] -> [B, L, C]"""
        condition = F.silu(self.t_embedder(timesteps, text.dtype) + self.c_embedder(masked_mean(text, lengths)))
        padding = padding_of(lengths, text.dtype, text.device)
        x: Tensor = self.input_embedder(text)
        for block in self.individual_token_refiner.blocks:  # type: ignore[union-attr]
            x = block(x, condition, padding)
        return x


class FinalLayer(nn.Module):
    def __init__(self, geometry: HunyuanGeometry) -> None:
        super().__init__()
        self.linear = Linear(geometry.dim, geometry.out_dim * 4)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), Linear(geometry.dim, 2 * geometry.dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, S, C]; condition [B, C] after its SiLU -> [B, S, out * patch]"""
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        out: Tensor = self.linear(modulated_norm(x, 1 + scale, shift, EPS))
        return out


class HunyuanTransformer(JointTransformer):
    """Predicts the velocity of noisy latents. Built without initial values: load weights, or fill the parameters."""

    def __init__(self, geometry: HunyuanGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        dim = geometry.dim
        self.img_in = PatchEmbedding(geometry.in_dim, dim)
        self.txt_in = TokenRefiner(geometry)
        self.time_in = TimeEmbedding(dim)
        self.vector_in = TwoLinears(geometry.pooled_dim, dim, ("in_layer", "out_layer"))
        self.guidance_in = TimeEmbedding(dim) if geometry.guidance else None
        self.double_blocks = nn.ModuleList(MMDoubleStreamBlock(geometry) for _ in range(geometry.num_double_layers))
        self.single_blocks = nn.ModuleList(MMSingleStreamBlock(geometry) for _ in range(geometry.num_single_layers))
        self.final_layer = FinalLayer(geometry)

    def block_lists(self) -> list[nn.ModuleList]:
        return [self.double_blocks, self.single_blocks]

    def prepared(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        guidance: Tensor | None = None,
        extra_channels: Tensor | None = None,
        skip_blocks: Collection[int] = (),
    ) -> Prepared:
        """Towards the velocity [B, out, F, H, W] in float32.

        latents [B, 16, F, H, W]; timesteps [B], 0..1000; text [B, L, text_dim] with text_mask [B, L], tokens before padding;
        pooled [B, pooled_dim]; guidance [B], embedded guidance, times 1000; extra_channels [B, in_dim - 16, F, H, W].
        skip_blocks: blocks left out, double blocks counted first.
        """
        dtype, device = self.img_in.proj.weight.dtype, self.img_in.proj.weight.device
        latents = latents.to(device, dtype)
        if extra_channels is not None:
            latents = torch.cat([latents, extra_channels.to(device, dtype)], dim=1)
        grid = (latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2)
        video = embed_patches(latents, self.img_in.proj)
        timesteps = timesteps.to(device, non_blocking=True)
        condition = self._condition(timesteps, pooled.to(device, dtype), guidance)

        text, lengths = trimmed(text.to(device, dtype), text_mask)
        tokens = self.txt_in(text, lengths, timesteps)
        count = video.shape[1]
        shared = Shared(
            condition,
            with_text(self._rope(grid, dtype, device), tokens.shape[1]),
            count,
            padding_of([count + length for length in lengths], dtype, device),
        )

        def finish(x: Tensor) -> Tensor:
            return from_patches(self.final_layer(x[:, :count], condition), *grid).float()

        return Prepared(self.blocks_but(skip_blocks), torch.cat([video, tokens], dim=1), (shared,), finish)

    def _condition(self, timesteps: Tensor, pooled: Tensor, guidance: Tensor | None) -> Tensor:
        vector = self.time_in(timesteps, pooled.dtype) + self.vector_in(pooled)
        if self.guidance_in is not None:
            if guidance is None:
                raise ValueError("this model is guidance-distilled: it needs the embedded guidance")
            vector = vector + self.guidance_in(guidance.to(vector.device), pooled.dtype)
        return F.silu(vector)

    def _rope(self, grid: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tables:
        cos, sin = rope_tables(grid_positions(*grid), self.geometry.rope_widths, device, dtype, ROPE_THETA)
        return cos[None], sin[None]
