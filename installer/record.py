"""What was installed, file by file: `<home>/installed.json`, by which damage is found later.

A package manager looks at names and versions only; a file that was deleted, cut short or overwritten since would be found by a tool,
in the middle of its work.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .environment import Contents, inspect
from .files import read_json, write_json

FILE = "installed.json"
# Put into the environment by python or the user to install others; no tool of ours needs it.
_IGNORED = ("pip",)


def write(home: Path, environment: Path) -> None:
    """Keep what the environment holds now as what it should hold."""
    contents = inspect(environment, files=True)
    if contents is not None:
        packages = {
            name: {"version": contents.versions[name], "files": files} for name, files in contents.files.items() if name not in _IGNORED
        }
        write_json(home / FILE, packages)


def forget(home: Path) -> None:
    (home / FILE).unlink(missing_ok=True)


def damage(home: Path, environment: Path, contents: Contents) -> dict[str, str]:
    """Name of each package that is not as it was installed -> what is wrong with it. Without a record: what its own list says."""
    try:
        record = read_json(home / FILE)
    except ValueError:
        record = {}
    if not record or not all(map(_is_entry, record.values())):
        now = inspect(environment, files=True)
        return {name: "files are missing or damaged" for name in (now or contents).incomplete if name not in _IGNORED}
    found = {name: _fault(environment, entry, contents.versions.get(name)) for name, entry in record.items()}
    return {name: fault for name, fault in found.items() if fault}


def _is_entry(entry: Any) -> bool:
    files = entry.get("files") if isinstance(entry, dict) else None
    return isinstance(files, dict) and isinstance(entry.get("version"), str) and all(isinstance(size, int) for size in files.values())


def _fault(environment: Path, entry: dict[str, Any], version: str | None) -> str | None:
    if version is None:
        return "is gone"
    if version != entry["version"]:
        return f"is {version}; {entry['version']} was installed"
    for name, size in entry["files"].items():
        try:
            now = (environment / name).stat().st_size
        except (OSError, ValueError):  # ValueError: a damaged record gives a name that no file can have
            return f"{name} is missing"
        if now != size:
            return f"{name} has {now} bytes instead of {size}"
    return None


def unregister(environment: Path, names: Iterable[str]) -> None:
    """Make the package managers take damaged packages for ones that are not there, so that they are installed again."""
    now = inspect(environment, files=True)
    if now is None:
        return
    for name in (*names, "unknown"):
        folders = [Path(now.incomplete[name])] if name in now.incomplete else []
        folders += [environment / Path(file).parent for file in now.files.get(name, {}) if Path(file).parent.suffix == ".dist-info"]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
