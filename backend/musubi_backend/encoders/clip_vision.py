"""The CLIP image encoder of Wan2.1 (ViT-H/14 of open-clip's xlm-roberta model) in transformers' CLIPVisionModel.

Original naming: github.com/Wan-Video/Wan2.1, `wan/modules/clip.py` (`visual.transformer.0.attn.to_qkv.weight`, next to a text
encoder that is not needed). Hugging Face's and ComfyUI's (`clip_vision_h.safetensors`): `vision_model.encoder.layers.0.…`.
Wan takes the tokens before the last layer, so that layer is not even built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counted import counted
from ..device import computed_in
from ..errors import UserError
from ..weights.geometry import geometry_metadata
from .lean_transformers import empty_weights, from_transformers
from .model_files import sized_by
from .stoppable import stop_between_layers
from .weight_files import read_state_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KIND = "clip_vision"
HEAD_DIM = 80
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_ORIGINAL = (
    (re.compile(r"^cls_embedding$"), "embeddings.class_embedding"),
    (re.compile(r"^patch_embedding\."), "embeddings.patch_embedding."),
    (re.compile(r"^pos_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"^pre_norm\."), "pre_layrnorm."),  # spelt like this in transformers
    (re.compile(r"^post_norm\."), "post_layernorm."),
    (re.compile(r"^transformer\.(\d+)\.norm([12])\."), r"encoder.layers.\1.layer_norm\2."),
    (re.compile(r"^transformer\.(\d+)\.attn\.proj\."), r"encoder.layers.\1.self_attn.out_proj."),
    (re.compile(r"^transformer\.(\d+)\.mlp\.0\."), r"encoder.layers.\1.mlp.fc1."),
    (re.compile(r"^transformer\.(\d+)\.mlp\.2\."), r"encoder.layers.\1.mlp.fc2."),
)
_QKV = re.compile(r"^transformer\.(\d+)\.attn\.to_qkv\.(weight|bias)$")
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")


class ClipVision:
    """Images to the token features that Wan2.1's image-to-video models look at."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype

    @classmethod
    def load(cls, path: str | Path, device: torch.device, *, flag: str = "--clip") -> ClipVision:
        """The encoder in `path` (.safetensors, or .pth read with weights_only), in float16 where the device computes in it.

        UserError when the file is something else or incomplete.
        """
        import torch

        stored = read_state_dict(path, KIND, flag, device)
        with sized_by(f"{flag} {path}"):
            tensors = transformers_names(stored)
        dtype = computed_in(torch.float16, device)
        return cls(_build(tensors, geometry_metadata(path), device, dtype, f"{flag} {path}"), device, dtype)

    def features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in -1..1, of any size -> token features [B, 257, 1280] in float16."""
        import torch
        import torch.nn.functional as F

        side = self.model.config.image_size
        with torch.no_grad():
            square = F.interpolate(images.to(self.device, torch.float32), size=(side, side), mode="bicubic", align_corners=False)
            mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (MEAN, STD))
            states = self.model(pixel_values=((square * 0.5 + 0.5 - mean) / std).to(self.dtype)).last_hidden_state
        result: Tensor = states.to(torch.float16)
        return result


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the image encoder under transformers' names (without `vision_model.`), whatever their naming."""
    prefixes = ("vision_model.", "visual.")
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), "")
    renamed = {}
    for original, tensor in tensors.items():
        if not original.startswith(prefix):
            continue
        name = original.removeprefix(prefix)
        if match := _QKV.match(name):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = third
            continue
        for pattern, replacement in _ORIGINAL:
            name = pattern.sub(replacement, name)
        is_positions = name == "embeddings.position_embedding.weight"
        renamed[name] = tensor.flatten() if name == "embeddings.class_embedding" else tensor.flatten(0, -2) if is_positions else tensor
    return renamed


def _build(tensors: Mapping[str, Tensor], known: Mapping[str, Any], device: torch.device, dtype: torch.dtype, source: str) -> Any:
    """The module of all layers but the last, filled. known: what the file says about its sizes (`weights.geometry`)."""
    import torch

    CLIPVisionConfig, CLIPVisionModel = from_transformers("CLIPVisionConfig", "CLIPVisionModel")

    with sized_by(source), empty_weights():
        try:
            config = CLIPVisionConfig(**{**sizes(tensors), **known}, hidden_act="gelu")
        except KeyError as error:
            raise UserError(f"{source}: not a complete CLIP image encoder ({error.args[0]} is missing)") from None
        model = CLIPVisionModel(config)
    wanted = {name: name.removeprefix("vision_model.") for name in model.state_dict()}
    missing = sorted(set(wanted.values()) - set(tensors))
    if missing:
        raise UserError(
            f"{source}: {counted(len(missing), 'tensor is', 'tensors are')} missing, first {missing[0]}; the file is incomplete"
        )
    moved = {name: tensors[own].to(device, dtype) for name, own in wanted.items()}
    with sized_by(source):
        model.load_state_dict(moved, strict=True, assign=True)
    for module in model.modules():
        if "position_ids" in module._buffers:  # not part of any file
            module._buffers["position_ids"] = torch.arange(len(tensors["embeddings.position_embedding.weight"]), device=device)[None]
    stop_between_layers(model)
    return model.eval().requires_grad_(False)


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """CLIPVisionConfig's arguments from the tensors' shapes, one layer less than there are; heads are 80 wide in the published model.
    KeyError names a missing tensor."""
    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    side = int((len(tensors["embeddings.position_embedding.weight"]) - 1) ** 0.5)
    layers = 1 + max((int(match[1]) for name in tensors if (match := _LAYER.match(name))), default=0)
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": layers - 1,
        "num_attention_heads": max(1, width // HEAD_DIM),
        "image_size": side * patch,
        "patch_size": patch,
    }
