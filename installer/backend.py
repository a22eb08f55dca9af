"""The installation itself: environment, PyTorch, the backend and its packages, each a step that is skipped once done.

The backend is installed in place (its environment holds a link to `backend/`, no copy): an update of the pack, by git or by
ComfyUI-Manager, takes effect at once, and only changed requirements need another run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from . import machine, torch_build
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
    """Changes with the backend's requirements, its place and the python that runs it."""
    return stamp_of(places.backend / "pyproject.toml", places.constraints, str(places.backend), python)


def ensure(places: Places, console: Console, extras: tuple[str, ...] = (), wanted_torch: str | None = None) -> Path:
    """Bring the environment up to date and return its python. `wanted_torch`: "auto", "cpu", "cuda", or None for what was chosen last.

    InstallError says what failed; running it again goes on from there.
    """
    started = time.monotonic()
    state = State.load(places.home)
    if wanted_torch is not None:
        state.remember("torch", wanted_torch)
    installation = _Installation(places, console, state)
    changed = installation.run(extras, str(state.data.get("torch", "auto")))
    settings = Settings(places.config, console)
    settings.use_interpreter(python_of(places.environment))
    settings.save()
    if changed:
        console.say(f"Installed in {time.monotonic() - started:.0f} s: {places.environment}")
    else:
        console.say(f"Everything is installed already: {places.environment}")
    return python_of(places.environment)


class _Installation:
    def __init__(self, places: Places, console: Console, state: State) -> None:
        self.places = places
        self.console = console
        self.state = state
        self.changed = False
        self._packages: Packages | None = None

    @property
    def packages(self) -> Packages:
        if self._packages is None:
            self._packages = Packages(self.places.environment, self.places.home, self.console)
        return self._packages

    def run(self, extras: tuple[str, ...], wanted_torch: str) -> bool:
        contents = self._environment()
        version = torch_build.pinned_version(self.places.constraints)
        if self._torch(contents, version, wanted_torch) == "cuda":
            extras = ("gpu", *extras)
        requirements = requirements_stamp(self.places, contents.series)
        self._backend("backend", "", contents, requirements, "the backend and its packages")
        for extra in extras:
            self._backend(f"extra {extra}", f"[{extra}]", contents, requirements, f"packages for {_PURPOSE[extra]}")
        return self.changed

    def _environment(self) -> Contents:
        contents = inspect(self.places.environment)
        if (
            contents is not None
            and self.state.done("environment", contents.series)
            and not self.state.interrupted
            and not contents.incomplete
        ):
            return contents
        if contents is not None and self.state.done("environment", contents.series):
            self._announce("Going on with an installation that was interrupted.")
            self.packages.discard_incomplete()
            return inspect(self.places.environment) or contents
        if self.places.environment.exists():
            self._announce("The environment is broken or was never finished: making it anew.")
        self._announce(f"Making an environment for the backend in {self.places.environment}")
        self.state.forget()
        self.state.begin("environment")
        create(self.places.environment, self.places.home, self.console)
        made = inspect(self.places.environment)
        if made is None:
            raise InstallError(f"the python in {self.places.environment} does not run. Delete that folder and run install.py again.")
        self.state.finish("environment", made.series)
        return made

    def _torch(self, contents: Contents, version: str, wanted: str) -> str:
        """Install the right PyTorch; returns its kind."""
        installed = contents.versions.get("torch")
        choice = torch_build.choose(wanted, machine.nvidia_gpus(), installed)
        stamp = stamp_of(version, choice.kind)
        if self.state.done("torch", stamp) and torch_build.fits(choice, installed, version):
            return choice.kind
        self._check_space(choice.kind)
        kind = {"cpu": "for the CPU", "cuda": "with CUDA", "default": ""}[choice.kind]
        self._announce(f"PyTorch {version} {kind} ({choice.why}), with {self.packages.tool}; this is the large download")
        self.state.begin("torch")
        torch_build.install(choice, version, self.packages, self.console)
        self.state.finish("torch", stamp)
        return choice.kind

    def _backend(self, step: str, extra: str, contents: Contents, stamp: str, what: str) -> None:
        known = {*contents.versions}
        if self.state.done(step, stamp) and (extra or _direct(self.places) <= known):
            return
        self._announce(f"Installing {what}")
        self.state.begin(step)
        self.packages.install(["--editable", f"{self.places.backend}{extra}"], constraints=self.places.constraints)
        self.state.finish(step, stamp)

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


_PURPOSE = {"gpu": "the GPU", "demo": "the demo data", "dev": "the tests"}


def _direct(places: Places) -> set[str]:
    """Names of the backend's direct dependencies that apply to every python, and of the backend itself."""
    names = {"musubi-backend"}
    inside = False
    for line in (places.backend / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("dependencies = ["):
            inside = True
        elif text == "]":
            inside = False
        elif inside and text.startswith('"') and ";" not in text:
            names.add(text.strip('",').partition(">")[0].partition("=")[0].lower())
    return names
