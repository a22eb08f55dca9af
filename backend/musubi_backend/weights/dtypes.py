"""Number formats as people write them on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..device import computed_in
from ..errors import UserError

if TYPE_CHECKING:
    import torch

_NAMES = {
    "float32": "float32", "fp32": "float32", "float": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "half": "float16",
}  # fmt: skip


def dtype_named(name: str, flag: str) -> torch.dtype:
    """The format called `name` ("bf16", "float16", ...). UserError naming `flag` for others."""
    import torch

    full = _NAMES.get(name.lower().removeprefix("torch."))
    if full is None:
        raise UserError(f"{flag} {name} is not known; use float32, bfloat16 or float16")
    dtype: torch.dtype = getattr(torch, full)
    return dtype


def kept_and_computed(name: str | None, unset: str, flag: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(what results are kept in, what is computed in): both the format called `name`, or where there is none, `unset`, computed as
    `device.computed_in` says. UserError as `dtype_named`."""
    kept = dtype_named(name or unset, flag)
    return kept, kept if name else computed_in(kept, device)
