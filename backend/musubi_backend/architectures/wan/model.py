"""The Wan2.1 video transformer (arXiv 2503.20314) for LoRA training, in the original key layout (`blocks.0.self_attn.q.weight`).

Compared with the published code: no float64 or float32 copies of the token stream, modulation folded into the layer norms,
LoRAs folded into the linears (`layers.linear`), and the text padding replaced by a few weighted keys (`collapse_padding`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...layers.attention import KEY_ALIGNMENT, attention, repeated_key_biases
from ...layers.blocks import Checkpointed, Prepared
from ...layers.linear import Linear
from ...layers.norms import LayerNorm, RMSNorm, gated_residual
from ...layers.rope import Tables, apply_rope, even_widths, grid_positions, rope_tables
from ...layers.timestep import sinusoids
from .geometry import WanGeometry

__all__ = ["WanGeometry", "WanTransformer"]

PATCH = (1, 2, 2)
_PATCH_VOLUME = 4
IMAGE_TOKENS = 257
"""Tokens of one image: CLIP ViT-H/14 at 224 pixels has 16 x 16 patches and a class token."""


class WanSelfAttention(nn.Module):
    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__()
        dim = geometry.dim
        self.num_heads = geometry.num_heads
        self.mode = "torch"
        self.split = False
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, geometry.eps)
        self.norm_k = RMSNorm(dim, geometry.eps)

    def heads(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, heads, C / heads]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return result

    def forward(self, x: Tensor, rope: Tables) -> Tensor:
        q = apply_rope(self.heads(self.norm_q(self.q(x))), rope)
        k = apply_rope(self.heads(self.norm_k(self.k(x))), rope)
        result: Tensor = self.o(attention(q, k, self.heads(self.v(x)), self.mode, split=self.split))
        return result


class Context(NamedTuple):
    """What the video attends to. text [B, K, C], image [B, N, C] or None; biases [B, 1, 1, K or N], None where they are zero."""

    text: Tensor
    text_bias: Tensor | None
    image: Tensor | None = None
    image_bias: Tensor | None = None


class WanCrossAttention(WanSelfAttention):
    """Attention to the text and, where the model has it, to image tokens with keys and values of their own."""

    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__(geometry)
        if geometry.image_dim is not None:
            self.k_img = Linear(geometry.dim, geometry.dim)
            self.v_img = Linear(geometry.dim, geometry.dim)
            self.norm_k_img = RMSNorm(geometry.dim, geometry.eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        q = self.heads(self.norm_q(self.q(x)))
        k = self.heads(self.norm_k(self.k(context.text)))
        out = attention(q, k, self.heads(self.v(context.text)), self.mode, context.text_bias, self.split)
        if context.image is not None:
            k = self.heads(self.norm_k_img(self.k_img(context.image)))
            out = out + attention(q, k, self.heads(self.v_img(context.image)), self.mode, context.image_bias, self.split, number=1)
        result: Tensor = self.o(out)
        return result


class WanAttentionBlock(nn.Module):
    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__()
        dim, eps = geometry.dim, geometry.eps
        self.norm1 = LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = WanSelfAttention(geometry)
        self.norm3 = LayerNorm(dim, eps)
        self.cross_attn = WanCrossAttention(geometry)
        self.norm2 = LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(Linear(dim, geometry.ffn_dim), nn.GELU(approximate="tanh"), Linear(geometry.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(self, x: Tensor, condition: Tensor, rope: Tables, context: Context) -> Tensor:
        """x [B, S, C]; condition [B, T, 6, C] float32 with T = 1, or S where every token has its own time."""
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(self.modulation, condition, x.dtype)
        x = gated_residual(x, self.self_attn(self.norm1.modulated(x, scale1, shift1), rope), gate1)
        x = x + self.cross_attn(self.norm3(x), context)
        return gated_residual(x, self.ffn(self.norm2.modulated(x, scale2, shift2)), gate2)


class Head(nn.Module):
    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__()
        self.norm = LayerNorm(geometry.dim, geometry.eps, elementwise_affine=False)
        self.head = Linear(geometry.dim, geometry.out_dim * _PATCH_VOLUME)
        self.modulation = nn.Parameter(torch.empty(1, 2, geometry.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, S, C]; time [B, T, C] float32 -> [B, S, out * patch]"""
        shift, scale = _modulation(self.modulation, time.unsqueeze(2), x.dtype)
        result: Tensor = self.head(self.norm.modulated(x, scale, shift))
        return result


