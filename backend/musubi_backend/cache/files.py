"""Cache files: safetensors with musubi-tuner's keys and metadata, written atomically."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..weights import safetensors_file
from . import tensor_keys
from .forms import Form, stored_names, unfit_values
from .headers import FORMAT_VERSION, check_cache, check_form

if TYPE_CHECKING:
    from torch import Tensor

    from ..architectures.card import Card

logger = logging.getLogger(__name__)


def save_latents(path: Path, tensors: Mapping[str, Tensor], card: Card, *, width: int, height: int, frame_count: int | None = None) -> None:
    """Write one latent cache.

    tensors            by base name; "latents" [C, F, H, W] or [C, H, W] is the main one (on any device)
    width, height      as in the file name: of the original image, or of the resized clip
    frame_count        pixels frames of the window; None for images
    """
    main = tensors[tensor_keys.LATENTS]
    sides = (1, *main.shape[1:]) if card.named_with_frame and main.ndim == 3 else main.shape[1:]
    stored = {}
    for base, tensor in tensors.items():
        dtype = main.dtype if tensor.is_floating_point() else tensor.dtype
        stored[tensor_keys.stored_latent_name(base, sides, _dtype_name(dtype))] = tensor
    metadata = {"architecture": card.name, "width": str(width), "height": str(height), "format_version": FORMAT_VERSION}
    if frame_count is not None:
        metadata["frame_count"] = str(frame_count)
    _write(path, stored, metadata)


def save_text(path: Path, tensors: Mapping[str, Tensor], card: Card, *, caption: str) -> None:
    """Write one text cache, or add to it: keys of an existing file that are not written anew are kept (an architecture with
    two text encoders caches them one after the other), and so is its metadata. UserError when the file belongs to another
    architecture or is damaged."""
    stored = {tensor_keys.stored_text_name(base, _dtype_name(tensor.dtype)): tensor for base, tensor in tensors.items()}
    metadata = {"architecture": card.name, "caption1": caption, "format_version": FORMAT_VERSION}
    if path.exists():
        header = check_cache(path, card)
        if header.metadata.get("caption1") != caption:
            logger.warning(f"caption mismatch: existing={header.metadata.get('caption1')}, new={caption}, overwrite")
        metadata = {**header.metadata, **metadata}
        renewed = {tensor_keys.without_dtype(name) for name in stored}
        if any(tensor_keys.without_dtype(name) not in renewed for name in header.tensors):
            existing = safetensors_file.load(path)
            stored |= {name: tensor for name, tensor in existing.items() if tensor_keys.without_dtype(name) not in renewed}
    _write(path, stored, metadata)


def load_trained(path: Path, card: Card, forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """Of a cache file the tensors that `forms` name, called as training calls them, but still with `varlen_`. UserError names a
    damaged file, one of another architecture, and one whose tensors are not as the forms say."""
    header = check_cache(path, card)
    check_form(path, header, forms)
    names = stored_names(header, forms)
    loaded = {}
    try:
        with path.open("rb") as file:
            for name, called in sorted(names.items(), key=lambda pair: header.tensors[pair[0]].start):
                loaded[called] = safetensors_file.read_tensor(file, name, header.tensors[name], path)
                reason = unfit_values(loaded[called], forms[tensor_keys.base_name(name)])
                if reason is not None:
                    raise UserError(f"{path}: {name} {reason}; delete it and cache again")
    except OSError as error:
        raise UserError(f"the cache file {path} cannot be read: {error.strerror or error}") from error
    return loaded


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    clean = {name: _without_nan(name, tensor, path) for name, tensor in tensors.items()}
    try:
        safetensors_file.save_atomic(clean, path, metadata)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}. Is the disk full or the folder read-only?") from error


def _without_nan(name: str, tensor: Tensor, path: Path) -> Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point() or tensor.element_size() == 1 or bool(tensor.isfinite().all()):
        return tensor
    if bool(tensor.isnan().all()) or bool(tensor.isinf().any()):
        raise UserError(
            f"{path.name}: the model that encodes gave no numbers for {name} (NaN or infinite). Its file is damaged, or the dtype that it "
            "computes in is too narrow: fetch it again, or choose another dtype"
        )
    logger.warning(f"{name} tensor has NaN: {path}, replace NaN with 0")
    return tensor.masked_fill(tensor.isnan(), 0)


def _dtype_name(dtype: object) -> str:
    return str(dtype).rsplit(".", 1)[-1]
