"""Settings that need a package which not every installation has, looked up in the backend's environment before anything is cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.optimizers.registry import find
from .jobs import config as configuration

_ATTENTION = {"flash_attn": "flash_attn", "flash3": "flash_attn_interface", "xformers": "xformers"}


def problems(home: Path, values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each package that is missing. Silent where the environment is not laid out as we know it.

    values: option name -> value of a training or generation.
    """
    settings = configuration.load(home)
    packages = None if settings.interpreter is None or settings.engine != "builtin" else _site_packages(settings.interpreter)
    if packages is None:
        return
    kind = str(values.get("optimizer_type", ""))
    entry = find(kind)
    needed = entry.needs if entry is not None else "bitsandbytes" if kind.lower().endswith("8bit") and "." not in kind else ""
    if needed and not (packages / needed).is_dir():
        yield f"optimizer_type: {kind} needs the package {needed}: run install.py --with optimizers, or choose adamw in Optimizer Config"
    if values.get("log_with") in ("wandb", "all") and not (packages / "wandb").is_dir():
        yield (
            f"log_with: {values['log_with']} needs the package wandb: run install.py --with wandb, or choose tensorboard in Expert Settings"
        )
    for name, package in _ATTENTION.items():
        if values.get(name) and not (packages / package).is_dir() and not (packages / f"{package}.py").is_file():
            yield f"attention: {name} needs the package {package}, which is not in the backend's environment; sdpa always works"


def _site_packages(interpreter: Path) -> Path | None:
    """Where the packages of a virtual environment lie: the folder that has torch."""
    base = interpreter.parent.parent
    return next(
        (torch.parent for pattern in ("lib/python3*/site-packages/torch", "Lib/site-packages/torch") for torch in base.glob(pattern)), None
    )