class TimeLinear(nn.Linear):
    """A linear on the few rows of the time embedding, in float32 whatever its weights are, a slice of them at a time."""

    def forward(self, x: Tensor) -> Tensor:
        rows = zip(self.weight.split(self.in_features), self.bias.split(self.in_features), strict=True)
        return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in rows], dim=-1)


class ImageEmbedding(nn.Module):
    """CLIP image features -> tokens of the transformer's width. Models of a first and a last frame tell the two images apart by learned
    positions."""

    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__()
        width = geometry.image_dim or 0
        dim = geometry.dim
        if geometry.image_positions:
            self.emb_pos = nn.Parameter(torch.empty(1, geometry.image_positions, width))
        self.proj = nn.Sequential(nn.LayerNorm(width), Linear(width, width), nn.GELU(), Linear(width, dim), nn.LayerNorm(dim))

    def forward(self, features: Tensor) -> Tensor:
        positions: Tensor | None = getattr(self, "emb_pos", None)
        if positions is not None:
            if features.shape[1] != positions.shape[1]:
                raise UserError(
                    f"this model takes a first and a last frame ({positions.shape[1]} image tokens) and was given {features.shape[1]}; "
                    "for training, cache again with wan_cache_latents --last_frame"
                )
            features = features + positions
        tokens: Tensor = self.proj(features)
        return tokens


