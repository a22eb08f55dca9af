"""The Wan2.1 VAE: diffusers' AutoencoderKLWan filled from a file in the original key layout.

Key layout and normalisation constants: github.com/Wan-Video/Wan2.1, `wan/modules/vae.py`. Sizes are read from the tensors' shapes,
so small VAEs work too. Latents are normalised as musubi-tuner caches them: (mean of the posterior - MEAN) / STD, per channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counted import counted
from ..errors import UserError
from .lean_import import diffusers_class
from .model_files import sized_by
from .stoppable import stop_between_layers
from .weight_files import read_state_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MEAN = (
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
)
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

KIND = "wan_vae"


class WanVAE:
    """Frames to normalised latents and back. Deterministic: the mean of the posterior, never a sample. A stop request ends either."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, kept: torch.dtype | None = None) -> None:
        import torch

        self.model, self.device, self.dtype, self.kept = model, device, dtype, kept or dtype
        shape = (1, -1, 1, 1, 1)
        channels = model.config.z_dim
        mean, std = (MEAN, STD) if channels == len(MEAN) else ((0.0,) * channels, (1.0,) * channels)
        self.mean = torch.tensor(mean, dtype=dtype, device=device).view(shape)
        self.inverse_std = 1.0 / torch.tensor(std, dtype=dtype, device=device).view(shape)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        kept: torch.dtype | None = None,
        cache_on_cpu: bool = False,
        flag: str = "--vae",
    ) -> WanVAE:
        """The VAE in `path` (.safetensors, or .pth read with weights_only), computing in `dtype`.

        kept: what `encode` gives latents in, if that is another dtype.
        cache_on_cpu: keep the features that pass from one chunk of frames to the next in system RAM. UserError when the file
        is not a Wan2.1 VAE, naming `flag` and what the file is.
        """
        import torch

        tensors = read_state_dict(path, KIND, flag, device)
        with sized_by(f"{flag} {path}"), torch.device("meta"):
            try:
                config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
            except KeyError as error:
                raise UserError(f"{flag} {path}: not a complete Wan2.1 VAE in the original key layout ({error} is missing)") from None
            model = diffusers_class("diffusers.models.autoencoders.autoencoder_kl_wan", "AutoencoderKLWan")(**config)
        renamed = {diffusers_key(name, config["num_res_blocks"]): tensor for name, tensor in tensors.items()}
        missing = sorted(set(model.state_dict()) - set(renamed))
        if missing:
            raise UserError(
                f"{flag} {path}: {counted(len(missing), 'tensor is', 'tensors are')} missing, first {missing[0]}; the file is incomplete"
            )
        moved = {name: renamed[name].to(device, dtype) for name in model.state_dict()}
        with sized_by(f"{flag} {path}"):
            model.load_state_dict(moved, strict=True, assign=True)
        model = model.eval().requires_grad_(False)
        stop_between_layers(model)
        _quicken(model.encoder, on_cpu=device.type == "cpu")
        if cache_on_cpu:
            _keep_features_on_cpu(model, device)
        return cls(model, device, dtype, kept)

    def encode(self, video: Tensor) -> Tensor:
        """video [B, 3, F, H, W] in -1..1 with F = 4n+1 -> normalised latents [B, 16, (F-1)/4+1, H/8, W/8] in the dtype `kept`."""
        import torch

        with torch.no_grad():
            latents = self.model.encode(video.to(self.device, self.dtype), return_dict=False)[0].mode()
            result: Tensor = ((latents - self.mean) * self.inverse_std).to(self.kept)
            return result

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, F', H', W'] -> float32 video [B, 3, 4(F'-1)+1, 8H', 8W'] in -1..1."""
        import torch

        with torch.no_grad():
            raw = latents.to(self.device, self.dtype) / self.inverse_std + self.mean
            video: Tensor = self.model.decode(raw, return_dict=False)[0]
            return video.float().clamp_(-1, 1)


def config_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Constructor arguments of AutoencoderKLWan from the shapes in an original file. KeyError names a tensor that is missing."""
    base = shapes["encoder.conv1.weight"][0]
    levels: list[list[int]] = [[]]
    temporal = []
    for index in _indices(shapes, r"encoder\.downsamples\.(\d+)\."):
        prefix = f"encoder.downsamples.{index}."
        if f"{prefix}resample.1.weight" in shapes:
            temporal.append(f"{prefix}time_conv.weight" in shapes)
            levels.append([])
        else:
            levels[-1].append(shapes[f"{prefix}residual.6.weight"][0])
    return {
        "base_dim": base,
        "decoder_base_dim": shapes["decoder.head.0.gamma"][0],
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": [level[-1] // base for level in levels],
        "num_res_blocks": len(levels[0]),
        "temperal_downsample": temporal,
        "in_channels": shapes["encoder.conv1.weight"][1],
        "out_channels": shapes["decoder.head.2.weight"][0],
    }


