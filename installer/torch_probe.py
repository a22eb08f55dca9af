"""Runs in the backend's environment, by its path: prints as JSON what the installed torch is, and whether the GPUs it sees compute."""

from __future__ import annotations

import json
from typing import Any


def main() -> None:
    import torch

    available = torch.cuda.is_available()
    devices = [_device(torch, number) for number in range(torch.cuda.device_count())] if available else []
    architectures = torch.cuda.get_arch_list() if available else []
    said = {"version": torch.__version__, "cuda": torch.version.cuda, "available": available}
    print("\n" + json.dumps({**said, "architectures": architectures, "devices": devices}))


def _device(torch: Any, number: int) -> dict[str, Any]:
    error = None
    try:
        found = int((torch.arange(8, device=f"cuda:{number}") + 1).sum().item())
        if found != 36:
            error = f"1 + ... + 8 is {found}"
    except Exception as raised:  # whatever the driver and the library say
        error = str(raised).strip().splitlines()[0]
    return {
        "name": torch.cuda.get_device_name(number),
        "capability": list(torch.cuda.get_device_capability(number)),
        "error": error,
    }


if __name__ == "__main__":
    main()
