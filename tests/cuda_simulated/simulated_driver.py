"""Puts the driver that does nothing (`guard.cpp`) under PyTorch. Has to happen before torch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GUARD = Path(__file__).with_name("guard.cpp")


def lacking() -> str | None:
    """Why there can be no simulated GPU here; None where there can."""
    if sys.platform != "linux":
        return "a simulated GPU is made on Linux only"
    torch = _torch()
    if (torch / "lib" / "libtorch_cuda.so").exists():
        return "this PyTorch has a real CUDA driver's code; the simulated one needs the build for the CPU"
    return None if _compiler() else "the simulated GPU needs a C++ compiler (g++ or clang++)"


def load() -> None:
    """Compile the driver, once per version of it and of PyTorch, and load it."""
    assert "torch" not in sys.modules, "torch has looked for a driver already"
    torch = _torch()
    name = hashlib.sha256(GUARD.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"simulated_cuda_{os.getuid()}" / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        folders = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        words = [str(_compiler()), "-O0", "-std=c++20", "-shared", "-fPIC", str(GUARD), "-o", str(made), *folders]
        subprocess.run(words, check=True)
        made.replace(library)
    for path in (torch / "lib/libc10.so", torch / "lib/libtorch_cpu.so", library):
        _loaded.append(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))


def choose_device(index: int) -> None:
    """Which GPU is the current one."""
    _loaded[-1].choose_device(index)


_loaded: list[ctypes.CDLL] = []


def _compiler() -> str | None:
    return next((found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None)


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
