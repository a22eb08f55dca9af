"""Samples that ComfyUI made of a training's checkpoints with a graph of the user's own. They stay in the folder of the run:

    <run>/workflow_samples/<id>.json    which checkpoint, which prompt of ComfyUI, what became of it
    <run>/workflow_samples/<id>_<n>.*   the images and videos that it saved

The page notes a sample first, then queues its prompt as it queues any other, with the id of the note in it: closed between the two, it
leaves a note that fails, and after them none is lost. ComfyUI's queue and history say what came of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import process_names
from ...backend.musubi_backend.atomic import replacing, write_text
from ...backend.musubi_backend.documents import json_text, read_json
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.place import reason
from .. import checkpoints, publishing
from ..answers import NotThere
from ..background.results import for_comfyui
from ..jobs import config as configuration
from ..jobs import guard, queue
from ..jobs.folder import RUNS
from ..spec import Host
from . import details

FOLDER = "workflow_samples"
QUEUED, FINISHED, FAILED = "queued", "finished", "failed"
ROUTE = "jobs/{id}/workflow_samples/{sample}/{number}"
MOST_SHOWN, MOST_FILES, LONGEST_TEXT = 500, 50, 500
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_PROMPT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_STEPS = 2**31
MARK = "musubi_tuner_sample"  # in the `_meta` of a node of the prompt: the id of its note
_COMES = 120.0  # seconds in which a prompt has to come after its note

LOST = "it was taken out of ComfyUI's queue before it ran, or ComfyUI ended"
NEVER = "it never came into ComfyUI's queue: the page was closed before, or lost the connection"
CANCELLED = "it was cancelled"
NOTHING = "the workflow saved no image and no video: add Save Image or Save Video behind the LoRA loader"


def offered(host: Host, job: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoints of a job's run that can be sampled, the furthest first, and whether a training has ComfyUI's GPU. Reads their
    headers."""
    found = checkpoints.by_step(_run(host, job))
    return {
        "checkpoints": [
            {"step": step, "files": {expert: path.name for expert, path in found[step].items()}} for step in sorted(found, reverse=True)
        ],
        "occupied": queue.occupant(host.home, host.gpus),
        "generation": configuration.load(host.home).queue["generation"],
    }


async def publish(host: Host, job: Mapping[str, Any], step: Any) -> dict[str, Any]:
    """Put the LoRA of a step, or that of each expert, where ComfyUI offers it. Returns their names in its list by expert."""
    steps = await asyncio.to_thread(lambda: checkpoints.by_step(_run(host, job)))
    found = steps.get(step) if type(step) is int else None
    if found is None:
        raise NotThere("there is no checkpoint of this step (any more)")
    names = {}
    for expert, path in found.items():
        made = await for_comfyui(host.home, str(job["tool"]), path)
        names[expert] = (await asyncio.to_thread(publishing.publish, made, host.loras_dir(), path.stem))[0]
    return {"step": step, "loras": names}


def listed(home: Path, run: str | None, job: str) -> list[dict[str, Any]]:
    """The samples of a run as the page shows them, the newest last."""
    found = []
    for sample, note in _notes(home / RUNS / run / FOLDER) if run else ():
        url = f"/musubi_tuner/jobs/{job}/{FOLDER}/{sample}"
        files = [{"media": details.media_of(name), "url": f"{url}/{place}"} for place, name in enumerate(note["files"])]
        found.append({"id": sample, **{key: note[key] for key in ("step", "workflow", "prompt", "state", "text", "time")}, "files": files})
    return found[-MOST_SHOWN:]


def served(home: Path, run: str | None, sample: str, number: str) -> details.Served | None:
    """A file of a sample; None for what is not given out."""
    if not run or not _ID.fullmatch(sample) or not number.isascii() or not number.isdecimal() or len(number) > 6:
        return None
    folder = home / RUNS / run / FOLDER
    files: list[str] = next((note["files"] for name, note in _notes(folder) if name == sample), [])
    path = folder / files[int(number)] if int(number) < len(files) else folder
    kind = details.media_of(path.name)
    return (path, kind, False) if kind and guard.is_inside(path, [folder]) and path.is_file() else None


