"""Which build of PyTorch suits the machine, and where it comes from.

pytorch.org keeps one package index per build; a build is asked for by its local version, as in `torch==2.13.0+cpu`. Sources that
the user configured for pip (a mirror, a folder of wheels) are asked as well and win where they have it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .console import CommandFailed, Console
from .machine import Gpu
from .packages import Packages

_INDEX = "https://download.pytorch.org/whl/"
# Oldest Linux driver that runs a CUDA build (NVIDIA's compatibility table; minor versions of one major version are compatible).
_CUDA_BUILDS = (("cu130", 580), ("cu128", 525), ("cu126", 525))


@dataclass(frozen=True)
class Choice:
    """`builds` in the order they are tried; `why` is for people."""

    kind: str
    builds: tuple[str, ...]
    why: str


def choose(wanted: str, gpus: list[Gpu], installed: str | None = None) -> Choice:
    """wanted: "auto", "cpu" or "cuda". `installed` is the torch version that is there: a CUDA build stays while the driver is absent."""
    if sys.platform == "darwin":
        return Choice("default", (), "macOS")
    if wanted == "cpu":
        return Choice("cpu", ("cpu",), "asked for with --cpu")
    if wanted == "cuda" or gpus:
        why = f"{gpus[0].name}, driver {gpus[0].driver}" if gpus else "asked for with --cuda"
        major = int(gpus[0].driver.split(".")[0]) if gpus and gpus[0].driver[:1].isdigit() else 10_000
        builds = tuple(name for name, driver in _CUDA_BUILDS if major >= driver)
        return Choice("cuda", builds or (_CUDA_BUILDS[-1][0],), why)
    if installed and "+cu" in installed:
        return Choice("cuda", (), "a CUDA build is installed already, though no NVIDIA driver answers now")
    return Choice("cpu", ("cpu",), "no NVIDIA driver found")


def pinned_version(constraints: Path) -> str:
    """The torch version in the constraints file."""
    match = re.search(r"^torch==([\w.]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ValueError(f"{constraints} has no line torch==<version>")
    return match.group(1)


def fits(choice: Choice, installed: str | None, version: str) -> bool:
    """Whether the torch that is there is the one to have."""
    if installed is None or installed.partition("+")[0] != version:
        return False
    if choice.kind == "cpu":
        return "+cu" not in installed
    return choice.kind != "cuda" or "+cpu" not in installed


def install(choice: Choice, version: str, packages: Packages, console: Console) -> None:
    """Install the first build that can be had; where pytorch.org has none or is out of reach, what the configured sources offer."""
    for build in choice.builds:
        try:
            packages.install([f"torch=={version}+{build}"], indexes=(_INDEX + build,), alone=True)
            return
        except CommandFailed as error:
            if not _not_found(error):
                raise
            console.say(f"  pytorch.org is out of reach or has no torch {version}+{build}: asking the configured package sources.")
    packages.install([f"torch=={version}"], alone=True)


def _not_found(error: CommandFailed) -> bool:
    text = error.tail.lower()
    return any(part in text for part in ("no matching distribution", "no solution found", "no version of", "failed to fetch", "not found"))
