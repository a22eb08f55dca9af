"""A tiny Wan VAE that works without training: every layer is set to a step of a small wavelet transform.

Encoder: over three halvings the means of 2x2 pixels stay, with the differences inside them (Haar) from the second halving on; pairs of
frames are averaged. That gives per 8x8 pixels 3 mean colours, 9 differences of the last halving, 3 of the one before in brightness, and
one second difference. Decoder: the mean colours, with soft edges and held in time.

All residual branches are zero. Two tricks make the layers with a nonlinearity linear: silu(x) - silu(-x) = x, so the last norm is
given each feature with both signs; and a large constant channel keeps that RMS norm from rescaling the others.
Layout: the original one with dim_mult (1, 1, 2, 2), see `encoders.wan_vae`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ...demo.wavelet import ANCHOR, CHANNELS, COLOURS, FEATURES, GAINS, HAAR, identity, tap
from ...encoders.wan_vae import MEAN, STD

if TYPE_CHECKING:
    from torch import Tensor

DIM, RES_BLOCKS = 18, 2
MULTIPLIERS = (1, 1, 2, 2)
TEMPORAL = (False, True, True)

_SHARES = {3: (0.0, 1.0, 0.0), 7: (0.0, 1.0, 0.0), 11: (0.25, 0.5, 0.25)}
"""Decoder layer that doubles height and width -> how much of a pixel comes from the one before, itself and the one behind: squares of 8x8
pixels keep their colours and get soft edges."""
_QUADRANTS = ((0, 0), (0, 1), (1, 0), (1, 1))


def wan_vae() -> dict[str, Tensor]:
    """Tensors in the original layout, float32."""
    tensors = _empty()
    _fill_encoder(tensors)
    _fill_decoder(tensors)
    return tensors


def _fill_encoder(tensors: dict[str, Tensor]) -> None:
    for colour in range(COLOURS):
        tap(tensors["encoder.conv1.weight"], colour, colour, 1.0)
    first, second, third = (tensors[f"encoder.downsamples.{index}.resample.1.weight"] for index in (2, 5, 8))
    for colour in range(COLOURS):
        _haar(first, colour, colour, 0)
        _haar(second, colour, colour, 0)
        for detail in (1, 2, 3):
            _haar(second, COLOURS + detail - 1, colour, detail, 1 / COLOURS)
    for feature, (channel, detail) in enumerate(FEATURES):
        _haar(third, feature, channel, detail)
        _haar(third, CHANNELS + feature, channel, detail, -1.0)
    for index in (5, 8):
        time = tensors[f"encoder.downsamples.{index}.time_conv.weight"]
        for channel in range(time.shape[0]):
            time[channel, channel, 1:] = 0.5
    identity(tensors["encoder.downsamples.6.shortcut.weight"])
    _anchor(tensors, "encoder.middle.2.residual.6.bias", "encoder.head.0.gamma", 2 * CHANNELS)
    for feature in range(CHANNELS):
        tap(tensors["encoder.head.2.weight"], feature, feature, 1.0)
        tap(tensors["encoder.head.2.weight"], feature, CHANNELS + feature, -1.0)
        tensors["conv1.weight"][feature, feature] = GAINS[feature] * STD[feature]
        tensors["conv1.bias"][feature] = MEAN[feature]
    tensors["conv1.bias"][CHANNELS:] = -20.0  # log of the variance: none


def _fill_decoder(tensors: dict[str, Tensor]) -> None:
    identity(tensors["conv2.weight"])
    for colour in range(COLOURS):
        gain = GAINS[colour] * STD[colour]
        tap(tensors["decoder.conv1.weight"], colour, colour, 1 / gain)
        tensors["decoder.conv1.bias"][colour] = -MEAN[colour] / gain
    for index, shares in _SHARES.items():
        weight = tensors[f"decoder.upsamples.{index}.resample.1.weight"]
        for colour in range(COLOURS):
            for y, share in enumerate(shares):
                for x, other in enumerate(shares):
                    weight[colour, colour, y, x] = share * other
    for index in (3, 7):
        time = tensors[f"decoder.upsamples.{index}.time_conv.weight"]
        width = time.shape[1]
        for channel in range(width):
            time[channel, channel, 2] = time[width + channel, channel, 2] = 1.0
    identity(tensors["decoder.upsamples.4.shortcut.weight"])
    last = tensors["decoder.upsamples.12.shortcut.weight"]
    for colour in range(COLOURS):
        last[colour, colour], last[COLOURS + colour, colour] = 1.0, -1.0
        tap(tensors["decoder.head.2.weight"], colour, colour, 1.0)
        tap(tensors["decoder.head.2.weight"], colour, COLOURS + colour, -1.0)
    _anchor(tensors, "decoder.upsamples.14.residual.6.bias", "decoder.head.0.gamma", 2 * COLOURS)


def _haar(weight: Tensor, out: int, into: int, detail: int, factor: float = 1.0) -> None:
    """A 3x3 convolution of stride 2 that takes the mean (0) of 2x2 pixels, or their difference across (1), down (2) or both (3)."""
    for (y, x), sign in zip(_QUADRANTS, HAAR[detail], strict=True):
        weight[out, into, y, x] = sign * factor / 4


def _anchor(tensors: dict[str, Tensor], bias: str, gamma: str, channel: int) -> None:
    """Put the large constant into `channel` before an RMS norm and undo the norm's scale for the channels before it."""
    tensors[bias][channel] = ANCHOR
    width = tensors[gamma].shape[0]
    tensors[gamma].zero_()
    tensors[gamma][:channel] = ANCHOR / width**0.5