def _indices(shapes: Mapping[str, Any], pattern: str) -> list[int]:
    return sorted({int(match[1]) for name in shapes if (match := re.match(pattern, name))})


_RENAMES = (
    (re.compile(r"^conv1\."), "quant_conv."),
    (re.compile(r"^conv2\."), "post_quant_conv."),
    (re.compile(r"^(encoder|decoder)\.conv1\."), r"\1.conv_in."),
    (re.compile(r"\.head\.0\."), ".norm_out."),
    (re.compile(r"\.head\.2\."), ".conv_out."),
    (re.compile(r"\.middle\.0\."), ".mid_block.resnets.0."),
    (re.compile(r"\.middle\.1\."), ".mid_block.attentions.0."),
    (re.compile(r"\.middle\.2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.downsamples\."), ".down_blocks."),
    (re.compile(r"\.residual\.0\."), ".norm1."),
    (re.compile(r"\.residual\.2\."), ".conv1."),
    (re.compile(r"\.residual\.3\."), ".norm2."),
    (re.compile(r"\.residual\.6\."), ".conv2."),
    (re.compile(r"\.shortcut\."), ".conv_shortcut."),
)
_UPSAMPLE = re.compile(r"\.upsamples\.(\d+)\.")


def diffusers_key(name: str, num_res_blocks: int) -> str:
    """The name in AutoencoderKLWan of a tensor named `name` in an original file.

    The original decoder numbers its up path in one row, num_res_blocks + 1 residual blocks and a resampler per level; diffusers
    counts levels and blocks.
    """
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    match = _UPSAMPLE.search(name)
    if match is None:
        return name
    level, block = divmod(int(match[1]), num_res_blocks + 2)
    part = "upsamplers.0" if block == num_res_blocks + 1 else f"resnets.{block}"
    return name.replace(match[0], f".up_blocks.{level}.{part}.")


def _quicken(encoder: nn.Module, *, on_cpu: bool) -> None:
    """Give the encoder's layers faster forward passes that differ in rounding only (below 1e-6 in the latents; a decoder can amplify
    such differences, so it keeps diffusers' own)."""
    for module in encoder.modules():
        kind = type(module).__name__
        if kind == "WanCausalConv3d":
            module.forward = partial(_causal_convolution, module, module.forward)
        elif kind == "WanRMS_norm" and on_cpu:
            module.forward = partial(_rms_norm, module)


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    """As WanRMS_norm; PyTorch's vector norm over channels is not vectorised on CPUs and takes most of the encoder's time there."""
    dim = 1 if module.channel_first else -1
    wide = x.float()
    length = wide.square().sum(dim, keepdim=True).sqrt().clamp_min(1e-12)
    result: Tensor = (wide / length).to(x.dtype) * module.scale * module.gamma + module.bias
    return result


def _causal_convolution(module: Any, in_3d: Callable[..., Tensor], x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """One frame without a past (any image, and the first frame of a clip) meets zeros in all but the last tap: a third of the work
    in two dimensions."""
    import torch.nn.functional as F

    if x.shape[2] != 1 or cache_x is not None or module.stride[0] != 1:
        return in_3d(x, cache_x)
    width, _, height, *_ = module._padding
    out = F.conv2d(x[:, :, 0], module.weight[:, :, -1], module.bias, module.stride[1:], (height, width))
    return out.unsqueeze(2)


class _CpuFeatures(list[Any]):
    """The list in which AutoencoderKLWan keeps features between chunks of frames: they wait in system RAM and are read on `device`.
    The one read last is kept there, as each is asked for several times in a row."""

    def __init__(self, features: Iterable[Any], device: torch.device) -> None:
        super().__init__(features)
        self.device = device
        self.read_last: tuple[Any, Any] = (None, None)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.read_last = (None, None)
        super().__setitem__(index, value.cpu() if hasattr(value, "cpu") else value)

    def __getitem__(self, index: Any) -> Any:
        value = super().__getitem__(index)
        if not hasattr(value, "to"):
            return value
        if self.read_last[0] != index:
            self.read_last = (index, value.to(self.device))
        return self.read_last[1]


def _keep_features_on_cpu(model: Any, device: torch.device) -> None:
    clear = model.clear_cache

    def clear_into_cpu_lists() -> None:
        clear()
        model._feat_map = _CpuFeatures(model._feat_map, device)
        model._enc_feat_map = _CpuFeatures(model._enc_feat_map, device)

    model.clear_cache = clear_into_cpu_lists
