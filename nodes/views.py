"""The pages of datasets that were looked at, and changing a caption on one of them.

Every page that Dataset Viewer shows is kept in `<home>/datasets/views/<id>.json`, written by our backend. A caption is addressed by that
id and the item's number; paths never come from the web page. It is written where the dataset has it: the text file next to the item, or
its line in the JSONL file. What lies outside the allowed roots now is not touched, nor are files that do not end like captions.
"""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.documents import parse_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.texts import read_text
from .answers import Rejected
from .jobs import guard
from .spec import Host

ENDINGS = (".txt", ".caption", ".captions", ".tags", ".jsonl")
LONGEST = 20_000
_ID = re.compile(r"[0-9a-f]{16}")
_writing = threading.Lock()


class Changed(Rejected):
    """The caption is no longer what the page shows; the answer has what it is now."""

    status = 409

    def __init__(self, current: str) -> None:
        super().__init__("this caption was changed elsewhere in the meantime", {"current": current})


def folder(home: Path) -> Path:
    return home / "datasets" / "views"


def path(home: Path, view_id: str) -> Path:
    return folder(home) / f"{view_id}.json"


def load(home: Path, view_id: object) -> dict[str, Any]:
    """The page with this id. UserError when there is none."""
    if not isinstance(view_id, str) or not _ID.fullmatch(view_id):
        raise UserError("this is not the id of a dataset page")
    try:
        view = _checked(parse_json(path(home, view_id).read_text(encoding="utf-8"), dict, paths=True))
    except FileNotFoundError:
        raise UserError("this dataset page is not there any more: run Dataset Viewer again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"this dataset page cannot be read ({error!r}): run Dataset Viewer again") from None
    return view


def _checked(view: dict[str, Any]) -> dict[str, Any]:
    """ValueError, KeyError or TypeError where a page is not as our backend writes it: the file may have been edited, or cut off."""
    kinds: dict[str, type] = {"page": int, "pages": int, "sheet": object, "items": list}
    of_items: dict[str, type] = {
        "number": int,
        "name": str,
        "box": object,
        "problem": object,
        "caption": str,
        "path": str,
        "caption_place": dict,
    }
    of_places: dict[str, type] = {"file": str, "key": str}
    tables = [(view, kinds), *((item, of_items) for item in view["items"]), *((item["caption_place"], of_places) for item in view["items"])]
    for table, wanted in tables:
        for key, kind in wanted.items():
            if not isinstance(table[key], kind):
                raise ValueError(f"{key} is not as it is written")
    return view


def for_the_page(host: Host, view_id: object) -> dict[str, Any]:
    """What the web page shows of a view, with the captions as they are now; no paths but the names of files."""
    view = load(host.home, view_id)
    items = []
    for item in view["items"]:
        shown = {key: item[key] for key in ("number", "name", "box", "problem")}
        try:
            shown |= {"caption": _Place.of(host, item).read(), "locked": ""}
        except UserError as error:
            shown |= {"caption": item["caption"], "locked": str(error)}
        items.append({**shown, "facts": _facts(item)})
    return {"id": view_id, "page": view["page"], "pages": view["pages"], "sheet": view["sheet"], "items": items}


def save_caption(host: Host, view_id: object, number: object, before: object, caption: object) -> str:
    """Make `caption` the caption of an item; returns it as stored. `before` is what it was when the page read it.

    UserError for anything unknown, too long or not allowed; Changed when the caption is not `before` any more.
    """
    if not isinstance(caption, str) or not isinstance(before, str) or isinstance(number, bool) or not isinstance(number, int):
        raise UserError("a caption to save needs the view's id, the item's number, the caption before, and the caption")
    if len(caption) > LONGEST or "\0" in caption:
        raise UserError(f"a caption is text of at most {LONGEST} characters")
    item = next((item for item in load(host.home, view_id)["items"] if item["number"] == number), None)
    if item is None:
        raise UserError(f"there is no item {number} on this page")
    place, text = _Place.of(host, item), caption.strip()
    with _writing:
        current = place.read()
        if current != before.strip():
            raise Changed(current)
        if text != current:
            place.write(text)
    return text


class _Place:
    """Where one caption is: a text file, or a line of a JSONL file."""

    def __init__(self, file: Path, key: str, medium: Path) -> None:
        self.file, self.key, self.medium = file, key, medium

    @classmethod
    def of(cls, host: Host, item: dict[str, Any]) -> _Place:
        """UserError when the caption may not be touched."""
        file, medium = Path(item["caption_place"]["file"]), Path(item["path"])
        roots = host.allowed_roots()
        if not guard.is_inside(file, roots) or not guard.is_inside(medium, roots):
            raise UserError(f"{file.name} is outside the folders this pack may use")
        if file.suffix.lower() not in ENDINGS:
            raise UserError(f"{file.name} does not end like a caption ({', '.join(ENDINGS)}): edit it by hand")
        return cls(file, item["caption_place"]["key"], medium)

    def read(self) -> str:
        """The caption now; "" for a medium without a caption file. UserError when both are gone."""
        if self.key:
            return str(self._record()[1].get("caption", "")).strip()
        return self._text().strip() if self.file.exists() or not self.medium.exists() else ""

    def write(self, caption: str) -> None:
        """OSError when the disk is full; the file is then as before."""
        if not self.key:
            write_text(self.file, caption)
            return
        number, record = self._record()
        lines = self._text().split("\n")
        lines[number] = json.dumps({**record, "caption": caption}, ensure_ascii=False)
        write_text(self.file, "\n".join(lines))

    def _record(self) -> tuple[int, dict[str, Any]]:
        """(number of the item's first line, counted from 0; what stands there)."""
        for number, line in enumerate(self._text().split("\n")):
            try:
                record = parse_json(line, dict, paths=True)
            except ValueError:
                continue  # Dataset Config tells of lines that are no JSON
            named = record.get(self.key) or record.get(f"{self.key}_0")
            if isinstance(named, str) and _same(Path(named), self.medium):
                return number, record
        raise UserError(f"{self.file.name} does not list {self.medium.name} any more: run Dataset Viewer again")

    def _text(self) -> str:
        try:
            return read_text(self.file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file.name} cannot be read: {error}") from None


def _same(one: Path, other: Path) -> bool:
    return os.path.normcase(os.path.abspath(one)) == os.path.normcase(os.path.abspath(other))


def _facts(item: dict[str, Any]) -> str:
    """Sizes and frames of an item in one line."""
    if "bucket" not in item:
        return ""
    text = f"{item['size'][0]}×{item['size'][1]} → {item['bucket'][0]}×{item['bucket'][1]}"
    if "windows" in item:
        windows = ", ".join(f"{start}–{start + length - 1}" for start, length in item["windows"])
        text += f" · {counted(item['frames'], 'frame')} · {windows}"
    return text
