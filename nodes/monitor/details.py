"""One job as the page shows it: settings, samples, saved files, answers, log."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.documents import read_json
from ...backend.musubi_backend.options.registry import options_for, tools
from ...backend.musubi_backend.options.values import default_of
from ..jobs import guard
from ..jobs.folder import JobFolder
from ..jobs.history import LORA, NAMES, SAMPLE, History, Made
from ..jobs.index import Index

ROUTE = "/musubi_tuner/jobs"
LINES, MOST_LOG, MOST_FOUND, MOST_ITEMS = 200, 1 << 16, 500, 200
_SECRET = re.compile(r"(?:^|_)(?:key|token|password)$")
_MEDIA = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
_FILE = "application/octet-stream"
_SEARCHED = 1 << 26  # bytes of a log
Served = tuple[Path, str, bool]
"""A file that is given out, its media type, and whether it is a download."""


def detail(index: Index, summary: dict[str, Any], roots: Sequence[Path]) -> dict[str, Any]:
    """`summary` with what `GET jobs/<id>` has in addition."""
    job, history = str(summary["id"]), index.history(summary["id"])
    folder, files = history.folder, list(history.files)
    listed = [_listed(job, place, made, roots) for place, made in enumerate(files)]
    prompts = [history.prompts.get(number, "") for number in range(max(history.prompts, default=-1) + 1)]
    run = index.home / "runs" / summary["run"] if summary["run"] else None
    return {
        **summary,
        "folder": str(folder.path),
        "run_folder": str(run) if run else None,
        "settings": settings(folder.task()),
        "series": [name for name in NAMES if len(history.series[name].values)],
        "prompts": prompts,
        "samples": [
            {"step": made.step, "prompt": made.prompt, "file": place, "media": media_of(made.path), "url": listed[place]["url"]}
            for place, made in enumerate(files)
            if made.content == SAMPLE
        ],
        "saves": [
            {"step": made.step, "epoch": made.epoch, "content": made.content, "expert": made.expert, "file": place}
            for place, made in enumerate(files)
            if made.content in ("lora", "state")
        ],
        "files": listed,
        "items": [
            {"name": name, "loss": loss, "count": count}
            for name, (loss, count) in sorted(history.items.items(), key=lambda item: -item[1][0])[:MOST_ITEMS]
        ],
        "answers": [
            {"name": one.name, "answer": one.answer, "step": one.step, "text": one.text, "time": one.time} for one in history.answers
        ],
        "optimizer": {"step": said.step, "lines": list(said.lines)} if (said := history.optimizer) else None,
        "log": tail(folder.log),
        "workflow": f"{ROUTE}/{job}/workflow" if (folder.path / "workflow.json").is_file() else None,
        "jobs_of_run": [one["id"] for one in index.jobs() if run is not None and one["run"] == summary["run"]],
    }


def settings(task: dict[str, Any]) -> list[dict[str, Any]]:
    """What differs from the defaults of a trainer, in the order of the option table; keys and tokens are left out."""
    values, tool = task.get("training", {}).get("values") or {}, task.get("tool")
    found = []
    for name, option in options_for(str(tool)).items() if values and tool in tools() else ():  # of another version, it may have others
        value, default = values.get(name), default_of(option)
        if value is not None and value != default and not _SECRET.search(name):
            found.append({"name": name, "value": value, "default": default})
    return found


def served(history: History, number: int, roots: Sequence[Path]) -> Served | None:
    """A file of a job; None for what is not given out."""
    if not 0 <= number < len(history.files):
        return None
    made = history.files[number]
    path = Path(made.path)
    kind = media_of(made.path)
    wanted = kind is not None or (made.content == LORA and path.suffix == ".safetensors")
    if not wanted or not _is_there(path, roots):
        return None
    return path, kind or _FILE, kind is None


def media_of(path: str) -> str | None:
    """The media type of what a page can show; None for other files."""
    return _MEDIA.get(Path(path).suffix.lower())


def workflow(folder: JobFolder) -> dict[str, Any] | None:
    """The workflow that made a job, and its prompt."""
    try:
        found = read_json(folder.path / "workflow.json", dict, paths=True)
    except (OSError, ValueError):
        return None
    return {"workflow": found.get("workflow"), "prompt": found.get("prompt")}


def tail(log: Path) -> dict[str, Any]:
    """The last lines of a log."""
    data, start = _read(log, None)
    text, used, bar = _lines(data)
    kept = text.split("\n")[-LINES - 1 :]
    return {"text": "\n".join(kept), "bar": bar, "next": start + used, "more": False}


def after(log: Path, position: int) -> dict[str, Any]:
    """What was written to a log behind a place; from its start where it is shorter by now."""
    data, start = _read(log, position)
    text, used, bar = _lines(data)
    full = len(data) == MOST_LOG
    if full and not used:  # a bar that goes on for long: only its newest state counts
        used = len(data)
    return {"text": text, "bar": "" if full else bar, "next": start + used, "more": full}


def found(log: Path, word: str) -> dict[str, Any]:
    """The last lines of a log that have a word, whatever their case."""
    lines: list[str] = []
    wanted = word.casefold()
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SEARCHED))
            for line in file:
                shown = _resolved(line)
                if wanted in shown.casefold():
                    lines = [*lines[-MOST_FOUND + 1 :], shown]
    except OSError:
        lines = []
    return {"text": "".join(f"{line}\n" for line in lines), "bar": "", "next": 0, "more": False}


def _listed(job: str, place: int, made: Made, roots: Sequence[Path]) -> dict[str, Any]:
    path = Path(made.path)
    there = _is_there(path, roots)
    shown = there and path.is_file() and (media_of(made.path) is not None or (made.content == LORA and path.suffix == ".safetensors"))
    return {
        "file": place,
        "content": made.content,
        "name": path.name,
        "bytes": _size(path) if there else None,
        "step": made.step,
        "exists": there,
        "url": f"{ROUTE}/{job}/file/{place}" if shown else None,
    }


def _is_there(path: Path, roots: Sequence[Path]) -> bool:
    """Whether it is there, in a folder that may be looked into."""
    try:
        return path.is_absolute() and guard.is_inside(path, roots) and path.exists()
    except (OSError, ValueError):  # no path at all
        return False


def _size(path: Path) -> int | None:
    try:
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size
    except OSError:
        return None


def _read(log: Path, position: int | None) -> tuple[bytes, int]:
    """At most `MOST_LOG` bytes and where they begin: from a place, or the last ones."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - MOST_LOG) if position is None else position if position <= size else 0
            file.seek(start)
            return file.read(MOST_LOG), start
    except (OSError, OverflowError):
        return b"", 0


def _lines(data: bytes) -> tuple[str, int, str]:
    """The whole lines of a piece of a log, how many bytes they take, and the line behind them that is not ended yet."""
    used = data.rfind(b"\n") + 1
    text = "".join(f"{_resolved(line)}\n" for line in data[:used].split(b"\n")[:-1])
    return text, used, _resolved(data[used:])


def _resolved(line: bytes) -> str:
    """As a terminal shows it at last: a bar writes its states over each other."""
    states = [state for state in line.rstrip(b"\r\n").split(b"\r") if state]
    return states[-1].decode("utf-8", "replace") if states else ""
