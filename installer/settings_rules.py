"""What `<home>/config.json` may hold. The installer writes it and the nodes read it, both by these rules.

{"interpreter": "<backend venv python>", "engine": "builtin" | "musubi-tuner",
 "musubi_tuner": {"path": "<checkout>", "python": "<its python>"}, "allowed_roots": ["<folder>", ...],
 "cpu_threads": <number or null: as the work gains>,
 "queue": {"generation": "wait" | "warn" | "go_ahead", "restarts": <number>, "keep_jobs": <number or null: all>}}
"""

from __future__ import annotations

import os
import re
from typing import Any

LOCK = "config.lock"
"""Next to `config.json`, held by whoever reads and writes it anew: two programs would each write without the other's change."""
ENGINES = ("builtin", "musubi-tuner")
MOST_THREADS = 1024
_LONGEST_NAME = 255  # bytes of a file's or folder's name
MEANWHILE = ("wait", "warn", "go_ahead")
"""What a generation does while a training runs in the background on its GPU."""
MOST_RESTARTS, MOST_JOBS = 10, 100_000
QUEUE: dict[str, Any] = {"generation": MEANWHILE[0], "restarts": 0, "keep_jobs": 500}
_ABSENT: dict[str, Any] = {
    "interpreter": None,
    "engine": ENGINES[0],
    "musubi_tuner": None,
    "allowed_roots": [],
    "cpu_threads": None,
    "queue": {},
}


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
    values["queue"] = checked_queue(values["queue"])
    return values


def checked_queue(given: Any) -> dict[str, Any]:
    """The settings of the queue with what is absent filled in. ValueError names the first that is wrong."""
    if not isinstance(given, dict):
        raise ValueError(f"queue is {_short(given)}, and an object is needed")
    unknown = sorted(set(given) - set(QUEUE))
    if unknown:
        raise ValueError(f"queue has no setting {_short(unknown[0])}; it has {', '.join(QUEUE)}")
    values = {**QUEUE, **given}
    if values["generation"] not in MEANWHILE:
        raise ValueError(f"generation of queue is {_short(values['generation'])}, and one of {', '.join(MEANWHILE)} is needed")
    for name, most in {"restarts": MOST_RESTARTS, "keep_jobs": MOST_JOBS}.items():
        value = values[name]
        if value is None and name == "keep_jobs":
            continue
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} of queue is {_short(value)}, and a whole number from 0 to {most} is needed")
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
