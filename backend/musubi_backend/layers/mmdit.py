"""Transformers whose video and text tokens attend to each other (MMDiT, arXiv 2403.03206), as HunyuanVideo builds them.

Double blocks have layers of their own for the two kinds of tokens, single blocks treat them alike (arXiv 2302.05442). The
arithmetic is here once; an architecture names the layers, so that parameters are called as in its weight files, and may have
one linear where another has three: `Stream.inputs` and `SingleStreamBlock.layers` take either.

Between blocks there is one sequence, video tokens first. Text is cut to its real length; only where the samples of a batch
differ in length there is padding, which nothing attends to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .attention import KEY_ALIGNMENT, PYTORCH, attention
from .blocks import Checkpointed, Prepared
from .linear import Linear
from .norms import RMSNorm, gated_residual, modulated_norm
from .rope import Tables, apply_rope, apply_rope_beside

EPS = 1e-6
_aten = torch.ops.aten
Runner = Callable[[Tensor], Tensor]


class Padding(NamedTuple):
    """Where the sequences of a batch end: real lengths, and 0 or -inf to add to the scores of each key [B, 1, 1, S]."""

    lengths: tuple[int, ...]
    bias: Tensor


class Shared(NamedTuple):
    """What all blocks of one forward pass get.

    condition  [B, C]: time, guidance and pooled text, after its SiLU
    rope       tables [1 or B, S, 1, head_dim], which leave text tokens as they are
    video      number of video tokens
    padding    None where no sequence is shorter than another
    """

    condition: Tensor
    rope: Tables
    video: int
    padding: Padding | None


class Stream(NamedTuple):
    """The layers that one kind of tokens has in a double block. inputs: one linear to queries, keys and values, or three."""

    modulation: Modulation
    inputs: tuple[Linear, ...]
    norm_q: RMSNorm
    norm_k: RMSNorm
    output: Linear
    feed_forward: nn.Module


class Modulation(nn.Module):
    """Shifts, scales (plus 1) and gates from the condition."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(dim, parts * dim)

    def forward(self, condition: Tensor) -> list[Tensor]:
        """[B, C] -> `parts` tensors [B, 1, C]; of every three a shift, 1 + a scale and a gate."""
        parts = list(self.linear(condition).unsqueeze(1).chunk(self.parts, dim=-1))
        for index in range(1, self.parts, 3):
            parts[index] = parts[index] + 1
        return parts


