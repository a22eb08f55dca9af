"""`<home>/config.json`: what the nodes read. This program writes it, and ComfyUI's Settings page its allowed folders; no widget can."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from musubi_backend import locks  # see files.py

from .console import Console, InstallError, output_of
from .environment import python_of
from .files import read_json, write_json
from .settings_rules import LOCK, MOST_THREADS, checked

_TESTED_SERIES = "0.3"


class Settings:
    def __init__(self, path: Path, console: Console) -> None:
        self.path = path
        self._console = console
        try:
            self._before = read_json(path)
            self._data = checked(self._before)
        except ValueError as error:
            kept = path.with_name(path.name + ".damaged")
            path.replace(kept)
            console.say(f"{path.name} was damaged ({error}): kept as {kept.name}, starting with a new one.")
            self._before, self._data = {}, checked({})

    @property
    def engine(self) -> str:
        return str(self._data["engine"])

    @property
    def musubi_tuner(self) -> dict[str, str] | None:
        value: dict[str, str] | None = self._data["musubi_tuner"]
        return value

    @property
    def allowed_roots(self) -> list[Path]:
        return [Path(root) for root in self._data["allowed_roots"]]

    @property
    def cpu_threads(self) -> int | None:
        value: int | None = self._data["cpu_threads"]
        return value

    def save(self) -> None:
        """Write what was changed here into what is there now: ComfyUI's page may have changed something since."""
        if self._data == self._before:
            return
        before = checked(self._before)
        changed = {name: value for name, value in self._data.items() if value != before.get(name)}
        with locks.held(self.path.with_name(LOCK), wait=True):
            now = checked(read_json(self.path))
            if "allowed_roots" in changed:
                changed["allowed_roots"] = _merged(before["allowed_roots"], self._data["allowed_roots"], now["allowed_roots"])
            self._data = {**now, **changed}
            write_json(self.path, self._data)
        self._before = dict(self._data)

    def use_interpreter(self, python: Path) -> None:
        self._data["interpreter"] = str(python)

    def use_engine(self, engine: str) -> None:
        if engine == "musubi-tuner" and not self.musubi_tuner:
            raise InstallError(
                "no musubi-tuner checkout is registered yet. Run: python install.py --musubi-tuner PATH --engine musubi-tuner"
            )
        self._data["engine"] = engine
        self._console.say(f"Engine: {engine}")

    def use_cpu_threads(self, text: str) -> None:
        """How many CPU threads each job computes with; "auto": as its work gains. InstallError for anything else."""
        if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
            raise InstallError(f"--cpu-threads {text}: give a number from 1 to {MOST_THREADS}, or auto")
        self._data["cpu_threads"] = None if text == "auto" else int(text)
        self._console.say(f"CPU threads of a job: {text}")

    def allow_root(self, text: str) -> None:
        """Let paths in widgets lie in this folder. InstallError for what is no folder, or would allow everything."""
        folder = _place(text)
        if not folder.is_dir():
            raise InstallError(f"--allow-root {text}: there is no such folder")
        if folder == Path(folder.anchor) or folder == _place("~"):
            raise InstallError(
                f"--allow-root {text}: this would open the whole of {folder} to workflows. Name the folder that holds your files."
            )
        inside = next((root for root in self.allowed_roots if folder == root or root in folder.parents), None)
        if inside is not None:
            self._console.say(f"Already allowed: {folder}" + ("" if inside == folder else f" (inside {inside})"))
            return
        self._data["allowed_roots"] = [*(str(root) for root in self.allowed_roots if folder not in root.parents), str(folder)]
        self._console.say(f"Allowed: {folder}")

    def register_musubi_tuner(self, text: str, python_text: str | None) -> None:
        """Check a checkout and its python, and keep them as the second engine. InstallError says what is missing."""
        checkout = _place(text)
        if not (checkout / "src" / "musubi_tuner").is_dir() or not (checkout / "wan_train_network.py").is_file():
            raise InstallError(
                f"--musubi-tuner {text}: this is no checkout of musubi-tuner (no src/musubi_tuner and wan_train_network.py in it).\n"
                "Name the folder that `git clone https://github.com/kohya-ss/musubi-tuner` made."
            )
        python = _musubi_python(checkout, python_text)
        found = output_of([str(python), "-c", "import torch, accelerate; print(torch.__version__)"], {"PYTHONPATH": str(checkout / "src")})
        if found is None:
            raise InstallError(
                f"{python} cannot import torch and accelerate, so it cannot run musubi-tuner.\n"
                "Install musubi-tuner's requirements there, or name its python with --musubi-python PATH."
            )
        version = musubi_version(checkout)
        self._data["musubi_tuner"] = {"path": str(checkout), "python": str(python)}
        self._console.say(f"musubi-tuner {version} in {checkout} (torch {found.strip()}) is registered as the second engine.")
        if not version.startswith(_TESTED_SERIES):
            self._console.say(f"  Note: this pack was tested with musubi-tuner {_TESTED_SERIES}.x; options may differ.")
        if self.engine != "musubi-tuner":
            self._console.say("  Jobs still run in the built-in engine; switch with: python install.py --engine musubi-tuner")


def _merged(before: list[str], ours: list[str], theirs: list[str]) -> list[str]:
    """Their list with what we added, without what we took out."""
    return [*(one for one in theirs if one in ours or one not in before), *(one for one in ours if one not in {*before, *theirs})]


def _place(text: str) -> Path:
    """Where a folder really is. Of unknown users and links in a circle nothing is known: such a text stays as it is, where Path raises."""
    return Path(os.path.realpath(os.path.expanduser(text)))


def musubi_version(checkout: Path) -> str:
    """The version in the checkout's pyproject.toml."""
    project = checkout / "pyproject.toml"
    text = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
    match = re.search(r'^version\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match.group(1) if match else "(unknown version)"


def _musubi_python(checkout: Path, named: str | None) -> Path:
    # Not resolved: a virtual environment's python is a link, and following it would leave the environment.
    candidates = [Path(os.path.expanduser(named)).absolute()] if named else [python_of(checkout / folder) for folder in (".venv", "venv")]
    for python in candidates:
        if python.is_file():
            return python
    tried = "\n  ".join(str(python) for python in candidates)
    name = "python.exe" if sys.platform == "win32" else "python"
    raise InstallError(f"no python found for musubi-tuner. Looked for:\n  {tried}\nName it with --musubi-python PATH/TO/{name}")
