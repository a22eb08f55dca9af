"""Every language says everything, and nothing that is no longer there; names in the help are those on the nodes."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import exhausted, place
from named_widgets import CALLED, Called, wrong

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


@pytest.mark.parametrize("language", OTHERS)
def test_texts_of_the_page_and_its_nodes_call_widgets_as_the_nodes_show_them(language: str) -> None:
    names = json.loads((ROOT / "web" / "names" / f"{language}.json").read_text(encoding="utf-8"))
    nodes = locale(language, "nodeDefs").values()
    texts = [entry["description"] for entry in nodes]
    texts += [one.get("tooltip", "") for entry in nodes for one in (*entry["inputs"].values(), *entry["outputs"].values())]
    texts += json.loads((ROOT / "web" / "texts" / f"{language}.json").read_text(encoding="utf-8")).values()
    known = {name: shown for name, shown in names.items() if "_" in name}
    told = re.compile(rf"(?<![\w./\\-])({'|'.join(known)})(?![\w(]|[./-]\w)", re.ASCII)
    found = [(name[1], text) for text in texts for name in told.finditer(text)]
    assert len(found) > 50
    assert [text for name, text in found if known[name] not in text] == []


def _refusals(part: Any, tmp_path: Path) -> list[str]:
    """What nodes and jobs really say, of several kinds."""
    guard, progress, spec = part("nodes.jobs.guard"), part("nodes.jobs.progress"), part("nodes.spec")
    entry = spec.Input("rank", "INT", "", default=4, minimum=1, maximum=128)
    said = [part("nodes.checks")._check_value(entry, None, value) for value in (0, 500, "many")]
    for path in ("/etc/passwd", "", str(tmp_path / "clip.mp")):
        with pytest.raises(Exception, match="path") as refused:
            guard.inside(path, [tmp_path], "path")
        said.append(str(refused.value))
    shown = progress.Progress(phase="making a sample", step=12, total=100, loss=0.5, training=True)
    training = progress.Progress(phase="training", step=12, total=100, loss=0.5, left="01:54", training=True)
    sampling = progress.Progress(phase="Sampling timesteps for prompt 2 3/20", loss=0.5, training=True)
    ends = [
        "failed: path is empty: enter a path",
        "stopped at step 120, state saved (run again to continue)",
        "failed: /loras/x.safetensors is not a safetensors file (8 bytes, no valid header). Download it again.",
        f"failed: {said[-1]}",
        place.in_words(OSError(errno.EROFS, "Read-only file system", "/runs/a/.state.json.17efb62a.part")),
        exhausted.in_words(MemoryError(), {"batch_size": 2}),
        "finished · loss 0.0931 · 1600 steps · my_lora · 2 notes",
        "nothing in this dataset can be used:\n  /in: no videos here; put some there (.mp4, …)\nThe whole log: /jobs/1/log.txt",
    ]
    return [*map(str, said), shown.text, training.text, sampling.text, *ends]


@pytest.mark.parametrize(("language", "letters"), [("ja", "[\u3040-\u30ff]"), ("zh", "[\u4e00-\u9fff]")])
def test_what_nodes_say_is_said_in_a_language_with_its_values(part: Any, tmp_path: Path, language: str, letters: str) -> None:
    translated = part("nodes.translations").translated
    (tmp_path / "clip.mp4").touch()
    for english in _refusals(part, tmp_path):
        said = translated(english, language)
        for line, was in zip(said.split("\n"), english.split("\n"), strict=True):
            assert re.search(letters, line) or line.startswith("  /"), (was, line)  # folders are listed as they are
            assert not re.search(r"(?<![-/])\b(is|not|the|of|failed|again)\b(?!-)", line), line
        kept = re.compile(r"\d+(?:[.:/]\d+)*|/[\w/.]+|my_lora|--\w[\w-]+")
        assert sorted(kept.findall(said)) == sorted(kept.findall(english)), said
        assert translated(english, "en") == english
    assert translated("a sentence that no table has", language) == "a sentence that no table has"


@pytest.mark.parametrize("one", CALLED, ids=lambda one: one.english[:30])
@pytest.mark.parametrize("language", OTHERS)
def test_a_message_calls_widgets_as_the_node_shows_them(part: Any, language: str, one: Called) -> None:
    shown = part("nodes.translations").translated(one.english, language)
    assert wrong(one, language, shown) == [], shown


def test_the_language_of_a_browser_or_a_setting_is_one_that_texts_are_in(part: Any) -> None:
    known = part("nodes.translations").known
    asked = {"ja-JP,ja;q=0.9,en;q=0.8": "ja", "zh-TW": "zh", "ZH": "zh", "de-DE,ja;q=0.5": "en", "": "en"}
    assert {name: known(name) for name in asked} == asked


@pytest.mark.parametrize("language", OTHERS)
def test_templates_say_everything_in_every_language(part: Any, language: str) -> None:
    files = part("workflows.files")
    wanted = set().union(*(files.sentences(json.loads(path.read_text(encoding="utf-8"))) for path in (ROOT / "workflows").glob("*.json")))
    texts = locale(language, "templates")
    assert wanted - set(texts) == set(), "without a translation"
    assert set(texts) - wanted == set(), "no template says these any more"
    shipped = json.loads((ROOT / "web" / "templates" / f"{language}.json").read_text(encoding="utf-8"))
    upload = json.loads((ROOT / "web" / "texts" / f"{language}.json").read_text(encoding="utf-8"))["upload"]
    names = {entry["display_name"] for entry in locale(language, "nodeDefs").values()} | {upload}
    called = re.compile(r"\*([A-Z][\w ]+|Upload clips…)\*")
    for english, text in shipped.items():
        nodes = [name for name in called.findall(english) if name not in ("Cancel", "Run")]
        assert sum(f"*{name}*" in text for name in names) >= len(nodes), text


@pytest.mark.parametrize("language", ["en", *OTHERS])
def test_notes_of_templates_stress_words_in_a_way_that_both_renderers_show(part: Any, language: str) -> None:
    files = part("workflows.files")
    english = set().union(*(files.sentences(json.loads(path.read_text(encoding="utf-8"))) for path in (ROOT / "workflows").glob("*.json")))
    file = ROOT / "web" / "templates" / f"{language}.json"
    said = english if language == "en" else json.loads(file.read_text(encoding="utf-8")).values()
    for text in said:
        assert "`" not in text, f"Nodes 2.0 writes it in blue on the brown of a note: {text}"
        for found in re.finditer(r"\*+([^*]+)\*+", text.removeprefix("* ")):
            before, inner, after = found.string[: found.start()][-1:], found[1], found.string[found.end() :][:1]
            opens, closes = inner[0].isalnum() or not before.isalnum(), inner[-1].isalnum() or not after.isalnum()
            assert opens and closes and inner == inner.strip(), f"Markdown takes {found[0]} for no emphasis: {text}"


@pytest.mark.parametrize("sentence", ["cache.pt holds two windows", "the optimizer wants more steps"])
def test_an_entry_of_few_words_takes_no_other_sentence_apart(part: Any, sentence: str) -> None:
    translated = part("nodes.translations").translated
    assert translated(sentence, "ja") == sentence, "half of it would be in another language"
    assert translated("C:\\clips holds a.mp4", "ja") != "C:\\clips holds a.mp4" and translated("1,600 steps", "zh") == "1,600 步"
