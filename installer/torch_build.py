"""Which build of PyTorch suits the machine, and where it comes from.

pytorch.org keeps one package index per build; a build is asked for by its local version, as in `torch==2.13.0+cpu`. Sources that
the user configured for pip (a mirror, a folder of wheels) are asked as well and win where they have it. `torch_builds.json` holds
what the CUDA builds of the pinned release need.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .console import CommandFailed, Console, InstallError, answer_of
from .environment import python_of
from .machine import Gpu
from .packages import Packages

INDEX = "https://download.pytorch.org/whl/"
_BUILDS = json.loads(Path(__file__).with_name("torch_builds.json").read_text(encoding="utf-8"))
_PROBE = Path(__file__).with_name("torch_probe.py")

Version = tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """A CUDA build of PyTorch: the oldest driver it runs with, and the architectures it has kernels for."""

    name: str
    driver: Version
    architectures: tuple[Version, ...]

    def serves(self, capability: Version | None) -> bool:
        return capability is None or has_kernels(self.architectures, capability)

    def runs_with(self, driver: str) -> bool:
        """A driver of unknown version is taken for a new one."""
        return not driver[:1].isdigit() or _version(driver) >= self.driver


@dataclass(frozen=True)
class Choice:
    """`build` is None where it does not matter; `why` and `advice` (what keeps a GPU from being used) are for people."""

    kind: str
    build: str | None
    why: str
    advice: str | None = None


@dataclass(frozen=True)
class Torch:
    """What the installed torch says of itself. `cuda` is None for a CPU build; `problems`: why a GPU it sees cannot compute."""

    version: str
    cuda: str | None
    available: bool
    problems: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "cuda" if self.cuda else "cpu"


def cuda_builds() -> list[Build]:
    """The CUDA builds for this system, the preferred one first."""
    system = "windows" if sys.platform == "win32" else "linux"
    machine = "aarch64" if platform.machine().lower() in {"aarch64", "arm64"} else "x86_64"
    return [
        Build(entry["name"], _version(entry["driver"][system]), tuple(_version(text) for text in entry["architectures"][machine]))
        for entry in _BUILDS["builds"]
    ]


def has_kernels(architectures: Sequence[Version], capability: Version) -> bool:
    """Whether a GPU runs kernels of one of these architectures: those of its own major number that are no newer than it."""
    return any(major == capability[0] and minor <= capability[1] for major, minor in architectures)


def choose(wanted: str, gpus: list[Gpu], installed: str | None = None) -> Choice:
    """wanted: "auto", "cpu" or "cuda". `installed` is the kind of torch that is there: a CUDA build stays while the driver is absent.

    With several GPUs, the build that most of them can use. InstallError if CUDA is asked for and no build has kernels for any GPU.
    """
    if sys.platform == "darwin":
        return Choice("default", None, "macOS")
    if wanted == "cpu":
        return Choice("cpu", "cpu", "asked for with --cpu")
    if gpus:
        return _for_gpus(wanted, gpus)
    if wanted == "cuda":
        return Choice("cuda", cuda_builds()[0].name, "asked for with --cuda")
    if installed == "cuda":
        return Choice("cuda", None, "a CUDA build is installed already, though no NVIDIA driver answers now")
    return Choice("cpu", "cpu", "no NVIDIA driver found")


def _for_gpus(wanted: str, gpus: list[Gpu]) -> Choice:
    builds, driver = cuda_builds(), gpus[0].driver
    ready = [build for build in builds if build.runs_with(driver)]
    waiting = sorted((build for build in builds if build not in ready), key=lambda build: build.driver)  # what asks least first
    best = next((build for some in (ready, waiting) if (build := _of_most_use(some, gpus))), None)
    if best is None:
        text = f"no build of PyTorch {_BUILDS['torch']} has kernels for {', '.join(_title(gpu) for gpu in gpus)}"
        if wanted == "cuda":
            raise InstallError(f"{text}, so CUDA cannot be used. Install the CPU build: python install.py --cpu")
        return Choice("cpu", "cpu", text, f"{text}; jobs run on the CPU.")
    advice = []
    for gpu in gpus:
        if best in ready and best.serves(gpu.capability):
            continue
        needed = best if best.serves(gpu.capability) else next((build for build in waiting if build.serves(gpu.capability)), None)
        if needed in waiting and needed:
            version = ".".join(str(part) for part in needed.driver)
            advice.append(
                f"{_title(gpu)} needs the NVIDIA driver {version} or newer for PyTorch {_BUILDS['torch']}; {driver} is installed. "
                "Update the driver, then run: python install.py --auto"
            )
        else:
            advice.append(f"{_title(gpu)} cannot be used: {best.name}, which suits the others, has no kernels for it.")
    used = next(gpu for gpu in gpus if best.serves(gpu.capability))
    return Choice("cuda", best.name, f"{_title(used)}, driver {driver}", "\n".join(advice) or None)


def _of_most_use(builds: list[Build], gpus: list[Gpu]) -> Build | None:
    """The build that serves most of the GPUs, the first of equals; None if none serves any."""
    best = max(builds, key=lambda build: sum(build.serves(gpu.capability) for gpu in gpus), default=None)
    return best if best and any(best.serves(gpu.capability) for gpu in gpus) else None


def _title(gpu: Gpu) -> str:
    return gpu.name + (f" (compute capability {'.'.join(str(part) for part in gpu.capability)})" if gpu.capability else "")


def _version(text: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def pinned_version(constraints: Path) -> str:
    """The torch version in the constraints file."""
    match = re.search(r"^torch==([\w.]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ValueError(f"{constraints} has no line torch==<version>")
    return match.group(1)


def fits(choice: Choice, installed: Torch | None, version: str) -> bool:
    """Whether the torch that is there is the one to have."""
    if installed is None or installed.version.partition("+")[0] != version:
        return False
    if choice.kind == "default":
        return True
    built_for = "cu" + (installed.cuda or "").replace(".", "")
    return choice.kind == installed.kind and choice.build in (None, "cpu", built_for)


def ask(environment: Path) -> Torch | None:
    """Import the installed torch, run a kernel on every GPU it sees, and return what it says; None if it does not start."""
    said = answer_of([str(python_of(environment)), "-I", str(_PROBE)])
    if said is None:
        return None
    architectures = [_architecture(name) for name in said["architectures"] if name.startswith("sm_")]
    problems = []
    for device in said["devices"]:
        capability = tuple(device["capability"])
        name = f"{device['name']} (compute capability {capability[0]}.{capability[1]})"
        if architectures and not has_kernels(architectures, capability):
            problems.append(f"PyTorch {said['version']} has no kernels for {name}: it has {', '.join(said['architectures'])}")
        elif device["error"]:
            problems.append(f"{name} does not compute: {device['error']}")
    return Torch(said["version"], said["cuda"], said["available"], tuple(problems))


def _architecture(name: str) -> Version:
    """ "sm_75" -> (7, 5), "sm_120" -> (12, 0), "sm_90a" -> (9, 0)"""
    digits = re.sub(r"\D", "", name)
    return int(digits[:-1]), int(digits[-1])


def install(choice: Choice, version: str, packages: Packages, console: Console, mirror: str | None, otherwise: str) -> None:
    """Install the chosen build; where pytorch.org (or its mirror) has none or is out of reach, what the configured sources offer.

    `otherwise`: "install" does that, "replace" even over a torch of the same version (it may be of another kind), "keep" leaves
    what is there.
    """
    if choice.build:
        base = (mirror or INDEX).rstrip("/") + "/" + choice.build
        try:
            packages.install([f"torch=={version}+{choice.build}"], indexes=(base,), links=(base + "/",) if mirror else (), alone=True)
            return
        except CommandFailed as error:
            if not _not_found(error):
                raise
            console.say(f"  {mirror or 'pytorch.org'} is out of reach or has no torch {version}+{choice.build}.")
    if otherwise == "keep":
        return
    console.say("  Asking the configured package sources.")
    packages.install([f"torch=={version}"], alone=True, again=otherwise == "replace")


def _not_found(error: CommandFailed) -> bool:
    text = error.tail.lower()
    return any(part in text for part in ("no matching distribution", "no solution found", "no version of", "failed to fetch", "not found"))
