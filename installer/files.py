"""Small files that must never be half written, and one installation at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musubi_backend import atomic, documents, locks  # with Python's own modules only; install.py has put its folder on the path

from .console import InstallError


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or an empty one if there is no such file. ValueError if it holds something else; OSError."""
    try:
        return documents.read_json(path, dict, paths=True)
    except FileNotFoundError:
        return {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """As `atomic.write_text`, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, documents.json_text(data, indent=2) + "\n")


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold `<home>/install.lock`; the system releases it when the process ends, however it ends. InstallError if another one holds it."""
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locks.held(home / "install.lock", wait=False))
        except OSError as error:
            raise InstallError(f"another installation into {home} is running. Wait for it to end, then run this again.") from error
        yield