def shapes_of(dim: int) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a Wan VAE with `dim` channels at full size."""
    shapes: dict[str, tuple[int, ...]] = {}
    _convolution(shapes, "conv1", 2 * CHANNELS, 2 * CHANNELS, 1, 1, 1)
    _convolution(shapes, "conv2", CHANNELS, CHANNELS, 1, 1, 1)
    widths = [dim * factor for factor in MULTIPLIERS]
    _encoder_shapes(shapes, [dim, *widths])
    _decoder_shapes(shapes, [widths[-1], *reversed(widths)])
    return shapes


def _empty() -> dict[str, Tensor]:
    """Zeros of every tensor's shape, norms one."""
    import torch

    return {name: torch.ones(shape) if name.endswith("gamma") else torch.zeros(shape) for name, shape in shapes_of(DIM).items()}


def _encoder_shapes(shapes: dict[str, tuple[int, ...]], widths: list[int]) -> None:
    _convolution(shapes, "encoder.conv1", widths[0], COLOURS, 3, 3, 3)
    index = 0
    for level, (into, out) in enumerate(pairwise(widths)):
        for block in range(RES_BLOCKS):
            _residual(shapes, f"encoder.downsamples.{index}", into if block == 0 else out, out)
            index += 1
        if level < len(TEMPORAL):
            _convolution(shapes, f"encoder.downsamples.{index}.resample.1", out, out, 3, 3)
            if TEMPORAL[level]:
                _convolution(shapes, f"encoder.downsamples.{index}.time_conv", out, out, 3, 1, 1)
            index += 1
    _middle_and_head(shapes, "encoder", widths[-1], widths[-1], 2 * CHANNELS)


def _decoder_shapes(shapes: dict[str, tuple[int, ...]], widths: list[int]) -> None:
    _convolution(shapes, "decoder.conv1", widths[0], CHANNELS, 3, 3, 3)
    index = 0
    for level, (into, out) in enumerate(pairwise(widths)):
        for block in range(RES_BLOCKS + 1):
            _residual(shapes, f"decoder.upsamples.{index}", (into if level == 0 else into // 2) if block == 0 else out, out)
            index += 1
        if level < len(TEMPORAL):
            _convolution(shapes, f"decoder.upsamples.{index}.resample.1", out // 2, out, 3, 3)
            if TEMPORAL[::-1][level]:
                _convolution(shapes, f"decoder.upsamples.{index}.time_conv", 2 * out, out, 3, 1, 1)
            index += 1
    _middle_and_head(shapes, "decoder", widths[0], widths[-1], COLOURS)


def _middle_and_head(shapes: dict[str, tuple[int, ...]], side: str, middle: int, last: int, out: int) -> None:
    _residual(shapes, f"{side}.middle.0", middle, middle)
    shapes[f"{side}.middle.1.norm.gamma"] = (middle, 1, 1)
    _convolution(shapes, f"{side}.middle.1.to_qkv", 3 * middle, middle, 1, 1)
    _convolution(shapes, f"{side}.middle.1.proj", middle, middle, 1, 1)
    _residual(shapes, f"{side}.middle.2", middle, middle)
    shapes[f"{side}.head.0.gamma"] = (last, 1, 1, 1)
    _convolution(shapes, f"{side}.head.2", out, last, 3, 3, 3)


def _residual(shapes: dict[str, tuple[int, ...]], name: str, into: int, out: int) -> None:
    shapes[f"{name}.residual.0.gamma"] = (into, 1, 1, 1)
    _convolution(shapes, f"{name}.residual.2", out, into, 3, 3, 3)
    shapes[f"{name}.residual.3.gamma"] = (out, 1, 1, 1)
    _convolution(shapes, f"{name}.residual.6", out, out, 3, 3, 3)
    if into != out:
        _convolution(shapes, f"{name}.shortcut", out, into, 1, 1, 1)


def _convolution(shapes: dict[str, tuple[int, ...]], name: str, out: int, into: int, *kernel: int) -> None:
    shapes[f"{name}.weight"] = (out, into, *kernel)
    shapes[f"{name}.bias"] = (out,)
