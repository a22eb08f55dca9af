"""`--device`: which device a tool computes on, or why it cannot be the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str | None) -> torch.device:
    """The device called `name`, else the first GPU, else the CPU. Imports torch.

    UserError for a name PyTorch does not know, and for a GPU that is not there.
    """
    import torch

    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: {name!r} is no device; it is called cuda, cuda:1, ... or cpu") from None
    if device.type == "cuda":
        _check_gpu(device)
    return device


def _check_gpu(device: torch.device) -> None:
    import torch

    if not torch.cuda.is_available():
        why = "finds none" if torch.version.cuda or torch.version.hip else "is the build for the CPU"
        raise UserError(
            f"--device {device}: PyTorch cannot use a GPU here, it {why}. Leave --device out to compute on the CPU; "
            "`python install.py --doctor` says what is missing"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"--device {device}: this machine has {count} GPU{'s' if count > 1 else ''}, counted from cuda:0")