class JointBlock(nn.Module):
    """What double and single blocks have in common. `mode` and `split` choose the attention."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mode = "torch"
        self.split = False

    def heads(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, S, heads, C / heads]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return result

    def attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Padding | None) -> Tensor:
        return joint_attention(q, k, v, self.mode, self.split, padding)


class DoubleStreamBlock(JointBlock):
    """Video and text each with their own layers; only the attention is common."""

    @abstractmethod
    def streams(self) -> tuple[Stream, Stream]:
        """The layers for video tokens and for text tokens."""

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """x [B, S, C] -> [B, S, C]"""
        n = shared.video
        video, text = self.streams()
        tables = (shared.rope[0][:, :n], shared.rope[1][:, :n])
        video_mods, text_mods = video.modulation(shared.condition), text.modulation(shared.condition)
        q, k, v = self._attention_inputs(video, x[:, :n], video_mods)
        text_q, text_k, text_v = self._attention_inputs(text, x[:, n:], text_mods)
        q, k = apply_rope_beside(q, tables, text_q), apply_rope_beside(k, tables, text_k)
        attended = self.attend(q, k, torch.cat([v, text_v], dim=1), shared.padding)
        # Text first: a recomputed block ends before its last product, which should be the large one.
        text_out = self._rest(text, x[:, n:], attended[:, n:], text_mods)
        video_out = self._rest(video, x[:, :n], attended[:, :n], video_mods)
        return torch.cat([video_out, text_out], dim=1)

    def _attention_inputs(self, stream: Stream, x: Tensor, mods: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        q, k, v = _project(stream.inputs, modulated_norm(x, mods[1], mods[0], EPS), (width, width, width))
        return stream.norm_q(self.heads(q)), stream.norm_k(self.heads(k)), self.heads(v)

    def _rest(self, stream: Stream, x: Tensor, attended: Tensor, mods: Sequence[Tensor]) -> Tensor:
        x = gated_residual(x, stream.output(attended), mods[2])
        return gated_residual(x, stream.feed_forward(modulated_norm(x, mods[4], mods[3], EPS)), mods[5])


class SingleStreamBlock(JointBlock):
    """The same layers for all tokens; attention and feed-forward run side by side on the same input."""

    @abstractmethod
    def layers(self) -> tuple[Modulation, tuple[Linear, ...], RMSNorm, RMSNorm, Linear]:
        """(modulation, one linear to queries, keys, values and hidden or four, norm of queries, of keys, output linear)"""

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """x [B, S, C] -> [B, S, C]"""
        modulation, inputs, norm_q, norm_k, output = self.layers()
        shift, scale, gate = modulation(shared.condition)
        width = x.shape[-1]
        q, k, v, hidden = _project(inputs, modulated_norm(x, scale, shift, EPS), (width, width, width, output.in_features - width))
        q = apply_rope(norm_q(self.heads(q)), shared.rope)
        k = apply_rope(norm_k(self.heads(k)), shared.rope)
        attended = self.attend(q, k, self.heads(v), shared.padding)
        return gated_residual(x, output(beside_gelu(attended, hidden)), gate)


class RefinerBlock(nn.Module):
    """A text-only block before the transformer: self-attention without positions, then a feed-forward, both gated by the
    condition."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.norm2 = nn.LayerNorm(dim, EPS)

    @abstractmethod
    def layers(self) -> tuple[Linear, tuple[Linear, ...], Linear, nn.Module]:
        """(modulation linear, one linear to queries, keys and values or three, output linear, feed-forward)"""

    def forward(self, x: Tensor, condition: Tensor, padding: Padding | None) -> Tensor:
        """x [B, L, C]; condition [B, C] after its SiLU -> [B, L, C]"""
        modulation, inputs, output, feed_forward = self.layers()
        gate1, gate2 = modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        width = x.shape[-1]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in _project(inputs, self.norm1(x), (width, width, width)))
        x = gated_residual(x, output(attention(q, k, v, bias=None if padding is None else padding.bias)), gate1)
        return gated_residual(x, feed_forward(self.norm2(x)), gate2)


class PatchEmbedding(nn.Module):
    """Latents -> tokens, a token for every 2x2 patch of a frame."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, (1, 2, 2), (1, 2, 2))


class JointTransformer(Checkpointed):
    """The frame of these models: an architecture adds the embeddings, names the block lists and the head.

    around_blocks: called as around_blocks(run, x, count) in place of run(x) with all tokens [B, S, C], the first `count` of them of the
    video, so that a cache of features can look at them and leave the blocks out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.around_blocks: Callable[[Runner, Tensor, int], Tensor] | None = None

    @abstractmethod
    def block_lists(self) -> list[nn.ModuleList]:
        """The repeated blocks (double, then single), for checkpointing, streaming and compilation."""

    def embedded_guidance(self, scale: float, count: int = 1) -> Tensor:
        """Embedded guidance of a guidance-distilled model that is sampled with a guidance of `scale`, [count] in float32: 1000 times it,
        rounded to the dtype of the weights, as in the samplers of its makers (in bf16, 6 becomes 6016)."""
        weight = next(self.parameters())  # of the patch embedding, which is never held in fp8
        return torch.full((count,), 1000.0 * scale, dtype=weight.dtype, device=weight.device).float()

    def set_attention(self, mode: str, split: bool = False) -> None:
        """Choose the attention kernel (`layers.attention.MODES`) and whether samples run one at a time."""
        for module in self.modules():
            if isinstance(module, JointBlock):
                module.mode, module.split = mode, split

    def blocks_but(self, skip: Collection[int]) -> list[nn.Module]:
        """All blocks but those numbered in `skip`, double blocks counted first."""
        return [block for number, block in enumerate(block for part in self.block_lists() for block in part) if number not in skip]

    def through_blocks(self, prepared: Prepared) -> Tensor:
        around, run = self.around_blocks, super().through_blocks
        if around is None:
            return run(prepared)
        return around(lambda x: run(prepared._replace(x=x)), prepared.x, prepared.shared[0].video)


