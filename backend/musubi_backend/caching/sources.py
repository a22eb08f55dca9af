"""What the caches of a folder were made from, noted in one file next to them, so that a change of it is noticed.

`cache_sources.json`, apart from the caches themselves, which are musubi-tuner's byte for byte:

    {"items": {"<stem>_<architecture>" or, of captions, "<stem>_<architecture>_te":
         {"files": {name: [sizes and times, digest]}, "media": [digest, ...], "settings": "<id>", "unfinished": true}},
     "settings": {"<id>": {"vae": digest, "vae_dtype": ..., "source_fps": ...}},
     "media": {path: [sizes and times, digest]}}

What is about to be cached is noted as unfinished first, so that after a crash it is cached again. Caches without a note, or
rewritten by another program, count as good. Several processes may write to one folder: each adds what it made, under a lock.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import content, durations
from ..atomic import write_text
from ..content import RECORD, Seen
from ..dataset.media import images_in
from ..documents import parse_json
from ..errors import UserError

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..dataset.items import MediaItem

logger = logging.getLogger(__name__)

_EMPTY: dict[str, dict[str, Any]] = {"items": {}, "settings": {}, "media": {}}


@dataclass(frozen=True)
class Made:
    """What caches are made from. media: digests of the item's image or clip, then of its further targets and control media;
    settings: what else decides, with digests of the encoders' files. Values are compared where both sides have them."""

    media: tuple[str, ...]
    settings: Mapping[str, Any]


def latents_key(item: MediaItem, card: Card) -> str:
    """Under which `Sources` notes the latent caches of an item."""
    return f"{item.stem}_{card.cache_id}"


def dataset_settings(item: MediaItem, card: Card, *, one_frame: bool = False) -> dict[str, Any]:
    """The settings of an item's dataset that change the numbers in latent caches of the same name and shape."""
    dataset = item.dataset
    names = ["source_fps"]
    names += ["control_resolution", "no_resize_control"] if item.controls else []
    names += ["fp_1f_target_index", "fp_1f_clean_indices", "fp_1f_no_post"] if one_frame else []
    names += ["fp_latent_window_size"] if card.sections else []
    return {name: getattr(dataset, name) for name in names if hasattr(dataset, name)}


def text_key(item: MediaItem, card: Card) -> str:
    """Under which `Sources` notes the text cache of an item."""
    return f"{item.stem}_{card.cache_id}_te"


