"""Widgets in messages, called as the nodes show them: `web/names/<language>.json` has their names, by what workflows call them.

The page (`web/trainings/names.js`) goes by the same names and rules. Names of files and options, and what a dataset file is about, stay.
A name of one word may be any word: it is a widget's where `marked` has said so, as in a translation that leaves it in English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

NAMES = Path(__file__).resolve().parent.parent / "web" / "names"
_QUOTES = {"ja": "「{}」", "zh": "“{}”"}
_BESIDE = "（{}）"
_MARK = "\ue000"  # of no language
_OF_A_FILE = re.compile(r"\.toml\b|\[(?:datasets|general)\]|datasets\[")  # a line about a dataset file names keys of it
_FLAG = re.compile(r"--\w+ $")
_INSIDE = (("(", ")"), ("（", "）"))
_CJK = "[\u3040-\u9fff]"
_BEFORE, _BEHIND = r"(?<![\w./\\\[\]{\"'=-])", r"(?!\w|[./\\-]\w|[\"'(}]| ?=)"


class Names(NamedTuple):
    """What a language calls widgets, and how they are found in a text."""

    shown: dict[str, str]
    word: re.Pattern[str]
    """Finds names of one word, anywhere."""
    widget: re.Pattern[str]
    """Finds names of several words, and what is marked, with the spaces that stand around English only."""


def marked(word: str) -> str:
    """A word that may be a widget's name, said so; `called` takes the mark away again."""
    return f"{_MARK}{word}{_MARK}"


def with_marks(translation: str, english: str, language: str) -> str:
    """A translation whose words that are left in English are marked, where they can be names of widgets."""

    def one(found: re.Match[str]) -> str:
        is_value = _FLAG.search(translation, 0, found.start())  # of an option
        return found[0] if is_value or found[0] not in english else marked(found[0])

    return _names(language).word.sub(one, translation)


def called(text: str, language: str, names: Names | None = None) -> str:
    """A message in a language other than English with its widgets as they are shown, the first time with what workflows call them."""
    names = names or _names(language)
    told = set[str]()

    def shown(found: re.Match[str]) -> str:
        widget, line = found[1] or found[2], found.string
        if widget not in names.shown:
            return found[0].replace(_MARK, "")
        name = _QUOTES[language].format(names.shown[widget])
        if widget in told:
            return name
        told.add(widget)
        around = line[found.start() - 1 : found.start()], line[found.end() : found.end() + 1]
        return f"{name} {widget}" if around in _INSIDE else name + _BESIDE.format(widget)

    lines = text.split("\n")
    return "\n".join(line.replace(_MARK, "") if _OF_A_FILE.search(line) else names.widget.sub(shown, line) for line in lines)


@cache
def _names(language: str) -> Names:
    return names_of(json.loads((NAMES / f"{language}.json").read_text(encoding="utf-8")))


def names_of(shown: Mapping[str, str]) -> Names:
    """shown: what is written into `web/names`."""
    word, several = ("|".join(name for name in shown if ("_" in name) == parts) for parts in (False, True))
    widget = rf"(?:(?<={_CJK}) )?(?:{_BEFORE}({several}){_BEHIND}|{_MARK}(\w+){_MARK})(?: (?={_CJK}))?"
    return Names(dict(shown), re.compile(f"{_BEFORE}(?:{word}){_BEHIND}", re.ASCII), re.compile(widget, re.ASCII))
