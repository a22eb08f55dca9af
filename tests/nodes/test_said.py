"""Every sentence of nodes and routes, collected from the source, is there in every language; no entry is of a sentence that is gone."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SENTENCE = re.compile(r"[A-Za-z][a-z']+[,:;]? (?:\{\} )?[a-z]")
_VALUE = "Qx7"
_ENGLISH = re.compile(r"(?<![\w`-])(?:is|are|not|the|of|cannot|and|give|must|has|have)\b(?![\w`-])")
_NOT_SAID = {  # where sentences stand that are shown elsewhere, or to nobody
    "nodes/help_pages.py": "the help, which has its own table",
    "nodes/jobs/musubi_log.py": "patterns of musubi-tuner's log",
    "nodes/loss_curve.py": "a drawing",
}
_NOT_SENTENCES = {
    "lora training": "what ComfyUI's search finds a node by",
    "mistakes of the node that ComfyUI validates now": "a name of a variable of a context",
    "language of the request that is answered": "a name of a variable of a context",
    "default-src 'none'; sandbox": "a header",
    "Traceback (most recent call last):": "Python's, looked for in a log",
    "out of memory": "PyTorch's, looked for in a log",
    "No space left on device": "the system's, looked for in a log",
    "names this program": "looked for in a report",
    "tensors changed": "looked for in a report",
    "Warning: not all": "looked for in a report",
    "width and height": "two widgets",
    "attachment; filename*=UTF-8''{}": "a header",
    **dict.fromkeys(("video folder", "image folder", "as set below"), "a choice of a widget, which workflows hold"),
    **{
        f"{way}: {what}": "a choice of a widget"
        for way in ("beta", "sigma_rel")
        for what in ("general", "converged early", "against overfitting")
    },
    "{} {} is unset by default: say which widget value means that (off=...)": "a mistake in a node's definition, which no widget can cause",
}


def template(node: ast.AST) -> str | None:
    """A text as it is written, with {} for what is put in; None for what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or "" if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def texts(node: ast.AST) -> Iterator[str]:
    """All texts in a syntax tree but those of docstrings, specifications of nodes and the log."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and re.match(r"logger\.|re\.compile|(\w+\.)?(Input|Output|NodeSpec|replace)$", ast.unparse(node.func)):
        return
    found = template(node)
    if found is not None:
        yield found
        for part in getattr(node, "values", []):
            yield from texts(part.value) if isinstance(part, ast.FormattedValue) else ()
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def said_in(folder: str) -> dict[str, str]:
    """Sentences of a folder's modules, and the module of each."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place not in _NOT_SAID:
            found |= {text: place for text in texts(ast.parse(path.read_text(encoding="utf-8"))) if _SENTENCE.search(text)}
    return found


@pytest.fixture(scope="module")
def of_nodes(part: Any) -> dict[str, str]:
    """What nodes and routes say, without what the table of names and tooltips has."""
    names, tooltips = part("nodes.help_pages").needed([node.spec for node in part("nodes.catalog").NODES])
    shown = "\n".join([*names, *tooltips])
    return {text: place for text, place in said_in("nodes").items() if not all(piece in shown for piece in text.split("{}"))}


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_every_sentence_of_the_nodes_is_said_in_every_language(part: Any, of_nodes: dict[str, str], language: str) -> None:
    translated = part("nodes.translations").translated
    assert len(of_nodes) > 200, "they are collected"
    left = {}
    for text, place in of_nodes.items():
        english = text.strip().replace("{}", _VALUE)
        said = translated(english, language)
        if text not in _NOT_SENTENCES and (said == english or _ENGLISH.search(re.sub(r"`[^`]*`|<[^>]*>", "", said))):
            left[text] = f"{place}: {said}"
    assert left == {}
    assert set(_NOT_SENTENCES) - set(of_nodes) == set(), "nobody says these any more"


def test_every_entry_is_of_a_sentence_in_the_code_and_has_its_values() -> None:
    tables = {name: json.loads((ROOT / "web" / "said" / f"{name}.json").read_text(encoding="utf-8")) for name in ("ja", "zh")}
    assert list(tables["ja"]) == list(tables["zh"])
    code = "".join(path.read_text(encoding="utf-8") for part in ("nodes", "backend", "installer") for path in (ROOT / part).rglob("*.py"))
    code = (
        re.sub(r"""["']\s*\n\s*f?["']""", "", code).replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")
    )  # a text in several pieces
    gone = [text for text in tables["ja"] if not all(piece in code for piece in re.split(r"\{\w+\}", text))]
    assert gone == [], "nobody says these any more"
    for table in tables.values():
        for english, said in table.items():
            assert set(re.findall(r"\{\w+\}", said)) == set(re.findall(r"\{\w+\}", english)), said


_NOT_YET = 0
"""Errors of the backend without an entry: a number that only goes down."""


def test_errors_of_the_backend_are_said_in_every_language_as_far_as_they_were(part: Any) -> None:
    translated = part("nodes.translations").translated
    raised: set[str] = set()
    for path in (ROOT / "backend" / "musubi_backend").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None and ast.unparse(node.exc).startswith("UserError("):
                raised |= {text for text in texts(node.exc) if _SENTENCE.search(text)}
    english = {text: text.strip().replace("{}", _VALUE) for text in raised}
    left = sorted(text for text, one in english.items() if translated(one, "ja") == one or translated(one, "zh") == one)
    assert len(raised) > 250, "they are collected"
    assert len(left) <= _NOT_YET, left