class WanTransformer(Checkpointed):
    """Predicts the velocity of noisy latents. Built without initial values: load weights, or fill the parameters."""

    def __init__(self, geometry: WanGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        dim = geometry.dim
        self.patch_embedding = nn.Conv3d(geometry.in_dim, dim, PATCH, PATCH)
        self.text_embedding = nn.Sequential(Linear(geometry.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(TimeLinear(geometry.freq_dim, dim), nn.SiLU(), TimeLinear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), TimeLinear(dim, dim * 6))
        self.blocks = nn.ModuleList(WanAttentionBlock(geometry) for _ in range(geometry.num_layers))
        self.head = Head(geometry)
        if geometry.image_dim is not None:
            self.img_emb = ImageEmbedding(geometry)

    def block_lists(self) -> list[nn.ModuleList]:
        """The repeated blocks, for checkpointing, streaming and compilation."""
        return [self.blocks]

    def set_attention(self, mode: str, split: bool = False) -> None:
        """Choose the attention kernel (`layers.attention.MODES`) and whether samples run one at a time."""
        for module in self.modules():
            if isinstance(module, WanSelfAttention):
                module.mode, module.split = mode, split

    def prepared(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Sequence[Tensor],
        extra_channels: Tensor | None = None,
        image: Tensor | None = None,
        frame_indices: Sequence[int] | None = None,
        skip_blocks: Collection[int] = (),
    ) -> Prepared:
        """Towards the velocity [B, out, F, H, W] in float32.

        latents [B, 16, F, H, W]; timesteps [B], 0..1000; text: per sample [L, text_dim] without padding.
        extra_channels [B, in_dim - 16, F, H, W]: control or first-frame channels. image [B, tokens, image_dim]: CLIP features, of two
        images one behind the other; None for a model that has them makes the text stand in (`_context`).
        frame_indices: positions in time of the latent frames. skip_blocks: blocks left out (skip layer guidance).
        """
        weight = self.patch_embedding.weight
        dtype, device = weight.dtype, weight.device
        latents = latents.to(device, dtype)
        if extra_channels is not None:
            latents = torch.cat([latents, extra_channels.to(device, dtype)], dim=1)
        grid = (latents.shape[2], latents.shape[3] // PATCH[1], latents.shape[4] // PATCH[2])
        x = self._patches(latents, grid)
        time, condition = self._time(timesteps.to(device, non_blocking=True))
        context = self._context(text, image, dtype, device)
        rope = rope_tables(grid_positions(*grid, frame_indices), even_widths(self.geometry.dim // self.geometry.num_heads), x.device, dtype)

        def finish(x: Tensor) -> Tensor:
            return self._unpatch(self.head(x, time), grid).float()

        run = [block for index, block in enumerate(self.blocks) if index not in skip_blocks]
        return Prepared(run, x, (condition, rope, context), finish)

    def _context(self, text: Sequence[Tensor], image: Tensor | None, dtype: torch.dtype, device: torch.device) -> Context:
        """Text and image tokens of the transformer's width.

        A Fun-Control model without a start image has the layers for image tokens but no image: then the first 257 rows of the padded
        text take that place, as in musubi-tuner, whose LoRAs and ours must mean the same.
        """
        length = self.geometry.text_len
        if self.geometry.image_dim is None or image is not None:
            tokens, bias = collapse_padding(text, length, dtype, device)
            embedded = None if image is None else self.img_emb(image.to(device, dtype))
            return Context(self.text_embedding(tokens), bias, embedded)
        taken = min(IMAGE_TOKENS, length)
        first, first_bias = collapse_padding([one[:taken] for one in text], taken, dtype, device)
        rest, rest_bias = collapse_padding([one[taken:] for one in text], length - taken, dtype, device)
        return Context(self.text_embedding(rest), rest_bias, self.text_embedding(first), first_bias)

    def _patches(self, latents: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, C, F, H, W] -> [B, F*H*W/4, dim]; the convolution's stride is its kernel, so it is one matrix product."""
        b, c = latents.shape[:2]
        f, h, w = grid
        patches = latents.view(b, c, f, h, 2, w, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, f * h * w, c * _PATCH_VOLUME)
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _unpatch(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        f, h, w = grid
        x = x.view(x.shape[0], f, h, w, 2, 2, self.geometry.out_dim)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], self.geometry.out_dim, f, h * 2, w * 2)

    def _time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(time [B, T, C], condition [B, T, 6, C]) in float32, from timesteps [B] or [B, T]."""
        if timesteps.ndim == 1:
            timesteps = timesteps.unsqueeze(1)
        time = self.time_embedding(sinusoids(timesteps, self.geometry.freq_dim))
        return time, self.time_projection(time).unflatten(-1, (6, -1))


def collapse_padding(text: Sequence[Tensor], length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Text embeddings [L_i, D] -> (tokens [B, K, D], bias [B, 1, 1, K] or None).

    Wan attends to text padded with zeros to `length`, without a mask. Those rows are all equal, so a few of them with the
    biases of `repeated_key_biases` give the same attention and the same gradients. Rows that only fill up a batch or the
    kernel's alignment get a bias of -inf.
    """
    lengths = [len(embedding) for embedding in text]
    if max(lengths) > length:
        raise UserError(f"a caption has {max(lengths)} text tokens; the model takes {length}. Cache the text encoder outputs again.")
    biases = [repeated_key_biases(length - n, dtype) for n in lengths]
    width = max(n + len(extra) for n, extra in zip(lengths, biases, strict=True))
    width = min(length, -(-width // KEY_ALIGNMENT) * KEY_ALIGNMENT) if width < length else width
    tokens = torch.zeros(len(text), width, text[0].shape[-1], dtype=dtype, device=device)
    rows = [[0.0] * n + list(extra) + [float("-inf")] * (width - n - len(extra)) for n, extra in zip(lengths, biases, strict=True)]
    for row, embedding in zip(tokens, text, strict=True):
        row[: len(embedding)] = embedding
    if not any(any(row) for row in rows):
        return tokens, None
    return tokens, torch.tensor(rows, dtype=dtype).to(device, non_blocking=True)[:, None, None, :]


def _modulation(table: Tensor, condition: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """table [1, n, C] + condition [B, T, 1 or n, C] -> n tensors [B, T, C]; each second of three (or two) is a scale and gets 1
    added in float32 before the rounding to `dtype`."""
    parts = table.float().unsqueeze(1) + condition
    parts[:, :, 1::3] += 1
    return parts.to(dtype).unbind(2)
