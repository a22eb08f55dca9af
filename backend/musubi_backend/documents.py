"""JSON and TOML that somebody else wrote, or a disk damaged: they become plain values, or a ValueError in words. Nothing else comes out,
however deep, long or odd the text is, and no time that grows faster than the text."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .texts import read_text

T = TypeVar("T")

_DIGITS = 30  # of a whole number; longer ones take quadratic time, and there is nothing they could count
_DEPTH = 200  # of lists and objects in each other
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\[uU](?:0000)?[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(r"(?<![\w.])[+-]?[0-9][0-9_]{30}")
_KINDS: dict[Any, str] = {dict: "an object { }", list: "a list [ ]"}


def parse_json(text: str | bytes, kind: type[T], *, paths: bool = False) -> T:
    """The value in a JSON text, which is a `kind` (dict or list; object for any).

    paths: a file of our own, in which a path that is no valid Unicode may stand as halves of characters; such text cannot be written or
    shown, and is rejected elsewhere. ValueError says what is wrong and, where it is known, in which line.
    """
    try:
        words = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(words, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"lists and objects lie more than {_DEPTH} deep in each other") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    if not isinstance(value, kind):
        raise ValueError(f"it holds {_named(type(value))} where {_KINDS.get(kind, kind.__name__)} is needed")
    if not paths and (_HALF_CHARACTER.search(words) or _ESCAPED_HALF.search(words)):
        _refuse_half_characters(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. ValueError says what is wrong, and in which line."""
    number = _LONG_NUMBER.search(text)
    if number and sys.version_info < (3, 11):  # from 3.11 on, Python itself rejects what would take long
        _whole("9" * (_DIGITS + 1))
    if sys.version_info >= (3, 11):  # not at the beginning: install.py reads JSON with this module before tomli is installed
        import tomllib
    else:
        import tomli as tomllib
    try:
        tables: dict[str, Any] = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"lists and tables lie more than {_DEPTH} deep in each other") from None
    except (OverflowError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not TOML ({error})") from None
    if _HALF_CHARACTER.search(text) or _ESCAPED_HALF.search(text):
        _refuse_half_characters(tables)
    return tables


def read_json(path: Path, kind: type[T], *, paths: bool = False) -> T:
    """As `parse_json`, of a file in any encoding `read_text` knows. OSError where it cannot be read."""
    return parse_json(read_text(path), kind, paths=paths)


def json_text(value: Any, indent: int | None = None) -> str:
    """A JSON text for people: letters as they are, unless a path is no valid Unicode and must be escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return json.dumps(value, indent=indent) if _HALF_CHARACTER.search(text) else text


def whole_number(value: Any, name: str, most: int = 2**53) -> int:
    """A count in a file: from 0 to `most`. ValueError names it otherwise; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most or value != int(value):
        raise ValueError(f"{name} is {_short(value)}, and a whole number from 0 to {most} is needed")
    return int(value)


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS + 1:
        raise ValueError(f"a number has {len(digits)} digits ({digits[:20]}…)")
    return int(digits)


def _refuse_half_characters(value: Any) -> None:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            waiting += [*found, *found.values()]
        elif isinstance(found, list):
            waiting += found
        elif isinstance(found, str) and _HALF_CHARACTER.search(found):
            _half_character(found)


def _half_character(text: str) -> NoReturn:
    raise ValueError(f"a text holds half a character (a lone surrogate): {_short(text)}")


def _named(kind: type) -> str:
    return _KINDS.get(kind, "null" if kind is type(None) else f"a {kind.__name__}")


def _short(value: Any) -> str:
    return ascii(value)[:60]
