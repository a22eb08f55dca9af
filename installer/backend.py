"""The installation itself: environment, PyTorch, the backend and its packages, each a step that is skipped once done.

The backend is installed in place (its environment holds a link to `backend/`, no copy): an update of the pack, by git or by
ComfyUI-Manager, takes effect at once, and only changed requirements need another run. What was installed is recorded file by file;
what differs from that is installed again.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from . import machine, record, relocation, torch_build
from .console import Console, InstallError
from .environment import Contents, create, inspect, python_of
from .packages import Packages
from .settings import Settings
from .state import State, stamp_of

_NEEDED_GIB = {"cpu": 3.0, "default": 3.0, "cuda": 10.0}


@dataclass(frozen=True)
class Places:
    root: Path
    home: Path

    @property
    def environment(self) -> Path:
        return self.home / "venv"

    @property
    def backend(self) -> Path:
        return self.root / "backend"

    @property
    def constraints(self) -> Path:
        return self.backend / "constraints.txt"

    @property
    def config(self) -> Path:
        return self.home / "config.json"


def requirements_stamp(places: Places, python: str) -> str:
    """Changes with the backend's requirements and the python that runs it."""
    return stamp_of(places.backend / "pyproject.toml", places.constraints, python)


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. `torch`: "auto", "cpu", "cuda", or None for what was chosen last; `torch_index`: a mirror of
    pytorch.org's package index, "default" for itself, or None likewise."""

    extras: tuple[str, ...] = ()
    torch: str | None = None
    torch_index: str | None = None

    @property
    def torch_by_hand(self) -> bool:
        return self.torch is not None or self.torch_index is not None


def ensure(places: Places, console: Console, wanted: Wanted) -> Path:
    """Bring the environment up to date and return its python. InstallError says what failed; running it again continues from there."""
    started = time.monotonic()
    state = State.load(places.home)
    if wanted.torch is not None:
        state.remember("torch", wanted.torch)
    if wanted.torch_index is not None:
        state.remember("torch_index", None if wanted.torch_index == "default" else _index(wanted.torch_index))
    installation = _Installation(places, console, state)
    changed = installation.run(wanted)
    settings = Settings(places.config, console)
    settings.use_interpreter(python_of(places.environment))
    settings.save()
    if changed:
        console.say(f"Installed in {time.monotonic() - started:.0f} s: {places.environment}")
    else:
        console.say(f"Everything is installed already: {places.environment}")
    return python_of(places.environment)


def _index(url: str) -> str:
    if urlparse(url).scheme not in {"https", "http", "file"}:
        raise InstallError(f"--torch-index {url}: give the URL of a mirror of {torch_build.INDEX} (the folder that holds cu126, cpu, ...)")
    return url


