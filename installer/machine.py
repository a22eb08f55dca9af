"""What the machine offers: NVIDIA driver, free disk space, tools for making environments."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .console import output_of

SUPPORTED = ((3, 10), (3, 13))
GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """`memory_gib` is None where it is shared with the processor; `capability` where an old driver cannot say it."""

    name: str
    memory_gib: float | None
    driver: str
    capability: tuple[int, int] | None = None


def supported(version: tuple[int, int]) -> bool:
    return SUPPORTED[0] <= version <= SUPPORTED[1]


def supported_text() -> str:
    return f"{SUPPORTED[0][0]}.{SUPPORTED[0][1]} to {SUPPORTED[1][0]}.{SUPPORTED[1][1]}"


def nvidia_gpus() -> list[Gpu]:
    """The GPUs that the NVIDIA driver reports; none without a driver."""
    program = shutil.which("nvidia-smi") or _windows_nvidia_smi()
    if program is None:
        return []
    lines = None
    for query in ("name,memory.total,driver_version,compute_cap", "name,memory.total,driver_version"):
        lines = lines or output_of([program, f"--query-gpu={query}", "--format=csv,noheader,nounits"])
    return [gpu for line in (lines or "").splitlines() if (gpu := _gpu(line))]


def _gpu(line: str) -> Gpu | None:
    """From `NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9`; a field that the driver does not know reads `[N/A]`."""
    fields = [part.strip() for part in line.split(",")]
    if len(fields) < 3:
        return None
    memory = float(fields[1]) / 1024 if re.fullmatch(r"[\d.]+", fields[1]) else None
    capability = re.fullmatch(r"(\d+)\.(\d+)", fields[3]) if len(fields) > 3 else None
    return Gpu(fields[0], memory, fields[2], (int(capability[1]), int(capability[2])) if capability else None)


def _windows_nvidia_smi() -> str | None:
    path = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvidia-smi.exe"
    return str(path) if sys.platform == "win32" and path.is_file() else None


def free_gib(folder: Path) -> float:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GIB


def can_make_environments(executable: str = sys.executable) -> bool:
    """Whether the python that runs this has venv and pip's installer; Windows' portable python and some Linux packages have not."""
    if any(Path(executable).parent.glob("python3*._pth")):
        return False
    return all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip"))


def find_uv(home: Path) -> list[str] | None:
    """How to start uv: the program, the module of this python (ComfyUI-Manager brings it), or the one we put in `<home>/tools`."""
    own = home / "tools" / "bin" / ("uv.exe" if sys.platform == "win32" else "uv")
    program = shutil.which("uv")
    candidates = [[program]] if program else []
    if importlib.util.find_spec("uv") is not None:
        candidates.append([sys.executable, "-m", "uv"])
    if own.is_file():
        candidates.append([str(own)])
    return next((command for command in candidates if output_of([*command, "--version"])), None)
