"""transformers' Qwen2.5-VL, filled tensor by tensor from one or several safetensors files; fp8 weights stay in fp8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..memory.fp8 import hold_in_fp8
from ..weights.geometry import geometry_metadata
from ..weights.loader import Weights, load_into, open_weights
from .lean_transformers import from_transformers
from .model_files import sized_by
from .qwen_vl_config import Geometry, config_arguments, own_name

_OUTPUT = "lm_head"


def weight_file(place: Path, flag: str) -> Path:
    """`place` itself, or the first weight file in that folder."""
    if not place.is_dir():
        return place
    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise UserError(f"{flag}: the folder {place} holds no .safetensors file")
    return files[0]


def load_model(file: Path, ids: Mapping[str, int], device: torch.device, dtype: torch.dtype, *, fp8: bool = False) -> Any:
    """The module in `file` and the parts that belong to it, frozen, on `device`.

    ids: the special tokens of its configuration, such as "image_token_id". dtype: of what is not kept in fp8. fp8: quantise the linear
    layers but the last. UserError names missing, surplus and ill-shaped tensors before anything is read.
    """
    from accelerate import init_empty_weights

    (Qwen2_5_VLForConditionalGeneration,) = from_transformers("Qwen2_5_VLForConditionalGeneration")

    weights = open_weights(file)
    with sized_by(str(file)), init_empty_weights(include_buffers=False):
        config = _config(file, weights, ids)
        model = Qwen2_5_VLForConditionalGeneration(config)
    stored = {own_name(name) for name in weights.fp8_names()}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    hold_in_fp8(model, [name for name in linears if f"{name}.weight" in stored or (fp8 and name != _OUTPUT)], "block")
    tied = [f"{_OUTPUT}.weight"] if config.tie_word_embeddings else []
    load_into(model, weights, device, dtype, rename=own_name, optional=tied)
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    for name, buffer in list(model.named_buffers()):  # rotary frequencies, made with the module
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = buffer.to(device)
    return model.eval().requires_grad_(False)


def _config(file: Path, weights: Weights, ids: Mapping[str, int]) -> Any:
    """From the config.json next to the weights, if that is a Qwen2.5-VL's; else from the shapes."""
    (Qwen2_5_VLConfig,) = from_transformers("Qwen2_5_VLConfig")

    beside = file.parent / "config.json"
    if beside.is_file() and len(list(file.parent.glob("*.safetensors"))) == len(weights.sources):
        try:
            settings, _ = Qwen2_5_VLConfig.get_config_dict(file.parent, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{beside} cannot be read ({error})") from error
        if settings.get("model_type") != "qwen2_5_vl":
            raise UserError(f"{beside} is of a {settings.get('model_type')} model, not of a qwen2_5_vl")
        return Qwen2_5_VLConfig.from_dict(settings)
    shapes = {own: info.shape for name, info in weights.header.tensors.items() if (own := own_name(name)) is not None}
    arguments = config_arguments(shapes, Geometry.of(geometry_metadata(file)), str(file))
    arguments["text_config"] |= {"bos_token_id": None, "eos_token_id": None}  # the published ones need not be in this vocabulary
    return Qwen2_5_VLConfig(**{**arguments, **ids})
