"""Reading an encoder's weight file after checking by its keys that it is the right one: .safetensors, or .pth as weights only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..weights import safetensors_file
from ..weights.recognise import PICKLE_SUFFIXES, PREFIXES, expect

if TYPE_CHECKING:
    from torch import Tensor


def read_state_dict(path: str | Path, kind: str, flag: str) -> dict[str, Tensor]:
    """All tensors of `path`, a common prefix like "vae." taken off their names. Names are judged before any tensor is read.

    UserError names the file and `flag` when it is missing, damaged or not of `kind`.
    """
    file = Path(path)
    expect(file, kind, flag)
    tensors = _read_pickle(file, flag) if file.suffix.lower() in PICKLE_SUFFIXES else safetensors_file.load(file)
    prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _read_pickle(path: Path, flag: str) -> dict[str, Tensor]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{flag}: {path} is not a PyTorch weight file or is damaged ({str(error).splitlines()[0]})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{flag}: {path} does not hold a plain set of tensors")
    return content
