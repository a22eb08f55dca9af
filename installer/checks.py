"""`--test`: style, types (those of the page's scripts too, where there is node) and the whole test suite, in the backend's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .backend import Places
from .console import Console, clean_environment

_PACK = "musubituner_pack"
_PAGE_TYPES = Path("tests", "web", "types")
_PATIENCE = 240  # seconds, of a fetch that takes half a minute
_INSTALLED = "installed-package-lock.json"  # what was fetched
_CHECKED = ("nodes", "headless", "installer", "workflows")


def run(places: Places, python: Path, console: Console, pytest_arguments: Sequence[str]) -> int:
    """Run all checks and return 0 if all pass. With arguments for pytest, only pytest runs. pytest's closing line comes last."""
    failed = []
    if not pytest_arguments:
        for name, command, folder in _static(places, python):
            console.say(f"- {name}")
            if _call(command, folder):
                failed.append(name)
        name = "types (tsc): the scripts of the page"
        command, why_not = page_types(places.root / _PAGE_TYPES)
        console.say(f"- {name}" + (f": skipped, {why_not}" if why_not else ""))
        if command and _call(command, places.root):
            failed.append(name)
    console.say("- tests")
    # Work is stolen so that no worker waits for the other's last tests, and a file's tests mostly share what they set up.
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
    if any(argument.startswith("-n") for argument in pytest_arguments):
        workers = []
    for name in failed:
        console.say(f"FAILED: {name} (see above)")
    code = _call([str(python), "-m", "pytest", "-q", *workers, *pytest_arguments], places.root)
    return code or (1 if failed else 0)


def _static(places: Places, python: Path) -> list[tuple[str, list[str], Path]]:
    root = places.root
    settings = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(places.home / "mypy")]  # libraries are read once for both
    return [
        ("style (ruff)", [str(python), "-m", "ruff", "check", "."], root),
        ("format (ruff)", [str(python), "-m", "ruff", "format", "--check", "."], root),
        ("types (mypy): backend", [str(python), "-m", "mypy", *settings, "backend/musubi_backend"], root),
        (
            "types (mypy): nodes, headless, installer, workflows",
            [str(python), "-m", "mypy", *settings, *(word for part in _CHECKED for word in ("-p", f"{_PACK}.{part}"))],
            _as_package(places),
        ),
    ]


def page_types(folder: Path) -> tuple[list[str], str]:
    """The command that checks the page's scripts against the types that ComfyUI publishes; or why there is none, in words. The packages of
    `package-lock.json` in `folder` are fetched into it if they are not there."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return [], "as it needs node and npm"
    lock, installed = folder / "package-lock.json", folder / "node_modules" / _INSTALLED
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        fetching = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                fetching, cwd=folder, env=clean_environment({}), capture_output=True, text=True, check=False, timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired:
            return [], f"as npm could not fetch its packages in {_PATIENCE} s"
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
            return [], f"as npm could not fetch its packages: {said[0]}"
        shutil.copyfile(lock, installed)
    return [node, str(folder / "node_modules" / "typescript" / "bin" / "tsc"), "-p", str(folder)], ""


def _as_package(places: Places) -> Path:
    """A folder in which the repository has a name that can be imported: its modules import each other relatively, and a checkout's
    own name (ComfyUI-MusubiTuner) is none."""
    folder = places.home / "types"
    folder.mkdir(exist_ok=True)
    link = folder / _PACK
    if link.is_symlink():
        link.unlink()
    link.symlink_to(places.root, target_is_directory=True)
    return folder


def _call(command: Sequence[str], folder: Path) -> int:
    return subprocess.run(list(command), cwd=folder, env=clean_environment({"OMP_NUM_THREADS": "1"}), check=False).returncode
