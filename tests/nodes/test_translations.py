"""Every language says everything, and nothing that is no longer there; names in the help are those on the nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("ja", "zh")


def locale(language: str, name: str) -> Any:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", OTHERS)
def test_names_and_sentences_of_the_nodes_are_all_there(part: Any, language: str) -> None:
    names, sentences = part("nodes.help_pages").needed([node.spec for node in part("nodes.catalog").NODES])
    texts = locale(language, "texts")
    assert names - set(texts["names"]) == set(), "without a name"
    assert sentences - set(texts["texts"]) == set(), "without a translation"
    assert set(texts["names"]) - names == set(), "no node has these any more"
    assert set(texts["texts"]) - sentences == set(), "no node says these any more"
    assert all(any(ord(letter) > 0x2E80 for letter in text) for english, text in texts["texts"].items() if len(english) > 40)


@pytest.mark.parametrize("language", OTHERS)
def test_numbers_flags_and_files_stay_in_a_translated_sentence(language: str) -> None:
    wanted = re.compile(r"`[^`<]+`|--\w+|\w+\.safetensors|(?<![\w.])\d+\.\d+(?![\w.])")
    for english, text in locale(language, "texts")["texts"].items():
        assert set(wanted.findall(english)) <= set(wanted.findall(text)), text


@pytest.mark.parametrize("name", ["main", "settings"])
def test_categories_and_settings_are_there_in_every_language(name: str) -> None:
    keys = {
        language: {(group, key) for group, entries in locale(language, name).items() for key in entries} for language in ("en", *OTHERS)
    }
    for language in OTHERS:
        assert keys[language] == keys["en"]


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_the_help_calls_things_as_the_nodes_do(language: str) -> None:
    for node, entry in locale(language, "nodeDefs").items():
        place = Path(f"{node}.md") if language == "en" else Path(node, f"{language}.md")
        text = (ROOT / "web" / "docs" / place).read_text(encoding="utf-8")
        assert text.startswith(f"# {entry['display_name']}\n")
        for key, shown in entry["inputs"].items():
            name = f"| `{key}`" if shown["name"] == key else f"| {shown['name'].replace('|', '&#124;')} (`{key}`)"
            assert name in text, f"{place}: {key}"
    known = {*locale(language, "nodeDefs")}
    pages = (ROOT / "web" / "docs").glob("*.md" if language == "en" else f"*/{language}.md")
    assert {path.stem if language == "en" else path.parent.name for path in pages} == known