class Pending:
    """The samples of a home that ComfyUI has not made yet. All methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._open: dict[Path, dict[str, Any]] | None = None

    def add(self, job: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Note a prompt of ComfyUI that is of a checkpoint: by its id, or by its mark, this note's id. UserError for what cannot be."""
        step, prompt_id = values.get("step"), values.get("prompt_id")
        workflow, prompt = values.get("workflow"), values.get("prompt", "")
        if not job["run"]:
            raise UserError("this job is no training with a folder of its own")
        if type(step) is not int or not 0 <= step < _MOST_STEPS:
            raise UserError("step is a whole number")
        if prompt_id is not None and not (isinstance(prompt_id, str) and _PROMPT_ID.fullmatch(prompt_id)):
            raise UserError("prompt_id is what ComfyUI answered when it queued the prompt")
        if not isinstance(workflow, str) or not workflow.strip() or not isinstance(prompt, str):
            raise UserError("workflow is its name, and prompt a text")
        note = {
            **{"step": step, "prompt_id": prompt_id or "", "workflow": _text(workflow), "prompt": _text(prompt)},
            **{
                "state": QUEUED,
                "text": "",
                "time": round(time.time(), 3),
                "files": [],
                **process_names.named(os.getpid()),
            },
        }
        sample = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        path = self._home / RUNS / job["run"] / FOLDER / f"{sample}.json"
        with self._lock:
            path.parent.mkdir(exist_ok=True)
            _write(path, note)
            self._known()[path] = note
        return {"sample": sample}

    def refused(self, job: Mapping[str, Any], sample: Any) -> dict[str, Any]:
        """Forget a note whose prompt ComfyUI did not take; the page has said why."""
        with self._lock:
            path = next((path for path in self._known() if path.stem == sample and path.parent.parent.name == job["run"]), None)
            if path is None:
                raise NotThere("there is no such sample (any more)")
            del self._known()[path]
            path.unlink(missing_ok=True)
        return {"sample": sample}

    def collect(self, comfy_queue: Any, places: Mapping[str, Path]) -> set[str]:
        """Take in what ComfyUI has made since. comfy_queue: its `PromptQueue`; places: its folders by their kind, "output" and "temp".
        Returns the runs that have something new."""
        with self._lock:
            waiting = self._known()
            if not waiting:
                return set()
            queued = [item for part in comfy_queue.get_current_queue() for item in part]  # looked at first: it moves on to the history
            there = {item[1] for item in queued}
            marked = _marked(comfy_queue, queued) if any(not note["prompt_id"] for note in waiting.values()) else {}
            changed = set()
            for path, note in list(waiting.items()):
                ours = note["pid"] == os.getpid()
                if not ours and process_names.runs(note):
                    continue  # another ComfyUI has the same home
                prompt_id = note["prompt_id"] = note["prompt_id"] or marked.get(path.stem, "")
                if prompt_id in there or (ours and not prompt_id and abs(time.time() - note["time"]) < _COMES):
                    continue
                if path.is_file():  # else it was cleaned up
                    entry = comfy_queue.get_history(prompt_id=prompt_id).get(prompt_id) if prompt_id else None
                    never = {"state": FAILED, "text": NEVER}
                    _write(path, {**note, **(never if ours and not prompt_id else _outcome(entry, places, path))})
                    changed.add(path.parent.parent.name)
                del waiting[path]
            return changed

    def _known(self) -> dict[Path, dict[str, Any]]:
        if self._open is None:
            folders = (self._home / RUNS).glob(f"*/{FOLDER}")
            self._open = {
                folder / f"{sample}.json": dict(note) for folder in folders for sample, note in _notes(folder) if note["state"] == QUEUED
            }
        return self._open


@lru_cache(maxsize=4)
def pending_of(home: Path) -> Pending:
    """The one of a home, which all requests share."""
    return Pending(home)


def _run(host: Host, job: Mapping[str, Any]) -> Path:
    folder = host.home / RUNS / str(job["run"])
    if not job["run"] or not folder.is_dir():
        raise NotThere("the folder of this training is not there (any more)")
    return folder