def joint_attention(q: Tensor, k: Tensor, v: Tensor, mode: str, split: bool, padding: Padding | None) -> Tensor:
    """q, k, v [B, S, H, D] -> [B, S, H * D]. Kernels that take no bias, and `split`, see each sample at its own length."""
    if padding is None:
        return attention(q, k, v, mode, split=split)
    if mode in PYTORCH and not split:
        return attention(q, k, v, mode, padding.bias)
    samples = zip(q.split(1), k.split(1), v.split(1), padding.lengths, strict=True)
    outputs = [attention(q1[:, :length], k1[:, :length], v1[:, :length], mode) for q1, k1, v1, length in samples]
    return torch.cat([F.pad(out, (0, 0, 0, q.shape[1] - out.shape[1])) for out in outputs])


class _BesideGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.width = x.shape[-1]
        joined = x.new_empty(*x.shape[:-1], ctx.width + hidden.shape[-1])
        joined[..., : ctx.width] = x
        _aten.gelu.out(hidden, approximate="tanh", out=joined[..., ctx.width :])
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (hidden,) = ctx.saved_tensors
        return grad[..., : ctx.width], _aten.gelu_backward(grad[..., ctx.width :], hidden, approximate="tanh")


def beside_gelu(x: Tensor, hidden: Tensor) -> Tensor:
    """[..., C] and [..., H] -> [..., C + H]: x, and the GELU (tanh) of hidden, which is written where it is to stand."""
    if torch.compiler.is_compiling():  # which writes it there itself
        return torch.cat([x, F.gelu(hidden, approximate="tanh")], dim=-1)
    joined: Tensor = _BesideGelu.apply(x, hidden)  # type: ignore[no-untyped-call]
    return joined


def trimmed(text: Tensor, mask: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """text [B, L, D] without the columns that are padding in every sample, and the samples' lengths (at least 1).

    mask [B, L]: true on tokens, which stand before padding.
    """
    lengths = tuple(max(1, int(length)) for length in mask.sum(dim=1).tolist())
    return text[:, : max(lengths)], lengths


def padding_of(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> Padding | None:
    """The padding of sequences of these lengths in one batch; None when they are equal."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    bias = torch.zeros(len(lengths), 1, 1, -(-longest // KEY_ALIGNMENT) * KEY_ALIGNMENT, dtype=dtype, device=device)
    for row, length in zip(bias, lengths, strict=True):
        row[..., length:] = float("-inf")
    return Padding(tuple(lengths), bias[..., :longest])


def masked_mean(text: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean over the tokens of each sample: [B, L, D] -> [B, D], summed in float32."""
    return torch.stack([row[:length].float().mean(dim=0) for row, length in zip(text, lengths, strict=True)]).to(text.dtype)


def with_text(tables: Tables, tokens: int) -> Tables:
    """Tables of the video tokens, [1 or B, S, 1, D], followed by ones that leave `tokens` text tokens as they are."""
    cos, sin = tables
    shape = (cos.shape[0], tokens, *cos.shape[2:])
    return torch.cat([cos, cos.new_ones(shape)], dim=1), torch.cat([sin, sin.new_zeros(shape)], dim=1)


def embed_patches(latents: Tensor, embedding: nn.Conv3d) -> Tensor:
    """[B, C, F, H, W] -> [B, tokens, dim] in frame-major order; edges that fill no patch are repeated.

    The convolution's stride is its kernel, so it is one matrix product.
    """
    f, h, w = embedding.kernel_size
    padding = [amount for size, patch in zip(latents.shape[:1:-1], (w, h, f), strict=True) for amount in (0, -size % patch)]
    if any(padding):
        latents = F.pad(latents, padding, mode="replicate")
    b, c, frames, height, width = latents.shape
    patches = latents.view(b, c, frames // f, f, height // h, h, width // w, w).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return F.linear(patches.reshape(b, -1, c * f * h * w), embedding.weight.flatten(1), embedding.bias)


def from_patches(x: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Tokens [B, F*H*W, 4 * C] of 1x2x2 patches -> [B, C, F, 2H, 2W]; height and width in tokens."""
    x = x.unflatten(-1, (-1, 2, 2)).unflatten(1, (frames, height, width))
    return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(x.shape[0], -1, frames, height * 2, width * 2)


def _project(layers: tuple[Linear, ...], x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """x through one linear that is cut into `widths`, or through one linear for each."""
    if len(layers) == 1:
        fused: tuple[Tensor, ...] = layers[0](x).split(widths, dim=-1)
        return fused
    return tuple(layer(x) for layer in layers)
