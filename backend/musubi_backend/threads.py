"""How many CPU threads a tool computes with, and that they sleep while they wait for each other.

OpenMP's threads spin while they wait. Beside other programs the thread that all wait for may have no processor, and those that spin
keep it from getting one: steps of 0.05 s took more than a second. What is set here is read when the first library loads OpenMP, so it is
set before that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .options.option import CACHE_LATENTS, LORA_CONVERT, LORA_EMA, LORA_MERGE
from .options.settings import Settings

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Environment of any process that computes: no spinning, for GNU's OpenMP (Linux) and for Intel's and LLVM's (Windows, macOS)."""
COUNT = "OMP_NUM_THREADS"
"""Read by OpenMP, MKL and OpenBLAS."""

_LARGE = 64_000_000
"""Bytes of a model file from which on threads gain: below it (demo models), sharing a product takes longer than computing it."""
_MODELS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_SIDE_BY_SIDE = (LORA_CONVERT, LORA_EMA, LORA_MERGE)


@dataclass(frozen=True)
class ThreadSettings(Settings):
    """What the number of threads follows from, besides the model files."""

    cpu_threads: int | None = None
    num_workers: int | None = None
    device: str | None = None
    dit: str | None = None


def prepare(verb: str, settings: ThreadSettings, files: Iterable[str]) -> None:
    """Set the environment for `verb`: passive waiting unless the user has chosen another, and `--cpu_threads`, else what the user has
    set as OMP_NUM_THREADS, else what fits the work. files: as for `fitting`."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
    if settings.cpu_threads:
        os.environ[COUNT] = str(settings.cpu_threads)
    else:
        os.environ.setdefault(COUNT, str(fitting(verb, settings, files)))


def fitting(verb: str, settings: ThreadSettings, files: Iterable[str]) -> int:
    """How many threads `verb` gains from. It follows from the settings, the model files and the machine, never from its load: another
    number adds in another order, and the same run is to give the same bits. files: the paths it was given, models among them.

    One where a GPU computes, where the models are tiny, and where tensors are worked on side by side. Otherwise the processors, shared
    with the other processes of a training, and with media decoders beyond the one that mostly waits for the encoder.
    """
    if verb in _SIDE_BY_SIDE or _expects_gpu(settings.device) or not _has_large_model(settings.dit, files):
        return 1
    share = processors() // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    if verb == CACHE_LATENTS and settings.num_workers:
        share -= settings.num_workers - 1
    return max(1, share)


def decoders(num_workers: int | None) -> int:
    """How many media are decoded at a time: `--num_workers`, else as many as computing leaves processors."""
    return num_workers or max(1, processors() - _computing())


def processors() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _computing() -> int:
    text = os.environ.get(COUNT, "").split(",")[0].strip()  # a list counts levels of nesting
    return int(text) if text.isdecimal() else processors()


def _expects_gpu(device: str | None) -> bool:
    """Will a GPU compute? Told without importing PyTorch, which would load OpenMP."""
    if device:
        return not device.startswith("cpu")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    from importlib import metadata  # not for those who only ask for help

    try:
        return sys.platform != "darwin" and "+cpu" not in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


def _has_large_model(dit: str | None, files: Iterable[str]) -> bool:
    models = (Path(file) for file in files if file.lower().endswith(_MODELS))
    return (dit is not None and Path(dit).is_dir()) or any(model.is_file() and model.stat().st_size >= _LARGE for model in models)