class Sources:
    """The notes on the caches of one folder. Nothing is written before `begin` or `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = _read(folder / RECORD)
        self._added = {name: dict(part) for name, part in _EMPTY.items()}
        self._saved = time.monotonic()

    def media(self, paths: Sequence[Path]) -> tuple[str, ...]:
        """A digest per medium (file, or folder of images), "" for one that cannot be read; what was not touched since it was last
        looked at is not read again."""
        return tuple(self._look(path) for path in paths)

    def known(self, key: str, paths: Iterable[Path]) -> bool:
        """Are these caches still the files that are noted for the item?"""
        item = self._record["items"].get(key, {})
        found = {path.name: _look_again(path, item.get("files", {}).get(path.name)) for path in paths}
        if not all(found.values()):
            return False
        if any(seen != Seen(*item["files"][name]) for name, seen in found.items() if seen):  # copied or restored: times differ
            self._put(key, {**item, "files": {**item["files"], **found}})
        return True

    def problem(self, key: str, paths: Iterable[Path], made: Made) -> str | None:
        """Why the item's caches at `paths`, all there, must be made again; None when they are good or nothing is noted."""
        item = self._record["items"].get(key)
        if item is not None and item.get("unfinished"):
            return "caching was interrupted"
        if item is None or not self.known(key, paths):
            return None
        if made.media and item["media"][:1] != [made.media[0]]:
            return "the image or clip has changed"
        if made.media and item["media"] != list(made.media):
            return "control or target images have changed"
        before, now = self._record["settings"].get(item["settings"], {}), _json(made.settings)
        names = [name for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
        return f"another {', '.join(names)}" if names else None

    def begin(self, keys: Iterable[str]) -> None:
        """Note that these items are about to be cached. UserError when that cannot be written."""
        for key in keys:
            self._put(key, {**self._record["items"].get(key, {}), "unfinished": True})
        try:
            self._write()
        except OSError as error:
            raise UserError(f"{self.folder / RECORD} could not be written: {error.strerror or error}") from error

    def made(self, key: str, paths: Iterable[Path], made: Made) -> None:
        """Note that all caches of an item are there, and what they were made from. Written now and then; see `save`."""
        settings = _json(made.settings)
        used = content.digest(settings)
        note = {"media": list(made.media), "settings": used}
        before = self._record["items"].get(key, {})
        kept = before.get("files", {}) if {name: before.get(name) for name in note} == note else {}
        self._put(key, {"files": {**kept, **{path.name: content.look([path]) for path in paths}}, **note})
        self._added["settings"][used] = self._record["settings"][used] = settings
        if time.monotonic() - self._saved > durations.BETWEEN_RECORDS:
            self.save()

    def save(self) -> None:
        """Write what was noted. When that fails it is said, and what was begun will be cached again."""
        if not any(self._added.values()):
            return
        try:
            self._write()
        except (OSError, UserError) as error:
            logger.warning(f"{self.folder / RECORD} could not be written, changes of media will not be noticed: {error}")

    def made_from(self, paths: Iterable[Path]) -> list[Any]:
        """Per cache file a JSON-able value that changes when it was made from something else or holds something else."""
        notes = {
            name: (seen, item["media"], item["settings"])
            for item in self._record["items"].values()
            if not item.get("unfinished")
            for name, seen in item["files"].items()
        }
        values: list[Any] = []
        for path in paths:
            note = notes.get(path.name)
            if note is not None and _look_again(path, note[0]):
                values.append([path.name, note[0][1], note[1], self._record["settings"].get(note[2])])
            else:
                values.append(content.stamp(path))
        return values

    def _put(self, key: str, item: dict[str, Any]) -> None:
        self._added["items"][key] = self._record["items"][key] = item

    def _look(self, path: Path) -> str:
        name = str(path.absolute())
        before = self._record["media"].get(name)
        try:
            seen = content.look(images_in(path) if path.is_dir() else [path], Seen(*before) if before else None)
        except OSError:
            return ""  # decoding will say why
        if before is None or tuple(seen) != tuple(before):
            self._added["media"][name] = self._record["media"][name] = seen
        return seen.digest

    def _write(self) -> None:
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / f".{RECORD}.lock", timeout=durations.RECORD_LOCK):
                record = _read(self.folder / RECORD)
                for name, part in self._added.items():
                    record[name] |= part
                _drop_what_is_gone(record, self.folder)
                write_text(self.folder / RECORD, json.dumps(record))  # in ASCII: a name need not be UTF-8
        except Timeout:
            raise UserError(f"another program has held {self.folder / RECORD} for a minute; end it and run again") from None
        for part in self._added.values():
            part.clear()
        self._saved = time.monotonic()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The notes; none when there are none yet or they are damaged."""
    try:
        return _checked(parse_json(path.read_text(encoding="utf-8"), object, paths=True))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{path} cannot be read ({error}); the caches are taken as good, where they fit")
    return {name: {} for name in _EMPTY}


def _drop_what_is_gone(record: dict[str, dict[str, Any]], folder: Path) -> None:
    """Forget the notes on files that were deleted, and what only they needed."""
    names = {entry.name for entry in os.scandir(folder)}
    for key, item in list(record["items"].items()):
        if "files" in item:
            item["files"] = {name: seen for name, seen in item["files"].items() if name in names}
        if not item.get("files") and not item.get("unfinished"):
            del record["items"][key]
    used = {item.get("settings") for item in record["items"].values()}
    media = {found for item in record["items"].values() for found in item.get("media", ())}
    unfinished = any(item.get("unfinished") for item in record["items"].values())
    record["settings"] = {key: value for key, value in record["settings"].items() if key in used}
    record["media"] = {path: seen for path, seen in record["media"].items() if unfinished or seen[1] in media}


def _look_again(path: Path, noted: Sequence[str] | None) -> Seen | None:
    """The file as it is now, when it still holds what is noted."""
    if noted is None:
        return None
    try:
        seen = content.look([path], Seen(*noted))
    except OSError:
        return None
    return seen if seen.digest == noted[1] else None


def _checked(record: Any) -> dict[str, dict[str, Any]]:
    """The parts of a record that was read. ValueError where it is not as we write it: the file may have been edited."""
    pairs = [*record["media"].values(), *(pair for item in record["items"].values() for pair in item.get("files", {}).values())]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs):
        raise ValueError("sizes, times or digests are not as they are written")
    noted = [item for item in record["items"].values() if "files" in item or not item.get("unfinished")]
    if not all(isinstance(item["media"], list) and isinstance(item["settings"], str) and isinstance(item["files"], dict) for item in noted):
        raise ValueError("an item is not as it is written")
    if not all(isinstance(settings, dict) for settings in record["settings"].values()):
        raise ValueError("settings are not as they are written")
    return {name: dict(record[name]) for name in _EMPTY}


def _json(value: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(value))
    return result