class _Installation:
    def __init__(self, places: Places, console: Console, state: State) -> None:
        self.places = places
        self.console = console
        self.state = state
        self.changed = False

    @functools.cached_property
    def packages(self) -> Packages:
        return Packages(self.places.environment, self.places.home, self.console)

    def run(self, wanted: Wanted) -> bool:
        contents, extras = self._environment()
        extras = (*dict.fromkeys((*extras, *wanted.extras)),)
        self._relocate()
        requirements = requirements_stamp(self.places, contents.series)
        choice = self._torch(contents, wanted)
        self._backend("backend", "", requirements, "the backend and its packages")
        if self._check_torch(choice, wanted) == "cuda":
            extras = ("gpu", *extras)
        for extra in extras:
            self._backend(f"extra {extra}", f"[{extra}]", requirements, f"packages for {_PURPOSE[extra]}")
        if self.changed or not (self.places.home / record.FILE).is_file():
            record.write(self.places.home, self.places.environment)
        return self.changed

    def _environment(self) -> tuple[Contents, tuple[str, ...]]:
        """What is there, and the extras of which something has to be installed again."""
        contents = inspect(self.places.environment)
        if contents is not None and self.state.done("environment", contents.series):
            return self._repair(contents)
        if self.places.environment.exists():
            self._announce("The environment is broken or was never finished: making it anew.")
        self._announce(f"Making an environment for the backend in {self.places.environment}")
        self.state.forget()
        self._begin("environment")
        create(self.places.environment, self.places.home, self.console)
        made = inspect(self.places.environment)
        if made is None:
            raise InstallError(f"the python in {self.places.environment} does not run. Delete that folder and run install.py again.")
        self.state.finish("environment", made.series)
        return made, ()

    def _repair(self, contents: Contents) -> tuple[Contents, tuple[str, ...]]:
        if self.state.interrupted:
            self._announce("Going on with an installation that was interrupted.")
        damaged = record.damage(self.places.home, self.places.environment, contents)
        if not damaged:
            return contents, ()
        for name, fault in sorted(damaged.items()):
            self._announce(f"{name} is not as it was installed ({fault}): installing it again.")
        steps = self.state.finished()
        self.state.forget("backend", *(step for step in steps if step.startswith("extra ")))
        record.unregister(self.places.environment, damaged)
        return inspect(self.places.environment) or contents, tuple(step.partition(" ")[2] for step in steps if step.startswith("extra "))

    def _relocate(self) -> None:
        """A home or a pack that was moved or copied: repair what names the old place."""
        former = relocation.former_place(self.places.config)
        if former is not None and former != self.places.environment:
            self._announce(f"The environment came here from {former}: repairing its scripts.")
            relocation.mend_scripts(self.places.environment, former)
        linked = relocation.linked_to(self.places.environment)
        if linked not in (None, self.places.backend):
            self._announce(f"The pack came here from {linked}: linking the environment to it.")
            if not relocation.link(self.places.environment, self.places.backend):
                self.state.forget("backend")

    def _torch(self, contents: Contents, wanted: Wanted) -> torch_build.Choice:
        """Install the right PyTorch if it is not there."""
        version = torch_build.pinned_version(self.places.constraints)
        installed = self._known_torch(contents)
        choice = torch_build.choose(str(self.state.data.get("torch", "auto")), machine.nvidia_gpus(), installed.kind if installed else None)
        stamp = stamp_of(version, choice.kind, choice.build or "")
        there = contents.versions.get("torch", "").partition("+")[0] == version
        right = torch_build.fits(choice, installed, version) if installed else there and self.state.done("torch", stamp)
        # A build that could be had in place of the chosen one stays, as long as it is of its kind.
        if right or (there and installed and installed.kind == choice.kind and self.state.done("torch", stamp)):
            if not self.state.done("torch", stamp):
                self.state.finish("torch", stamp)
            return choice
        self._check_space(choice.kind)
        kind = {"cpu": "for the CPU", "cuda": "with CUDA", "default": ""}[choice.kind]
        self._announce(f"PyTorch {version} {kind} ({choice.why}), with {self.packages.tool}; this is the large download")
        self._begin("torch")
        otherwise = ("replace" if wanted.torch_by_hand else "keep") if there else "install"
        torch_build.install(choice, version, self.packages, self.console, self.state.data.get("torch_index"), otherwise)
        self.state.finish("torch", stamp)
        self.state.remember("torch_is", None)
        return choice

    def _known_torch(self, contents: Contents) -> torch_build.Torch | None:
        """What the installed torch is; asked once, then remembered."""
        known = self.state.data.get("torch_is")
        version = contents.versions.get("torch")
        if version is None:
            return None
        if known and known["version"] == version:
            return torch_build.Torch(version, known["cuda"], False, ())
        found = torch_build.ask(self.places.environment)
        if found is not None:
            self.state.remember("torch_is", {"version": version, "cuda": found.cuda})
        return found

    def _check_torch(self, choice: torch_build.Choice, wanted: Wanted) -> str:
        """Ask a torch that is new what it is, and say what keeps it from computing on the GPU. Returns its kind."""
        known = self.state.data.get("torch_is")
        if known and not self.changed:
            return "cuda" if known["cuda"] else "cpu"
        python = str(python_of(self.places.environment))
        found = torch_build.ask(self.places.environment)
        if found is None:
            self.state.forget("torch")
            self.console.run([python, "-I", "-c", "import torch"])  # fails and shows why
            raise InstallError(f"PyTorch in {self.places.environment} does not start. Delete that folder and run install.py again.")
        now = inspect(self.places.environment)  # its package may have a shorter version than it tells
        version = now.versions.get("torch", found.version) if now else found.version
        self.state.remember("torch_is", {"version": version, "cuda": found.cuda})
        self.console.say(f"  PyTorch {found.version}: " + (f"CUDA {found.cuda}" if found.cuda else "for the CPU"))
        if choice.kind == "cuda" and found.cuda is None:
            text = (
                f"PyTorch {found.version} is installed for the CPU: a CUDA build could not be had ({choice.build} from "
                f"{self.state.data.get('torch_index') or torch_build.INDEX}).\n"
                "  Name a mirror: python install.py --cuda --torch-index URL, or run install.py --cuda again when that can be reached."
            )
            if wanted.torch == "cuda":
                raise InstallError(text)
            self.console.say(f"  WARNING: {text}")
        for text in (*filter(None, [choice.advice]), *found.problems):
            self.console.say(f"  WARNING: {text}")
        return found.kind

    def _backend(self, step: str, extra: str, stamp: str, what: str) -> None:
        if self.state.done(step, stamp):
            return
        self._announce(f"Installing {what}")
        self._begin(step)
        self.packages.install(["--editable", f"{self.places.backend}{extra}"], constraints=self.places.constraints)
        self.state.finish(step, stamp)

    def _begin(self, step: str) -> None:
        record.forget(self.places.home)  # from here on it tells of what was there before
        self.state.begin(step)

    def _check_space(self, kind: str) -> None:
        free = machine.free_gib(self.places.home)
        if free < _NEEDED_GIB[kind]:
            raise InstallError(
                f"{self.places.home} has {free:.1f} GiB free; the environment needs about {_NEEDED_GIB[kind]:.0f} GiB.\n"
                "Free some space, or choose another place by setting MUSUBITUNER_HOME (ComfyUI has to see it too)."
            )

    def _announce(self, text: str) -> None:
        self.changed = True
        self.console.say(f"- {text}")


_PURPOSE = {"gpu": "the GPU", "demo": "the demo data", "dev": "the tests", "optimizers": "more optimizers", "wandb": "Weights & Biases"}
