"""What nodes say while they run and when they refuse, in a language: by `web/texts/<language>.json`, whose entries `server.…` have the
English sentence with `{holes}`. The page (`web/trainings/words.js`) goes by the same entries and rules. What has no entry stays English."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

ENGLISH = "en"
LANGUAGES = (ENGLISH, "ja", "zh")
_TEXTS = Path(__file__).resolve().parent.parent / "web" / "texts"
_HOLE = re.compile(r"\{(\w+)\}")
_SAID, _KIND = "said", "kind"  # holes of sentences and of words that are said in the language too; a kind that has none is another sentence
_HOLDS = {"name": r"\w+", "path": r"(?:\w:)?[^:]*"}  # an input's, and what no sentence around it fits into
_BETWEEN = ("\n", " · ", " | ")  # what stands between sentences
_COUNTED = re.compile(r"(.+)( \d+/\d+)")  # how far something is, behind its name


def known(name: str) -> str:
    """The language that texts are in for a browser or a setting that names `name`, such as "ja-JP"; English where there are none."""
    return next((language for language in LANGUAGES if name.lower().startswith(language)), ENGLISH)


@lru_cache(512)
def translated(text: str, language: str) -> str:
    """A text of one or several sentences in a language of `LANGUAGES`."""
    if language == ENGLISH or not text:
        return text
    for between in _BETWEEN:
        if between in text:
            return between.join(translated(part, language) for part in text.split(between))
    for pattern, names, translation in _sentences(language):
        found = pattern.fullmatch(text)
        if found:
            values = dict(zip(names, found.groups(), strict=True))
            inside = {name: translated(values[name], language) for name in (_SAID, _KIND) if name in values}
            if _KIND not in values or inside[_KIND] != values[_KIND]:
                return _HOLE.sub(_filled({**values, **inside}), translation)
    counted = _COUNTED.fullmatch(text)
    return translated(counted[1], language) + counted[2] if counted else text


def _filled(values: dict[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda hole: values[hole[1]]


@cache
def _sentences(language: str) -> list[tuple[re.Pattern[str], list[str], str]]:
    """Pattern of the English, names of its holes, translation: first what is around a sentence, then what says most by itself, as one with
    many holes fits others."""
    english, other = (json.loads((_TEXTS / f"{name}.json").read_text(encoding="utf-8")) for name in (ENGLISH, language))
    found = []
    for key, text in english.items():
        if key.startswith("server."):
            names = _HOLE.findall(text)
            pattern = _HOLE.sub(lambda hole: f"({_HOLDS.get(hole[1], '.*')})", re.sub(r"[^\w{}]", r"\\\g<0>", text))
            found.append(((_SAID not in names, -len(_HOLE.sub("", text))), re.compile(pattern), names, other[key]))
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[0])]
