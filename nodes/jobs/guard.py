"""Which paths a widget may name: only those inside the allowed roots, judged after resolving `..` and links."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...backend.musubi_backend.errors import UserError

_SHOWN_NAMES = 8
_LONGEST_PART, _LONGEST_PATH = 255, 4000  # bytes that file systems and systems take
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³")}
_NOT_SEEN = {"Cc", "Zl", "Zp"}  # controls and breaks of lines
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # they show the rest in another order
LONGEST_NAME = 180
"""Bytes of a name, to which programs add up to 60: file systems allow 255."""


def is_inside(path: Path, roots: Iterable[Path]) -> bool:
    """True if the real location of `path` is one of `roots` or below one."""
    allowed = list(roots)
    if _is_network(path):
        # Windows sends the user's credentials to a server that it merely looks up: unknown ones are judged by name alone.
        allowed = [root for root in allowed if _below(os.path.abspath(path), os.path.abspath(root))]
    return bool(allowed) and any(_below(os.path.realpath(path), os.path.realpath(root)) for root in allowed)


def _is_network(path: Path) -> bool:
    return str(path).startswith(("//", "\\\\"))


def _below(path: str, root: str) -> bool:
    place, base = os.path.normcase(path), os.path.normcase(root)
    return place == base or place.startswith(base.rstrip(os.sep) + os.sep)


def inside(text: str, roots: Iterable[Path], what: str, *, relative_to: Sequence[Path] = (), must_exist: bool = True) -> Path:
    """The absolute path that `text` names, checked. A relative path counts from the first folder of `relative_to` that has it.

    UserError when it is empty, looks like a flag, does not exist (with `must_exist`), or lies outside `roots`.
    """
    allowed = list(roots)
    value = text.strip().strip('"')
    if not value:
        raise UserError(f"{what} is empty: enter a path")
    if "\0" in value or "\n" in value or value.startswith("-"):
        raise UserError(f"{what}: {value!r} is not a path")
    # `..` goes first, so that what is checked is what is used: behind a link it would mean another folder
    bases = [*relative_to] or allowed[:1]
    places = [Path(os.path.abspath(base / value)) for base in ([Path()] if Path(value).is_absolute() else bases)]
    _possible(value, places, what)
    path = next((place for place in places if place.exists()), places[0])
    if not is_inside(path, allowed):
        listed = "\n  ".join(str(root) for root in allowed)
        folder = path.parent if path.suffix else path
        raise UserError(
            f"{what}: {value} is outside the folders this pack may use:\n  {listed}\n"
            f"Move the files there, or allow {folder} in ComfyUI's Settings, under MusubiTuner "
            f'(on a terminal: python install.py --allow-root "{folder}")'
        )
    if must_exist and not path.exists():
        raise UserError(f"{what}: {path} does not exist. {_what_is_there(path)}")
    return path


def _possible(value: str, places: Sequence[Path], what: str) -> None:
    """UserError for a path that no file can have; a system answers with errors of its own kinds."""
    try:
        longest = max(len(os.fsencode(part)) for place in places for part in place.parts)
        length = max(len(os.fsencode(place)) for place in places)
    except UnicodeEncodeError:
        raise UserError(f"{what}: {ascii(value)[:60]} is not a path (half a character)") from None
    if longest > _LONGEST_PART or length > _LONGEST_PATH:
        raise UserError(
            f"{what}: {value[:40]}… is too long for a path: its longest name has {longest} bytes, all of it {length}; "
            f"{_LONGEST_PART} and {_LONGEST_PATH} are possible"
        )


def _what_is_there(path: Path) -> str:
    """What a person may have meant instead of a `path` that does not exist."""
    parent = next(folder for folder in path.parents if folder.is_dir())
    wanted = path.relative_to(parent).parts[0]
    try:
        names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f"{parent} cannot be read"
    alike = difflib.get_close_matches(wanted.lower(), [name.lower() for name in names], n=3)
    near = [name for name in names if name.lower() in alike]
    if near:
        return f"Did you mean {' or '.join(near)}, in {parent}?"
    shown = ", ".join(names[:_SHOWN_NAMES]) + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")
    return f"{parent} holds {shown or 'nothing'}"


def plain_name(text: str, what: str) -> str:
    """A file name without folder parts, usable on every system. UserError otherwise."""
    name = text.strip()
    if not name or name in {".", ".."} or name[0] in "-." or name[-1] == ".":
        raise UserError(f"{what}: {text!r} is not usable as a file name")
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise UserError(f"{what}: {ascii(name)[:60]} is not usable as a file name (half a character)") from None
    if len(name) > 100 or size > LONGEST_NAME:
        raise UserError(
            f"{what}: {name[:20]}… is too long for a file name: {len(name)} characters, {size} bytes. 100 characters and {LONGEST_NAME} "
            "bytes fit (a Chinese or Japanese character takes three)"
        )
    bad = sorted({character for character in name if character in '<>:"/\\|?*' or _misleads(character)})
    if bad:
        raise UserError(f"{what}: {text!r} holds {' '.join(map(ascii, bad))}, which a file name cannot")
    if name.split(".")[0].rstrip().upper() in _RESERVED:
        raise UserError(f"{what}: {text!r} is a reserved name on Windows")
    return name


def _misleads(character: str) -> bool:
    """Does a name with it look like another one?"""
    return unicodedata.category(character) in _NOT_SEEN or unicodedata.bidirectional(character) in _TURNING
