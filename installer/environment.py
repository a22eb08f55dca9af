"""Makes the backend's virtual environment with uv where there is one, else with venv."""

from __future__ import annotations

import secrets
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import machine
from .console import CommandFailed, Console, InstallError, answer_of
from .sources import configured

_INSPECTION = Path(__file__).with_name("inspection.py")
_ADVICE = f"Install uv (https://docs.astral.sh/uv) or run install.py with a full Python {machine.supported_text()}."
# Any fitting python that uv finds on this machine; where there is none, it downloads one.
_FITTING_PYTHON = ">=3.10,<3.14"


@dataclass(frozen=True)
class Contents:
    """What an environment holds: package versions, packages of which files are missing (name -> their dist-info folder), and, where
    asked for, the size of every file of each package (by its path in the environment)."""

    python: str
    versions: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """ "3.11": packages stay usable while only the last number of the version changes."""
        return ".".join(self.python.split(".")[:2])


def python_of(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def inspect(folder: Path, *, files: bool = False) -> Contents | None:
    """What the environment in `folder` holds; None if it is missing or its python does not run."""
    python = python_of(folder)
    if not python.is_file():
        return None
    data = answer_of([str(python), "-I", str(_INSPECTION), *(["--files"] if files else [])])
    if data is None:
        return None
    if Path(data["prefix"]).resolve() != folder.resolve():
        return None  # a link to another environment
    return Contents(data["python"], data["versions"], data["incomplete"], data["files"])


def create(folder: Path, home: Path, console: Console) -> None:
    """Make a fresh environment in `folder`, replacing what is there. InstallError if this machine offers no way to."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.part")
        try:
            folder.rename(aside)  # Windows refuses that while a program in it runs, and would remove half of it
        except OSError as error:
            raise InstallError(
                f"{folder} cannot be made anew: {error.strerror or error}. Stop the trainings and jobs that run in it, then run this again."
            ) from error
        shutil.rmtree(aside, ignore_errors=True)
    uv = machine.find_uv(home)
    own = machine.can_make_environments() and machine.supported((sys.version_info[0], sys.version_info[1]))
    if uv is None and not own:
        uv = _fetch_uv(home, console)
    if uv is not None:
        request = [sys.executable] if own else [_FITTING_PYTHON]
        try:
            console.run([*uv, "venv", "--no-project", "--python", *request, str(folder)], configured().uv)
            return
        except CommandFailed as error:
            if not own:
                raise InstallError(f"uv could not get a python. {_ADVICE}\n{error}") from error
            console.say("  uv could not make the environment; using python's own venv instead.")
            shutil.rmtree(folder, ignore_errors=True)
    console.run([sys.executable, "-m", "venv", str(folder)])


def _fetch_uv(home: Path, console: Console) -> list[str]:
    """Put uv into `<home>/tools` with this python's pip, so that nothing of ComfyUI's is changed."""
    reason = "has no venv module" if not machine.can_make_environments() else f"is not one of {machine.supported_text()}"
    console.say(f"  This python ({sys.executable}) {reason}: fetching uv, which brings a python of its own.")
    try:
        console.run([sys.executable, "-m", "pip", "install", "--target", str(home / "tools"), "--upgrade", "uv"], configured().pip)
    except CommandFailed as error:
        raise InstallError(f"uv could not be fetched. {_ADVICE}\n{error}") from error
    found = machine.find_uv(home)
    if found is None:
        raise InstallError(f"uv was fetched into {home / 'tools'} but does not run. {_ADVICE}")
    return found
