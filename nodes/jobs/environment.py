"""The child's environment: ours without what would make its python load ComfyUI's packages or settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ...backend.musubi_backend.encoders.token_files import COMFYUI_VARIABLE
from ...backend.musubi_backend.job import JOB_DIR_VARIABLE
from ...backend.musubi_backend.threads import PASSIVE

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_DROPPED = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONEXECUTABLE",
    "PYTHONPLATLIBDIR",
    "PYTHONINSPECT",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    # ComfyUI's allocator choice is made for inference in its own process
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
)
_SET = {
    "PYTHONNOUSERSITE": "1",
    "PYTHONUTF8": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def child_environment(job_dir: str, extra: Mapping[str, str] | None = None, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a job. `base` defaults to this process's."""
    kept = {key: value for key, value in (os.environ if base is None else base).items() if key.upper() not in _DROPPED}
    return {**PASSIVE, **_comfyui(), **kept, **_SET, **(extra or {}), JOB_DIR_VARIABLE: job_dir}


def _comfyui() -> dict[str, str]:
    """Where the ComfyUI is that runs us, for the tokenizers it brings along; nothing when none does. What the user has set counts more."""
    module = sys.modules.get("folder_paths")
    source = getattr(module, "__file__", None)
    return {COMFYUI_VARIABLE: str(Path(source).absolute().parent)} if source else {}


def visible_gpus(count: int) -> list[str]:
    """The names of `count` GPUs for CUDA_VISIBLE_DEVICES: those this process was given, else their numbers."""
    given = [name.strip() for name in os.environ.get(GPU_VARIABLE, "").split(",") if name.strip()]
    return (given or [str(number) for number in range(count)])[:count]
