"""What nodes and the backend say, in a language: by `web/said/<language>.json`, whose keys are the English sentences with `{holes}`.

The page (`web/trainings/words.js`) goes by the same entries and rules. A sentence that has no entry is taken apart; what is not known stays
English. Holes whose names begin with `said` or `kind` hold words that are said in the language too; `{clips:clip|clips}` is a number with
what it counts. A flag in an entry, as `--dit`, stands
for whatever a node calls it (`jobs/wording.py`): `dit`, `--dit`, or the name of a widget.
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from .widget_names import called, marked, with_marks

ENGLISH = "en"
LANGUAGES = (ENGLISH, "ja", "zh")
SAID = Path(__file__).resolve().parent.parent / "web" / "said"
_HOLE = re.compile(r"\{(\w+)(?::([^|{}]+)\|([^|{}]+))?\}|(?<![\w-])(--[a-z]\w*) ?")  # a value, or a number with its word; a flag
_AROUND, _KIND = "said", "kind"  # holes of sentences, and of words without which it is another sentence
_INPUT = "name"
# an input's; what no sentence around it fits into; a whole path, a number and words, as hardly anything before them is one
_HOLDS = {
    _INPUT: r"\w+",
    "path": r"(?:\w:)?[^:]*",
    "parent": r"(?:/|\\\\|\w:[\\/]).*",
    "steps": r"\d[\d.,]*",
    "left": r"\d[^,]*",
    "kind_words": "[a-z ]+",
}
_NUMBER = r"\d[\d.,]*"
_FLAG = r"(?:-{0,2}\w[\w-]*(?: and \w+| Config)? ?)?"
_BETWEEN = ("\n", " · ", " | ")  # what stands between sentences
_WITHIN = (". ", "; ", ": ")  # and between the parts of one that no entry has whole
_STOPS = {"ja": {". ": "。", "; ": "。"}, "zh": {". ": "。", "; ": "；", ": ": "："}}  # the same behind what is said in the language
_MOST_PARTS = 50  # a text of more is a log
_BEGIN = re.compile(r"(?:\s|- |… )*")  # of a line in a list
_COUNTED = re.compile(r"(.+)( \d+/\d+)")  # how far something is, behind its name


class _Sentence(NamedTuple):
    part: str
    """What it surely has in it: looked for first, as patterns are slow."""
    pattern: re.Pattern[str]
    names: list[str]
    translation: str


def known(name: str) -> str:
    """The language that texts are in for a browser or a setting that names `name`, such as "ja-JP"; English where there are none."""
    return next((language for language in LANGUAGES if name.lower().startswith(language)), ENGLISH)


@lru_cache(2048)
def translated(text: str, language: str) -> str:
    """A text of one or several sentences in a language of `LANGUAGES`."""
    if language == ENGLISH:
        return text
    said = _said(text, language)
    return text if said == text else called(said, language)


def _said(text: str, language: str) -> str:
    if not text:
        return text
    for between in _BETWEEN:
        if between in text:
            return between.join(_said(part, language) for part in text.split(between))
    begin = _BEGIN.match(text)
    if begin and 0 < begin.end() < len(text):
        said = _said(text[begin.end() :], language)
        return said if begin[0] == " " and said.startswith("（") else begin[0] + said
    whole = _whole(text, language)
    if whole is not None:
        return whole
    counted = _COUNTED.fullmatch(text)
    if counted:
        return _said(counted[1], language) + counted[2]
    for within in _WITHIN:
        first, found, rest = text.partition(within)
        if found and text.count(within) < _MOST_PARTS:
            before, behind = _said(first, language), _said(rest, language)
            if (before, behind) != (first, rest):
                return before + (within if first and before == first else _STOPS[language].get(within, within)) + behind
    return text


def _whole(text: str, language: str) -> str | None:
    """By an entry that fits all of it."""
    for sentence in _sentences(language):
        found = sentence.pattern.fullmatch(text) if sentence.part in text else None
        if found:
            values = dict(zip(sentence.names, found.groups(), strict=True))
            said = {name: _said(value, language) for name, value in values.items() if name.startswith((_AROUND, _KIND))}
            if all(said[name] != values[name] for name in said if name.startswith(_KIND)):
                inputs = {name: marked(value) for name, value in values.items() if name == _INPUT}
                return _filled(sentence.translation, {**values, **said, **inputs})
    return None


def _filled(translation: str, values: dict[str, str]) -> str:
    def value(hole: re.Match[str]) -> str:
        if hole[1]:
            return values[hole[1]]
        flag = values.get(hole[4], hole[4]).strip()
        return f"{flag} " if flag and hole[0].endswith(" ") else flag

    return _HOLE.sub(value, translation)


@cache
def _sentences(language: str) -> list[_Sentence]:
    """First what is around a sentence, then what says most by itself, as one with many holes fits others."""
    found = []
    for english, translation in json.loads((SAID / f"{language}.json").read_text(encoding="utf-8")).items():
        names, pattern, parts, end, counted = list[str](), "", list[str](), 0, 0
        for hole in _HOLE.finditer(english):
            name, one, several, flag = hole.groups()
            parts.append(english[end : hole.start()])
            pattern += re.escape(parts[-1]) + (f"({_FLAG})" if flag else f"({_NUMBER if one else _HOLDS.get(name, '.*')})")
            if one:
                pattern += f" (?:{re.escape(several)}|{re.escape(one)})"
                counted += len(one)
            names.append(name or flag)
            end = hole.end()
        parts.append(english[end:])
        around = any(name.startswith(_AROUND) for name in names)
        order = (not around, -sum(map(len, parts)) - counted)
        found.append(
            (
                order,
                _Sentence(
                    max(parts, key=len), re.compile(pattern + re.escape(parts[-1])), names, with_marks(translation, english, language)
                ),
            )
        )
    return [sentence for _, sentence in sorted(found, key=lambda entry: entry[0])]
