"""Reading an encoder's weight file after checking by its keys that it is the right one: .safetensors, or .pth as weights only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..weights import safetensors_file
from ..weights.quantised import is_matrix, unread
from ..weights.recognise import PICKLE_SUFFIXES, PREFIXES, expect

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_state_dict(path: str | Path, kind: str, flag: str, device: torch.device) -> dict[str, Tensor]:
    """All tensors of `path`, a common prefix like "vae." taken off their names. Names are judged before any tensor is read.

    device: where they are going to be; for "meta" they are only described, and for others they come to system RAM first.

    UserError names the file and `flag` when it is missing, damaged or not of `kind`.
    """
    from ..weights.loader import read_pickled

    file = Path(path)
    expect(file, kind, flag)
    if file.suffix.lower() in PICKLE_SUFFIXES:
        tensors = read_pickled(file)
    elif device.type == "meta":
        tensors = safetensors_file.describe(file)
    else:
        tensors = safetensors_file.load(file)
    for name, tensor in tensors.items():
        if is_matrix(name, tensor.shape) and not tensor.is_floating_point():
            raise unread(file, name, str(tensor.dtype).removeprefix("torch."))
    prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), "")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
