"""Small files that must never be half written, and one installation at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musubi_backend import documents, locks  # with Python's own modules only; install.py has put its folder on the path

from .console import InstallError


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or an empty one if there is no such file. ValueError if it holds something else; OSError."""
    try:
        return documents.read_json(path, dict, paths=True)
    except FileNotFoundError:
        return {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a temporary file and rename it, so that a crash leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(documents.json_text(data, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold `<home>/install.lock`; the system releases it when the process ends, however it ends. InstallError if another one holds it."""
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locks.held(home / "install.lock", wait=False))
        except OSError as error:
            raise InstallError(f"another installation into {home} is running. Wait for it to end, then run this again.") from error
        yield
