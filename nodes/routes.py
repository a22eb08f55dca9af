"""Web routes of the pack: reading a page of a dataset, saving a caption, and the folders that workflows may use.

    GET  /musubi_tuner/dataset_view/<id>   the items of a page, as `views.for_the_page`
    GET  /musubi_tuner/captions/<folder>   {"names": of the caption files in this folder of ComfyUI's input folder}
    POST /musubi_tuner/caption             {"view", "number", "before", "caption"} -> {"caption"}
    GET  /musubi_tuner/allowed_folders     {"folders": those the user has allowed, "own": those that ComfyUI allows}
    POST /musubi_tuner/allowed_folders     {"folders": [...]} -> {"folders"}
    POST /musubi_tuner/learning_rates      {"values": of the widgets of Optimizer Config, "steps"} -> {"rates": [[step, rate], ...], "note"}
    GET  /musubi_tuner/backend             {"home", "engine", "installed", "command": what installs it, to be typed on a terminal,
                                            "other_engine": what switches to the engine that is there too, else null}

Errors are as `answers` says; 409, when a caption was changed elsewhere, also holds "current".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..installer.settings_rules import ENGINES
from . import optimizer_settings, views
from .answers import Routes
from .jobs import config as configuration
from .jobs import guard
from .spec import Host


def add_routes(table: Any, host: Callable[[], Host]) -> None:
    """Register the routes in aiohttp's table. host: gives the host of a request."""
    routes = Routes(table)

    def caption(request: Any, values: dict[str, Any]) -> dict[str, Any]:
        wanted = [values.get(name) for name in ("view", "number", "before", "caption")]
        return {"caption": views.save_caption(host(), *wanted)}

    def allow(request: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"folders": [str(root) for root in configuration.allow_folders(host().home, values.get("folders"))]}

    routes.get("dataset_view/{id}", lambda request: views.for_the_page(host(), request.match_info["id"]))
    routes.get("captions/{folder}", lambda request: {"names": _captions(host(), request.match_info["folder"])})
    routes.post("caption", caption, unsaved="the caption was not saved")
    routes.get("allowed_folders", lambda request: _folders(host()))
    routes.post("allowed_folders", allow, from_a_page=True, unsaved="the folders were not saved")
    routes.post("learning_rates", lambda request, given: optimizer_settings.schedule(host(), given.get("values"), given.get("steps")))
    routes.get("backend", lambda request: _backend(host()))


def _captions(host: Host, name: str) -> list[str]:
    """None where there is no such folder, or it leads out of the folders that may be used."""
    folder = host.input_dir / guard.plain_name(name, "the folder")
    if not guard.is_inside(folder, host.allowed_roots()) or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".txt" and path.is_file())


def _folders(host: Host) -> dict[str, Any]:
    folders = configuration.load(host.home).allowed_roots
    own = [str(root) for root in host.allowed_roots() if root not in folders]
    return {"folders": [str(root) for root in folders], "own": own}


def _backend(host: Host) -> dict[str, Any]:
    settings = configuration.load(host.home)
    command = f'"{sys.executable}" "{configuration.PACK_ROOT / "install.py"}"'
    other = next(engine for engine in ENGINES if engine != settings.engine)
    return {
        "home": str(settings.home),
        "engine": settings.engine,
        "installed": settings.interpreter is not None and settings.interpreter.is_file(),
        "command": command,
        "other_engine": f"{command} --engine {other}" if settings.musubi_path else None,
    }