def _marked(comfy_queue: Any, queued: list[Any]) -> dict[str, str]:
    """The ids of the prompts that carry a mark, by that mark. queued: items of ComfyUI's queue: number, id, prompt, ..."""
    found: dict[str, str] = {}
    for item in [*queued, *comfy_queue.get_history(map_function=lambda entry: entry["prompt"][:3]).values()]:
        for node in item[2].values():
            meta = node.get("_meta") if isinstance(node, dict) else None
            mark = meta.get(MARK) if isinstance(meta, dict) else None
            if isinstance(mark, str):
                found.setdefault(mark, item[1])
    return found


def _notes(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The samples in a folder, the newest last."""
    for path in sorted(folder.glob("*.json")):
        with suppress(FileNotFoundError):  # removed meanwhile
            place = path.stat()
            note = _note(path, place.st_ino, place.st_mtime_ns) if _ID.fullmatch(path.stem) else None
            if note is not None:
                yield path.stem, note


@lru_cache(maxsize=4096)
def _note(path: Path, inode: int, changed: int) -> Mapping[str, Any] | None:
    """What a file says, which is replaced by another one when that changes; None where it is damaged: one sample is lost."""
    try:
        return _checked(read_json(path, dict, paths=True))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checked(note: dict[str, Any]) -> dict[str, Any]:
    if note["state"] not in (QUEUED, FINISHED, FAILED) or not all(isinstance(name, str) for name in note["files"]):
        raise ValueError
    kinds = {"step": int, "prompt_id": str, "workflow": str, "prompt": str, "text": str, "time": float, "pid": int}
    return {**note, **{name: kind(note[name]) for name, kind in kinds.items()}}


def _outcome(entry: Any, places: Mapping[str, Path], path: Path) -> dict[str, Any]:
    """What became of a prompt, as its note says it. entry: of ComfyUI's history, None where it is not in it."""
    if entry is None:
        return {"state": FAILED, "text": LOST}
    status = entry.get("status") or {}
    if status.get("status_str", "success") != "success":
        return {"state": FAILED, "text": _text(_error(status.get("messages") or []))}
    try:
        files = [
            _taken(made, path.with_name(f"{path.stem}_{place}{made.suffix.lower()}")) for place, made in enumerate(_saved(entry, places))
        ]
    except OSError as error:
        return {"state": FAILED, "text": f"what it made could not be copied: {reason(error)}"}
    return {"state": FINISHED, "text": "", "files": files} if files else {"state": FAILED, "text": NOTHING}


def _error(messages: Any) -> str:
    for name, data in messages:
        if name == "execution_interrupted":
            return CANCELLED
        if name == "execution_error":
            return f"{data.get('node_type')}: {str(data.get('exception_message')).strip()}"
    return "it failed; ComfyUI's log says more"


def _saved(entry: Mapping[str, Any], places: Mapping[str, Path]) -> list[Path]:
    """The images and videos of a prompt: what it saved, and where that is nothing, its previews."""
    found: dict[str, dict[Path, None]] = {kind: {} for kind in places}
    for shown in _shown(entry):
        kind, path = str(shown.get("type")), _place(shown, places)
        if path is not None:
            found[kind][path] = None
    chosen = next((paths for paths in found.values() if paths), {})
    return list(chosen)[:MOST_FILES]


def _shown(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for output in (entry.get("outputs") or {}).values():
        for values in output.values():
            yield from (value for value in values if isinstance(value, dict)) if isinstance(values, (list, tuple)) else ()


def _place(shown: Mapping[str, Any], places: Mapping[str, Path]) -> Path | None:
    """The file that a node says it made, if it lies in the folder it names and a page can show it."""
    root, folder, name = places.get(str(shown.get("type"))), shown.get("subfolder") or "", shown.get("filename")
    if root is None or not isinstance(folder, str) or not isinstance(name, str) or details.media_of(name) is None or "\0" in folder + name:
        return None
    path = root / folder / name
    return path if guard.is_inside(path, [root]) and path.is_file() else None


def _taken(made: Path, target: Path) -> str:
    """A file of its own, without taking space twice where the disk allows it."""
    with replacing(target) as part:
        publishing.linked(made, part)
    return target.name


def _write(path: Path, note: Mapping[str, Any]) -> None:
    write_text(path, json_text(dict(note), indent=1) + "\n")


def _text(words: str) -> str:
    words = words.strip()
    return words if len(words) <= LONGEST_TEXT else f"{words[: LONGEST_TEXT - 1]}…"
