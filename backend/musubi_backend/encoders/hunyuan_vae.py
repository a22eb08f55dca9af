"""The HunyuanVideo VAE (also FramePack's): diffusers' AutoencoderKLHunyuanVideo filled from a file in the original layout.

Both name their tensors alike. Layout: github.com/Tencent-Hunyuan/HunyuanVideo, `hyvideo/vae`; the published file is a `.pt` with
"state_dict" and the prefix "vae.". ComfyUI's file has the names of Stable Diffusion's VAE (`original_names`). Sizes are read from the
tensors' shapes. Latents here are the VAE's own; the transformers see
them times `SCALING_FACTOR`.

Two of diffusers' layers get forward passes that need less memory: the attention in the middle blocks works frame by frame instead of
building a mask of (all tokens)^2, and convolutions can be cut in columns (`--vae_chunk_size`). The encoder's convolutions of a single
frame are done in two dimensions, which differs in rounding only (a decoder can amplify such differences, so it keeps diffusers' own).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counted import counted
from ..errors import UserError
from .lean_import import diffusers_model
from .model_files import model_files, sized_by
from .stoppable import stop_between_layers
from .weight_files import read_state_dict

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

KIND = "hunyuan_video_vae"
MODEL = ("diffusers.models.autoencoders.autoencoder_kl_hunyuan_video", "AutoencoderKLHunyuanVideo")
SCALING_FACTOR = 0.476986
DEFAULT_TILE = 256
TILE_STEP = 32
"""Sides of tiles are multiples of this: a quarter of a tile overlaps, and that must be whole latents."""
NORM_GROUPS = 32


class HunyuanVAE:
    """Frames to latents and back, not scaled. A stop request ends either."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        tile: int | None = None,
        chunk: int | None = None,
        flag: str = "--vae",
    ) -> HunyuanVAE:
        """The VAE at `path`: a file (.safetensors, or .pt read with weights_only), or a folder that holds one, itself or in `vae`.

        tile: side in pixels of the tiles that larger images are cut into, None for no tiles. chunk: width in columns of the
        pieces convolutions work on, None for no pieces. UserError when the file is not this VAE, naming `flag` and what the file
        is, and when a tile's side does not fit.
        """
        import torch

        check_tile(tile)
        files = model_files(path, KIND, flag, subfolder="vae")
        tensors = original_names(read_state_dict(files.weights, KIND, flag, device))
        with sized_by(f"{flag} {path}"), torch.device("meta"):
            try:
                config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
            except KeyError as error:
                raise UserError(f"{flag} {path}: not a complete HunyuanVideo VAE ({error} is missing)") from None
            config["norm_num_groups"] = files.number("norm_num_groups", NORM_GROUPS)
            model = _module(config, f"{flag} {path}")
        missing = sorted(set(model.state_dict()) - set(tensors))
        if missing:
            raise UserError(
                f"{flag} {path}: {counted(len(missing), 'tensor is', 'tensors are')} missing, first {missing[0]}; the file is incomplete"
            )
        moved = {name: tensors.pop(name).to(device, dtype) for name in model.state_dict()}
        with sized_by(f"{flag} {path}"):
            model.load_state_dict(moved, strict=True, assign=True)
        return cls(_prepared(model.eval().requires_grad_(False), tile, chunk), device, dtype)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """video [B, 3, F, H, W] in -1..1 with F = 4n+1 -> mean and log of the variance of the posterior, each [B, 16, F', H/8, W/8]."""
        import torch

        with torch.no_grad():
            posterior = self.model.encode(video.to(self.device, self.dtype), return_dict=False)[0]
            return posterior.mean, posterior.logvar

    def encode(self, video: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
        """As `moments`, but a sample of the posterior [B, 16, F', H/8, W/8] in the VAE's dtype, as musubi-tuner caches it.

        generators: on the CPU, one per video; its noise is then the same on every device and whatever else is in the batch.
        Without them the mean is returned.
        """
        import torch

        mean, logvar = self.moments(video)
        if generators is None:
            return mean
        noise = [torch.randn(mean.shape[1:], generator=generator, dtype=mean.dtype) for generator in generators]
        return mean + (0.5 * logvar).exp() * torch.stack(noise).to(self.device)

    @property
    def tiled(self) -> nn.Module:
        """The model. Where there are several tiles its `decoder` is called with one after the other, then they are blended (`blend_v`,
        `blend_h`)."""
        model: nn.Module = self.model
        return model

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, 16, F', H', W'], not scaled -> float32 video [B, 3, 4(F'-1)+1, 8H', 8W'], about -1..1."""
        import torch

        with torch.no_grad():
            video: Tensor = self.model.decode(latents.to(self.device, self.dtype), return_dict=False)[0]
            return video.float()


def _module(config: Mapping[str, Any], source: str) -> Any:
    try:
        return diffusers_model(*MODEL, **config)
    except ValueError as error:
        raise UserError(f"{source}: a VAE of these sizes cannot be built ({error})") from error


def check_tile(tile: int | None) -> None:
    """UserError for a side of tiles that cannot overlap in whole latents, naming the nearest that can."""
    if tile is not None and (tile % TILE_STEP or tile < TILE_STEP):
        nearest = max(TILE_STEP, round(tile / TILE_STEP) * TILE_STEP)
        raise UserError(f"--vae_spatial_tile_sample_min_size {tile}: must be a multiple of {TILE_STEP}; nearest is {nearest}")


_COMFY_NAMES = (
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.(q|k|v)\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (re.compile(r"\.down\.(\d+)\.block\."), r".down_blocks.\1.resnets."),
    (re.compile(r"\.down\.(\d+)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    (re.compile(r"\.block\."), ".resnets."),
    (re.compile(r"\.upsample\."), ".upsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
)
_UP = re.compile(r"^decoder\.up\.(\d+)\.")


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under the original names, which may be those of ComfyUI's file: there levels of the decoder count from the last one, and
    the linears of attention are convolutions of one pixel."""
    last = max((int(match[1]) for name in tensors if (match := _UP.match(name))), default=0)
    renamed = {}
    for name, tensor in tensors.items():
        match = _UP.match(name)
        if match:
            name = name.replace(match[0], f"decoder.up_blocks.{last - int(match[1])}.")
        for pattern, replacement in _COMFY_NAMES if ".conv_norm_out." not in name else ():
            name = pattern.sub(replacement, name)
        renamed[name] = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 5 else tensor
    return renamed


