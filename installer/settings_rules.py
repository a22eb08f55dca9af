"""What `<home>/config.json` may hold. The installer writes it and the nodes read it, both by these rules.

{"interpreter": "<backend venv python>", "engine": "builtin" | "musubi-tuner",
 "musubi_tuner": {"path": "<checkout>", "python": "<its python>"}, "allowed_roots": ["<folder>", ...],
 "cpu_threads": <number or null: as the work gains>}
"""

from __future__ import annotations

import os
import re
from typing import Any

ENGINES = ("builtin", "musubi-tuner")
MOST_THREADS = 1024
_LONGEST_NAME = 255  # bytes of a file's or folder's name
_ABSENT: dict[str, Any] = {"interpreter": None, "engine": ENGINES[0], "musubi_tuner": None, "allowed_roots": [], "cpu_threads": None}


def checked(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with what is absent filled in. ValueError names the first entry that is wrong."""
    values = {**_ABSENT, **{name: value for name, value in data.items() if value or name not in _ABSENT}}
    musubi, threads = values["musubi_tuner"], values["cpu_threads"]
    if values["interpreter"] is not None:
        _path("interpreter", values["interpreter"])
    if values["engine"] not in ENGINES:
        raise ValueError(f"engine {_short(values['engine'])} is not one of {', '.join(ENGINES)}")
    if musubi is not None:
        if not isinstance(musubi, dict):
            raise ValueError(f"musubi_tuner is {_short(musubi)}, and an object with path and python is needed")
        for name in ("path", "python"):
            _path(f"{name} of musubi_tuner", musubi.get(name))
    if not isinstance(values["allowed_roots"], list):
        raise ValueError(f"allowed_roots is {_short(values['allowed_roots'])}, and a list of folders is needed")
    for root in values["allowed_roots"]:
        _path("one of allowed_roots", root)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
        raise ValueError(f"cpu_threads is {_short(threads)}, and a whole number from 1 to {MOST_THREADS} is needed")
    return values


def _path(name: str, value: object) -> None:
    try:
        parts = re.split(rb"[/\\]", os.fsencode(value)) if isinstance(value, str) else []
    except UnicodeEncodeError:
        parts = []
    if parts in ([], [b""]) or any(len(part) > _LONGEST_NAME or b"\0" in part for part in parts):
        raise ValueError(f"{name} is {_short(value)}, and a path is needed")


def _short(value: object) -> str:
    return ascii(value)[:60]
