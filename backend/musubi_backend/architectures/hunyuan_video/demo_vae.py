"""A tiny HunyuanVideo VAE that works without training: every layer is set to a step of a small wavelet transform.

The transform is that of the tiny Wan VAE (see `demo.wavelet`): over three halvings the means of 2x2 pixels, with differences inside
them from the second on; pairs of frames are averaged. The decoder gives the mean colours back, interpolated in space and held in time.

All residual branches are zero. Two tricks make the layers with a nonlinearity linear: silu(x) - silu(-x) = x, so the last norm is given
each feature with both signs; and two large constant channels of opposite sign keep that group norm (of one group) from shifting or
rescaling the others. Layout: `encoders.hunyuan_vae`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...demo.wavelet import ANCHOR, CHANNELS, COLOURS, FEATURES, GAINS, HAAR, identity, tap
from ...encoders.hunyuan_vae import SCALING_FACTOR
from ...weights.geometry import GEOMETRY_KEY

if TYPE_CHECKING:
    from torch import Tensor

    Content = tuple[dict[str, Tensor], dict[str, str]]

BLOCKS = 1
WIDTHS = (18, 18, 36, 36)
_QUADRANTS = ((1, 1), (1, 2), (2, 1), (2, 2))  # of a 3x3 kernel of stride 2 that is padded by 1


def hunyuan_vae() -> Content:
    """Tensors in the original layout, float32, and the metadata with its groups of norms."""
    tensors = _empty()
    _fill_encoder(tensors)
    _fill_decoder(tensors)
    return tensors, {GEOMETRY_KEY: json.dumps({"norm_num_groups": 1})}


def _fill_encoder(tensors: dict[str, Tensor]) -> None:
    for colour in range(COLOURS):
        tap(tensors["encoder.conv_in.conv.weight"], colour, colour, 1.0)
    first, second, third = (tensors[f"encoder.down_blocks.{level}.downsamplers.0.conv.conv.weight"] for level in range(3))
    for colour in range(COLOURS):
        _haar(first, colour, colour, 0, frames=1)
        _haar(second, colour, colour, 0)
        for detail in (1, 2, 3):
            _haar(second, COLOURS + detail - 1, colour, detail, 1 / COLOURS)
    for feature, (channel, detail) in enumerate(FEATURES):
        _haar(third, feature, channel, detail)
        _haar(third, CHANNELS + feature, channel, detail, -1.0)
    identity(tensors["encoder.down_blocks.2.resnets.0.conv_shortcut.conv.weight"])
    _anchors(tensors, "encoder.mid_block.resnets.1.conv2.conv.bias", "encoder.conv_norm_out.weight", 2 * CHANNELS)
    for feature in range(CHANNELS):
        tap(tensors["encoder.conv_out.conv.weight"], feature, feature, 1.0)
        tap(tensors["encoder.conv_out.conv.weight"], feature, CHANNELS + feature, -1.0)
        tensors["quant_conv.weight"][feature, feature] = GAINS[feature] / SCALING_FACTOR
    tensors["quant_conv.bias"][CHANNELS:] = -20.0  # log of the variance: none


def _fill_decoder(tensors: dict[str, Tensor]) -> None:
    identity(tensors["post_quant_conv.weight"])
    for colour in range(COLOURS):
        for channel, sign in ((colour, 1), (COLOURS + colour, -1)):
            tap(tensors["decoder.conv_in.conv.weight"], channel, colour, sign * SCALING_FACTOR / GAINS[colour])
    for level in range(3):
        weight = tensors[f"decoder.up_blocks.{level}.upsamplers.0.conv.conv.weight"]
        for channel in range(2 * COLOURS):
            for y, share in enumerate((0.25, 0.5, 0.25)):
                for x, other in enumerate((0.25, 0.5, 0.25)):
                    weight[channel, channel, -1, y, x] = share * other
    identity(tensors["decoder.up_blocks.2.resnets.0.conv_shortcut.conv.weight"])
    for colour in range(COLOURS):
        tap(tensors["decoder.conv_out.conv.weight"], colour, colour, 1.0)
        tap(tensors["decoder.conv_out.conv.weight"], colour, COLOURS + colour, -1.0)
    _anchors(tensors, f"decoder.up_blocks.3.resnets.{BLOCKS}.conv2.conv.bias", "decoder.conv_norm_out.weight", 2 * COLOURS)


def _haar(weight: Tensor, out: int, into: int, detail: int, factor: float = 1.0, frames: int = 2) -> None:
    """A 3x3x3 convolution of stride 2 that takes the mean (0) of 2x2 pixels and the last `frames` frames, or the difference of pixels
    across (1), down (2) or both (3)."""
    for (y, x), sign in zip(_QUADRANTS, HAAR[detail], strict=True):
        weight[out, into, -frames:, y, x] = sign * factor / 4 / frames


def _anchors(tensors: dict[str, Tensor], bias: str, scale: str, channel: int) -> None:
    """Put the constants into the two channels from `channel` on before a group norm and undo its scale for the channels before."""
    tensors[bias][channel], tensors[bias][channel + 1] = ANCHOR, -ANCHOR
    tensors[scale].zero_()
    tensors[scale][:channel] = ANCHOR * (2 / tensors[scale].shape[0]) ** 0.5


def _empty() -> dict[str, Tensor]:
    """Zeros of every tensor's shape, scales of norms one."""
    import torch

    from ...encoders.hunyuan_vae import MODEL
    from ...encoders.lean_import import diffusers_model

    levels = len(WIDTHS)
    with torch.device("meta"):
        model: Any = diffusers_model(
            *MODEL,
            latent_channels=CHANNELS,
            down_block_types=("HunyuanVideoDownBlock3D",) * levels,
            up_block_types=("HunyuanVideoUpBlock3D",) * levels,
            block_out_channels=WIDTHS,
            layers_per_block=BLOCKS,
            norm_num_groups=1,
        )
    one = ("norm1.weight", "norm2.weight", "norm_out.weight", "group_norm.weight")
    return {
        name: torch.ones(tensor.shape) if name.endswith(one) else torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()
    }
