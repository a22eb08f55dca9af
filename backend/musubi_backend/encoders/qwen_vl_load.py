"""Filling transformers' Qwen2.5-VL tensor by tensor from one or several safetensors files; 8-bit weights stay in 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights.safetensors_file import Header, TensorInfo, read_header, read_tensor, split_files
from .fp8_linear import FP8, Fp8Linear, quantised
from .qwen_vl_config import Geometry, config_arguments, own_name

_SCALES = (".scale_weight", ".weight_scale")
_OUTPUT = "lm_head"
_SHOWN = 3


def weight_file(place: Path, flag: str) -> Path:
    """`place` itself, or the first weight file in that folder."""
    if not place.is_dir():
        return place
    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise UserError(f"{flag}: the folder {place} holds no .safetensors file")
    return files[0]


def load_model(file: Path, ids: Mapping[str, int], device: torch.device, dtype: torch.dtype, *, fp8: bool = False) -> Any:
    """The module in `file` and the parts that belong to it, frozen, on `device`. Peak memory is the model plus one tensor.

    ids: the special tokens of its configuration, such as "image_token_id". dtype: of what is not kept in 8 bits. fp8: quantise the linear
    layers but the last. UserError names missing, surplus and ill-shaped tensors before anything is read.
    """
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLForConditionalGeneration

    parts = [(part, read_header(part)) for part in split_files(file)]
    config = _config(file, parts, ids)
    with init_empty_weights(include_buffers=False):
        model = Qwen2_5_VLForConditionalGeneration(config)
    _check(model, _shapes(parts), {f"{_OUTPUT}.weight"} if config.tie_word_embeddings else (), file)
    scales = {name: tensor for part, header in parts for name, tensor in _scales(part, header)}
    for part, header in parts:
        with part.open("rb") as opened:
            for name, info in sorted(header.tensors.items(), key=lambda item: item[1].start):
                own = _weight_name(name)
                if own is not None:
                    tensor = read_tensor(opened, name, info, part).to(device)
                    _put(model, own, tensor, scales.get(own), dtype, quantise=fp8)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.get_input_embeddings().weight
    for name, buffer in list(model.named_buffers()):  # rotary frequencies, made with the module
        _owner(model, name)._buffers[name.rpartition(".")[2]] = buffer.to(device)
    return model.eval().requires_grad_(False)


def _config(file: Path, parts: list[tuple[Path, Header]], ids: Mapping[str, int]) -> Any:
    """From the config.json beside the weights, if that is a Qwen2.5-VL's; else from the shapes."""
    from transformers import Qwen2_5_VLConfig

    beside = file.parent / "config.json"
    if beside.is_file() and len(list(file.parent.glob("*.safetensors"))) == len(parts):
        try:
            settings, _ = Qwen2_5_VLConfig.get_config_dict(file.parent, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{beside} cannot be read ({error})") from error
        if settings.get("model_type") != "qwen2_5_vl":
            raise UserError(f"{beside} is of a {settings.get('model_type')} model, not of a qwen2_5_vl")
        return Qwen2_5_VLConfig.from_dict(settings)
    header = parts[0][1]
    arguments = config_arguments(_shapes(parts), Geometry.of(header), str(file))
    arguments["text_config"] |= {"bos_token_id": None, "eos_token_id": None}  # the published ones need not be in this vocabulary
    return Qwen2_5_VLConfig(**{**arguments, **ids})


def _shapes(parts: list[tuple[Path, Header]]) -> dict[str, tuple[int, ...]]:
    return {own: info.shape for _, header in parts for name, info in header.tensors.items() if (own := _weight_name(name)) is not None}


def _weight_name(name: str) -> str | None:
    """As `own_name`, without the scales of 8-bit weights."""
    return None if name.endswith(_SCALES) else own_name(name)


def _check(model: nn.Module, found: Mapping[str, tuple[int, ...]], optional: Collection[str], file: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    missing = [name for name in wanted if name not in found and name not in optional]
    surplus = [name for name in found if name not in wanted]
    shaped = [f"{name} {list(found[name])}, not {list(wanted[name])}" for name in found if name in wanted and found[name] != wanted[name]]
    for what, names in (("missing", missing), ("unknown", surplus), ("of another shape", shaped)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UserError(f"{file} is not a Qwen2.5-VL this program knows: tensors are {what}: {', '.join(names[:_SHOWN])}{more}")


def _scales(part: Path, header: Header) -> list[tuple[str, Tensor]]:
    """(name of the weight, its scale) for the 8-bit weights of one file, in either of ComfyUI's namings."""
    found: list[tuple[str, TensorInfo]] = [(name, info) for name, info in header.tensors.items() if name.endswith(_SCALES)]
    with part.open("rb") as opened:
        read = [(name, read_tensor(opened, name, info, part).float()) for name, info in found]
    return [(str(own_name(f"{name.rpartition('.')[0]}.weight")), scale) for name, scale in read]


def _put(model: nn.Module, name: str, tensor: Tensor, scale: Tensor | None, dtype: torch.dtype, *, quantise: bool) -> None:
    """Give the module its tensor `name`; a linear layer whose weight is (to be) in 8 bits is replaced."""
    path, _, leaf = name.rpartition(".")
    owner = _owner(model, name)
    linear = owner if isinstance(owner, nn.Linear) and leaf == "weight" else None
    if linear is not None and tensor.dtype == FP8:
        factor = torch.ones(()) if scale is None else scale.flatten() if scale.numel() > 1 else scale.reshape(())
        _replace(model, path, Fp8Linear(tensor, factor.to(tensor.device), linear.bias))
    elif linear is not None and quantise and path != _OUTPUT:
        _replace(model, path, Fp8Linear(*quantised(tensor), linear.bias))
    else:
        plain = tensor.to(dtype) if scale is None else (tensor.float() * scale.to(tensor.device)).to(dtype)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(plain, requires_grad=False)
        else:
            owner._buffers[leaf] = plain


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    setattr(_owner(model, path), path.rpartition(".")[2], layer)


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The module that holds the parameter, buffer or module `name`."""
    return model.get_submodule(name.rpartition(".")[0])
