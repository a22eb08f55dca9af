"""The product's home folder and the settings that `install.py` writes there. No widget can change them; ComfyUI's Settings page can
change the allowed folders.

`<home>/config.json`:
    {"interpreter": "<backend venv python>", "engine": "builtin" | "musubi-tuner",
     "musubi_tuner": {"path": "<checkout>", "python": "<its python>"}, "allowed_roots": ["<folder>", ...],
     "cpu_threads": <number or null: as the work gains>}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.atomic import write_text
from ...backend.musubi_backend.errors import UserError
from .home import CONFIG_NAME, home_folder

ENGINES = ("builtin", "musubi-tuner")
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


def default_home(pack_root: Path = PACK_ROOT) -> Path:
    """The home folder of the pack at `pack_root`; see `home.home_folder`."""
    return home_folder(pack_root)


def load(home: Path) -> Config:
    """Read `config.json`; without one, nothing is installed and `interpreter` is None. UserError if the file is damaged."""
    path = home / CONFIG_NAME
    if not path.is_file():
        return Config(home)
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        engine = data.get("engine", "builtin")
        musubi = data.get("musubi_tuner") or {}
        return Config(
            home=home,
            interpreter=_path(data.get("interpreter")),
            engine=engine if engine in ENGINES else _refuse_engine(engine),
            musubi_path=_path(musubi.get("path")),
            musubi_python=_path(musubi.get("python")),
            allowed_roots=tuple(Path(root) for root in data.get("allowed_roots") or ()),
            cpu_threads=int(data["cpu_threads"]) if data.get("cpu_threads") else None,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run `python install.py` in {PACK_ROOT} to write it anew.") from error


def allow_folders(home: Path, folders: Any) -> tuple[Path, ...]:
    """Replace the folders that workflows may use beside ComfyUI's own, as absolute paths without links. UserError for what is no folder,
    or would open everything."""
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError("write one folder per line")
    settings = load(home)  # refuses a damaged file, which would be lost
    kept = {str(root): root for root in settings.allowed_roots}  # one of them may be on a disk that is away
    named = [folder.strip() for folder in folders if folder.strip()]
    allowed = list(dict.fromkeys(kept.get(folder) or _allowable(folder) for folder in named))
    path = home / CONFIG_NAME
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if tuple(allowed) != settings.allowed_roots:
        home.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**data, "allowed_roots": [str(folder) for folder in allowed]}, indent=2, ensure_ascii=False) + "\n")
    return tuple(allowed)


def _allowable(text: str) -> Path:
    named = Path(text).expanduser()
    if "\0" in text or not named.is_absolute() or not named.is_dir():
        raise UserError(f"{text}: there is no such folder; write its whole path")
    folder = named.resolve()
    if folder == Path(folder.anchor) or folder == Path.home().resolve():
        raise UserError(f"{text}: this would open the whole of {folder} to workflows. Name the folder that holds your files.")
    return folder


def _refuse_engine(engine: object) -> str:
    raise ValueError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")


def _path(value: object) -> Path | None:
    return Path(str(value)) if value else None


def engine_stamp(home: Path) -> str:
    """Changes when another engine is chosen: its results are results of their own."""
    settings = load(home)
    return settings.engine if settings.engine == "builtin" else f"{settings.engine} {settings.musubi_path}"