def config_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Constructor arguments of AutoencoderKLHunyuanVideo, save the groups of norms, from the shapes in a file. KeyError names a
    tensor that is missing."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "in_channels": shapes["encoder.conv_in.conv.weight"][1],
        "out_channels": shapes["decoder.conv_out.conv.weight"][0],
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * levels,
        "block_out_channels": tuple(shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight"][0] for level in range(levels)),
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
    }


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _prepared(model: Any, tile: int | None, chunk: int | None) -> Any:
    """The model with tiles and pieces as asked, and never cut in time: that would not be what transformers were trained with."""
    stop_between_layers(model)
    model.use_framewise_encoding = model.use_framewise_decoding = False
    if tile is not None:
        stride = tile * 3 // 4
        model.enable_tiling(tile, tile, tile_sample_stride_height=stride, tile_sample_stride_width=stride)
    for module in model.modules():
        kind = type(module).__name__
        if kind == "HunyuanVideoMidBlock3D":
            module.forward = partial(_middle_block, module)
        elif kind == "HunyuanVideoCausalConv3d" and chunk is not None:
            module.forward = partial(_convolution_in_columns, module, module.forward, chunk)
    for module in model.encoder.modules():
        if type(module).__name__ == "HunyuanVideoCausalConv3d":
            module.forward = partial(_convolution, module, module.forward)
    return model


def _middle_block(module: Any, x: Tensor) -> Tensor:
    x = module.resnets[0](x)
    for attention, resnet in zip(module.attentions, module.resnets[1:], strict=True):
        if attention is not None:
            x = x + _causal_attention(attention, x)
        x = resnet(x)
    return x


def _causal_attention(attention: Any, x: Tensor) -> Tensor:
    """x [B, C, F, H, W]; every frame attends to itself and the frames before it. The same as attention with a mask, in half the
    work and without the mask, which alone would be larger than the model."""
    import torch
    import torch.nn.functional as F

    frames, size = x.shape[2], x.shape[3] * x.shape[4]
    tokens = attention.group_norm(x.flatten(2)).transpose(1, 2)

    def heads(linear: Any) -> Tensor:
        projected: Tensor = linear(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        return projected

    q, k, v = heads(attention.to_q), heads(attention.to_k), heads(attention.to_v)
    ends = [(frame + 1) * size for frame in range(frames)]
    parts = [F.scaled_dot_product_attention(q[:, :, end - size : end], k[:, :, :end], v[:, :, :end]) for end in ends]
    out: Tensor = attention.to_out[0](torch.cat(parts, dim=2).transpose(1, 2).flatten(2))
    return out.transpose(1, 2).view_as(x)


def _convolution(module: Any, in_3d: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The past of a single frame x [B, C, 1, H, W] is the frame itself, so the taps in time add up: a third of the work."""
    import torch.nn.functional as F

    if x.shape[2] != 1 or module.conv.kernel_size[0] == 1:
        return in_3d(x)
    weight = module.conv.weight.float().sum(2).to(x.dtype)
    frame = F.pad(x[:, :, 0], module.time_causal_padding[:4], mode=module.pad_mode)
    return F.conv2d(frame, weight, module.conv.bias, module.conv.stride[1:]).unsqueeze(2)


def _convolution_in_columns(module: Any, whole: Callable[[Tensor], Tensor], chunk: int, x: Tensor) -> Tensor:
    """The convolution of about `chunk` columns of x [B, C, F, H, W] at a time: the same result, with smaller work buffers."""
    import torch
    import torch.nn.functional as F

    if x.shape[-1] < 1.5 * chunk:
        return whole(x)
    kernel, stride = module.conv.kernel_size[-1], module.conv.stride[-1]
    padded = F.pad(x, module.time_causal_padding, mode=module.pad_mode)
    columns, step = (padded.shape[-1] - kernel) // stride + 1, max(1, chunk // stride)
    ends = [min(start + step, columns) for start in range(0, columns, step)]
    pieces = zip(range(0, columns, step), ends, strict=True)
    return torch.cat([module.conv(padded[..., start * stride : (end - 1) * stride + kernel]) for start, end in pieces], dim=-1)
