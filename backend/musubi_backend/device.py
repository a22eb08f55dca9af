"""`--device`: which device a tool computes on, or why it cannot be the one that was asked for; and what the CPU can do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .counted import counted
from .errors import UserError

if TYPE_CHECKING:
    import torch


_SERIES = {(7, 5): "RTX 20", (8, 0): "RTX 30", (8, 9): "RTX 40"}
"""The first GPUs of a compute capability, as people call them."""

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the old name


def pick_device(name: str | None) -> torch.device:
    """As `known_device`, for what is going to use it: from now on it is the current one. Imports torch."""
    import torch

    device = known_device(name)
    if device.type == "cuda" and device.index is not None:  # for packages that launch on the current one, and so that nothing takes
        torch.cuda.set_device(device)  # memory of another
    return device


def known_device(name: str | None) -> torch.device:
    """The device called `name`, else the first GPU, else the CPU; nothing of it is used. Imports torch.

    UserError for a name PyTorch does not know, and for a GPU that is not there.
    """
    import torch

    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown; use cuda, cuda:1 or cpu") from None
    if device.type == "cuda":
        _check_gpu(device)
    elif device.type not in ("cpu", "mps", "xpu"):
        raise UserError(f"--device {name!r} is not supported; use cuda, cuda:1 or cpu")
    return device


def is_older(device: torch.device, least: tuple[int, int]) -> bool:
    """Is it an NVIDIA GPU of a lower compute capability? Imports torch."""
    import torch

    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < least


def check_capability(device: torch.device, least: tuple[int, int], needs: str, instead: str = "") -> None:
    """UserError for a GPU that is too old. needs: as in "--w8a8 fp8 needs a GPU that multiplies fp8". instead: what else. Imports torch."""
    import torch

    if is_older(device, least):
        raise UserError(f"{needs} ({_SERIES[least]} or later); {torch.cuda.get_device_name(device)} does not{instead}")


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Has this CPU instructions for products in `dtype` (bfloat16 or float16)? Imports torch.

    Asks PyTorch's documented `torch.cpu.get_capabilities`; versions of PyTorch without it count as no, which costs memory, not hours.
    """
    import torch

    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    arm = {"bf16": ("bf16", "sve_bf16"), "fp16": ("fp16_arith",)}[short]
    return any(capabilities.get(name) for name in (f"avx512_{short}", f"amx_{short}", *arm))


def let_memory_grow() -> None:
    """On Linux: PyTorch takes a GPU's memory in segments that grow, so that batches of many sizes leave no holes. To be called before torch
    is imported; what the user has set counts more."""
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or float32 on a CPU that has no instructions for it: it would imitate it, up to 90 times slower. For everything whose
    dtype the user has not named. "meta" is the device that is planned for (`planned_for`). Imports torch."""
    import torch

    if device.type == "meta":
        device = _planned.get() or device
    return dtype if device.type != "cpu" or dtype == torch.float32 or cpu_computes_in(dtype) else torch.float32


@contextlib.contextmanager
def planned_for(device: torch.device) -> Iterator[None]:
    """Inside, what is planned on "meta" has the dtypes that it will have on `device`."""
    before = _planned.set(device)
    try:
        yield
    finally:
        _planned.reset(before)


_planned: ContextVar[torch.device | None] = ContextVar("planned", default=None)


def for_model(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A cached tensor where a model uses it: floats on `device`; masks and whole numbers on the CPU, where lengths and positions are read
    from them without waiting for the device."""
    return tensor.to(device, non_blocking=True) if tensor.is_floating_point() else tensor.cpu()


def release(device: torch.device) -> None:
    """Free what nothing refers to any more and what PyTorch keeps for later on `device`. Imports torch.

    Models of transformers and diffusers refer to themselves, so dropping the last name of one frees nothing until garbage is collected.
    """
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reserved_bytes(device: torch.device) -> int | None:
    """GPU memory that PyTorch holds for this process; None without a GPU. Imports torch."""
    import torch

    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


def resident_bytes() -> int:
    """System RAM of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


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
        raise UserError(f"--device {device}: this machine has {counted(count, 'GPU')}, counted from cuda:0")
