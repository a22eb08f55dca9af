"""Regional compilation: each block is compiled, not the model around them.

Blocks of one list share their code, so PyTorch compiles it once for all of them (and again for each new size, unless asked to be
dynamic). Checkpointing and block streaming happen outside of what is compiled, fp8 weights and LoRAs inside.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..device import check_capability
from ..errors import UserError
from .settings import CompileSettings

logger = logging.getLogger(__name__)

_DYNAMIC = {"true": True, "false": False, "auto": None, None: None}
_OLD_LIMIT = 32  # versions per block with `--compile_args`, as musubi-tuner has it
_FIXED_ADDRESSES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Compilation:
    """torch.compile's settings. limit: how many versions of a block's code are kept; None is PyTorch's own."""

    backend: str = "inductor"
    mode: str = "default"
    dynamic: bool | None = None
    fullgraph: bool = False
    limit: int | None = None

    @classmethod
    def chosen(cls, settings: CompileSettings) -> Compilation | None:
        """By `--compile...`, or the trainers' `--dynamo_...`; None where nothing is to be compiled. Imports nothing."""
        if settings.compile and settings.compile_args:
            backend, mode, dynamic, fullgraph = settings.compile_args
            return cls(backend, mode, _dynamic(dynamic), fullgraph.lower() == "true", _OLD_LIMIT)
        if settings.compile:
            dynamic_or_not = _dynamic(settings.compile_dynamic)
            limit = settings.compile_cache_size_limit
            return cls(settings.compile_backend, settings.compile_mode, dynamic_or_not, settings.compile_fullgraph, limit)
        if settings.dynamo_backend != "NO":
            dynamo = settings.dynamo_backend.lower(), settings.dynamo_mode or "default", settings.dynamo_dynamic or None
            return cls(*dynamo, settings.dynamo_fullgraph)
        return None

    def check(self, device: torch.device, swapping: bool) -> None:
        """UserError where this cannot work: an unknown compiler, or one whose own tools are missing."""
        import torch._dynamo

        known = torch._dynamo.list_backends(exclude_tags=())
        if self.backend not in known:
            raise UserError(f"--compile_backend {self.backend}: this PyTorch has {', '.join(known)}")
        graphs = self.mode in _FIXED_ADDRESSES or self.backend == "cudagraphs"
        if graphs and (swapping or device.type == "cuda"):
            why = "blocks of --blocks_to_swap have none of their own" if swapping else "blocks that share their code overwrite each other's"
            chosen = "--compile_backend cudagraphs" if self.backend == "cudagraphs" else f"--compile_mode {self.mode}"
            raise UserError(f"{chosen} records memory addresses, and {why}; use --compile_mode default or max-autotune-no-cudagraphs")
        if self.backend == "inductor" and device.type == "cuda":
            check_capability(device, (8, 0), "--compile needs a GPU that triton makes code for")
            from torch.utils._triton import has_triton_package

            if not has_triton_package():
                raise UserError("--compile needs the package triton (on Windows: triton-windows) in the backend's environment")
            if missing := _triton_lacks():
                raise UserError(f"--compile needs {missing}, with which triton builds what starts its kernels; it was not found")
        # a model that is loaded into system RAM may still compute on a GPU
        if self.backend == "inductor" and device.type == "cpu" and not torch.cuda.is_available() and not _has_cpp_compiler():
            raise UserError("--compile on the CPU needs a C++ compiler (g++, clang++ or cl), and none was found")

    def compile(self, blocks: Iterable[nn.Module]) -> None:
        """Have every block compiled at its first call."""
        import torch._dynamo.config

        if self.limit is not None:
            torch._dynamo.config.recompile_limit = self.limit
        logger.info(
            "Compiling DiT model with torch.compile: backend=%s, mode=%s, dynamic=%s, fullgraph=%s",
            self.backend, self.mode, self.dynamic, self.fullgraph,
        )  # fmt: skip
        for block in blocks:
            block.compile(backend=self.backend, mode=self.mode, dynamic=self.dynamic, fullgraph=self.fullgraph)


def _dynamic(text: str | None) -> bool | None:
    value = text.lower() if text else None
    if value not in _DYNAMIC:
        raise UserError(f"--compile_args: the third value must be true, false or auto, not {text}")
    return _DYNAMIC[value]


def _triton_lacks() -> str:
    """What triton builds its launchers with and this machine has not, as many images for containers; "" where it has all. triton-windows
    brings its own."""
    if sys.platform == "win32":
        return ""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc or clang; on Debian and Ubuntu `apt-get install gcc`)"
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    if not any(Path(folder, "Python.h").is_file() for folder in folders if folder):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Python's headers (Python.h; on Debian and Ubuntu `apt-get install python{version}-dev`)"
    return ""


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if name)
