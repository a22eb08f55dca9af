"""The product's home folder and the settings that `install.py` writes there (`installer/settings_rules.py` says what they may hold).
No widget can change them; ComfyUI's own page can change the allowed folders, and how the queue of the background does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import locks
from ...backend.musubi_backend.atomic import write_text
from ...backend.musubi_backend.documents import json_text, read_json
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import in_words, reason
from ...installer.settings_rules import LOCK, QUEUE, checked, checked_queue
from .home import CONFIG_NAME, home_folder

DEMO_MODELS = Path("demo", "models")  # in home, made by `install.py --quickstart`
PACK_ROOT = Path(__file__).absolute().parent.parent.parent  # as ComfyUI names it: a linked pack has the home of that ComfyUI


@dataclass(frozen=True)
class Config:
    home: Path
    interpreter: Path | None = None
    engine: str = "builtin"
    musubi_path: Path | None = None
    musubi_python: Path | None = None
    allowed_roots: tuple[Path, ...] = ()
    cpu_threads: int | None = None
    queue: dict[str, Any] = field(default_factory=lambda: dict(QUEUE))


def default_home(pack_root: Path = PACK_ROOT) -> Path:
    """The home folder of the pack at `pack_root`; see `home.home_folder`."""
    return home_folder(pack_root)


def load(home: Path) -> Config:
    """Read `config.json`; without one, nothing is installed and `interpreter` is None. UserError if the file is damaged."""
    data = checked(_read(home / CONFIG_NAME))
    musubi = data["musubi_tuner"] or {}
    return Config(
        home=home,
        interpreter=_path(data["interpreter"]),
        engine=data["engine"],
        musubi_path=_path(musubi.get("path")),
        musubi_python=_path(musubi.get("python")),
        allowed_roots=tuple(Path(root) for root in data["allowed_roots"]),
        cpu_threads=data["cpu_threads"],
        queue=data["queue"],
    )


def _read(path: Path) -> dict[str, Any]:
    """What is written there, by the rules; what is absent stays so."""
    try:
        data = read_json(path, dict, paths=True)
        checked(data)
        return data
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"the settings cannot be read: {in_words(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Run `python install.py` in {PACK_ROOT} to write it anew.") from error


def allow_folders(home: Path, folders: Any) -> tuple[Path, ...]:
    """Replace the folders that workflows may use besides ComfyUI's own, as absolute paths without links. UserError for what is no folder,
    or would open everything."""
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError("write one folder per line")
    named = [folder.strip() for folder in folders if folder.strip()]
    with locks.held(home / LOCK, wait=True):
        settings = load(home)  # rejects a damaged file, which would be lost
        kept = {str(root): root for root in settings.allowed_roots}  # one of them may be on a disk that is away
        allowed = list(dict.fromkeys(kept.get(folder) or _allowable(folder) for folder in named))
        if tuple(allowed) != settings.allowed_roots:
            _change(home, "allowed_roots", [str(folder) for folder in allowed])
    return tuple(allowed)


def set_queue(home: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Change settings of the queue (`installer/settings_rules.py`); returns all of them. UserError for what they cannot be."""
    with locks.held(home / LOCK, wait=True):
        try:
            values = checked_queue({**load(home).queue, **changes})
        except ValueError as error:
            raise UserError(str(error)) from error
        _change(home, "queue", values)
    return values


def _change(home: Path, name: str, value: Any) -> None:
    home.mkdir(parents=True, exist_ok=True)
    path = home / CONFIG_NAME
    write_text(path, json_text({**_read(path), name: value}, indent=2) + "\n")


def _allowable(text: str) -> Path:
    named = Path(os.path.expanduser(text))
    try:
        there = "\0" not in text and named.is_absolute() and named.is_dir()
    except OSError as error:
        raise UserError(f"{text[:100]}: this folder cannot be looked into: {reason(error)}") from None
    if not there:
        raise UserError(f"{text}: there is no such folder; write its whole path")
    folder = Path(os.path.realpath(named))
    if folder == Path(folder.anchor) or folder == Path(os.path.realpath(os.path.expanduser("~"))):
        raise UserError(f"{text}: this would open the whole of {folder} to workflows. Name the folder that holds your files.")
    return folder


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def engine_stamp(home: Path) -> str:
    """Changes when another engine is chosen: its results are results of their own."""
    settings = load(home)
    return settings.engine if settings.engine == "builtin" else f"{settings.engine} {settings.musubi_path}"
