"""Writes each node's help pages and the names and tooltips in every language from its specification: `python nodes/help_pages.py`.

ComfyUI shows `web/docs/<NodeId>.md` in its help panel, in other languages `web/docs/<NodeId>/<language>.md`, and reads
`locales/<language>/nodeDefs.json`; `web/task_inputs.js` hides by `web/task_inputs.json` what the chosen models and task do not take, and
`web/optimizer_config.js` shows the arguments of an optimizer by `web/optimizers/<language>.json`.
Translations are in `locales/<language>/texts.json`: names of inputs and outputs, sentences by their English, and the words of the pages
themselves; those about optimizers in `optimizers.json` next to it, and those in templates in `templates.json`, from which
`web/templates/<language>.json` is made; `web/names/<language>.json` has the names of inputs, for messages. What has none stays English.
Tests fail when any of it is out of date.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "ja", "zh")


@dataclass(frozen=True)
class Words:
    """A language. names: of inputs and outputs; texts: by their English; page: words of the help pages by their English; called: a text
    with its inputs as the nodes show them."""

    names: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    page: Mapping[str, str] = field(default_factory=dict)
    called: Callable[[str], str] = str

    def name(self, english: str) -> str:
        return self.names.get(english, english)

    def text(self, english: str) -> str:
        return self.called(self.texts.get(english, english))

    def of_page(self, english: str) -> str:
        return self.page.get(english, english)

    def both(self, english: str) -> str:
        """A name as the node shows it and, where that is another one, as workflows and our messages have it."""
        shown = self.name(english)
        return f"`{english}`" if shown == english else f"{_cell(shown)} (`{english}`)"


def words_of(language: str) -> Words:
    """The translations into a language; English has none."""
    if language == "en":
        return Words()
    return Words(**json.loads((ROOT / "locales" / language / "texts.json").read_text(encoding="utf-8")))


def _calling(specs: list[Any], words: Words, language: str) -> Words:
    """A language whose texts call inputs as it does."""
    from .widget_names import called, names_of

    if language == "en":
        return words
    names = names_of(_names(specs, words))
    return replace(words, called=lambda text: called(text, language, names))


def page(spec: Any, words: Words) -> str:
    """The help page of one node."""
    lines = [f"# {words.text(spec.display_name)}", "", words.text(spec.description), ""]
    widgets = [entry for entry in spec.inputs if entry.is_widget]
    sockets = [entry for entry in spec.inputs if not entry.is_widget]
    say = words.of_page
    if sockets:
        lines += [f"## {say('Inputs')}", "", f"| {say('input')} | {say('what')} |", "|---|---|"]
        for entry in sockets:
            optional = f" {say('(optional)')}" if entry.optional else ""
            lines.append(f"| {words.both(entry.name)}{optional} | {_cell(words.text(entry.tooltip))} |")
        lines.append("")
    if widgets:
        lines += [f"## {say('Settings')}", "", f"| {say('setting')} | {say('default')} | {say('what')} |", "|---|---|---|"]
        for entry in widgets:
            lines.append(f"| {words.both(entry.name)} | {_default(entry, words)} | {_cell(words.text(entry.tooltip))}{_flag(entry)} |")
        lines.append("")
    if spec.outputs:
        lines += [f"## {say('Outputs')}", "", f"| {say('output')} | {say('what')} |", "|---|---|"]
        lines += [f"| {words.both(output.name)} | {_cell(words.text(output.tooltip))} |" for output in spec.outputs] + [""]
    return "\n".join(lines)


def node_names(specs: list[Any], words: Words) -> dict[str, Any]:
    """The content of `nodeDefs.json`."""
    return {
        spec.id: {
            "display_name": words.text(spec.display_name),
            "description": words.text(spec.description),
            "inputs": {entry.name: {"name": words.name(entry.name), "tooltip": words.text(entry.tooltip)} for entry in spec.inputs},
            "outputs": {
                str(index): {"name": words.name(output.name), "tooltip": words.text(output.tooltip)}
                for index, output in enumerate(spec.outputs)
            },
        }
        for spec in specs
    }


def needed(specs: list[Any]) -> tuple[set[str], set[str]]:
    """What a language has to translate: names, sentences."""
    entries = [entry for spec in specs for entry in (*spec.inputs, *spec.outputs)]
    sentences = {text for spec in specs for text in (spec.display_name, spec.description)} | {entry.tooltip for entry in entries}
    return {entry.name for entry in entries}, sentences - {""}


def texts(specs: list[Any], optimizers: Mapping[str, Any]) -> dict[Path, str]:
    """file -> its text, for everything that is generated. optimizers: `optimizer_settings.for_the_page`."""
    files: dict[Path, str] = {}
    for language in LANGUAGES:
        words = _calling(specs, words_of(language), language)
        for spec in specs:
            place = Path(f"{spec.id}.md") if language == "en" else Path(spec.id, f"{language}.md")
            files[ROOT / "web" / "docs" / place] = page(spec, words)
        names = json.dumps(node_names(specs, words), ensure_ascii=False, indent=1)
        files[ROOT / "locales" / language / "nodeDefs.json"] = names + "\n"
        files[ROOT / "web" / "optimizers" / f"{language}.json"] = _in_lines(_said(optimizers, _of_optimizers(language)))
        if language != "en":
            files[ROOT / "web" / "names" / f"{language}.json"] = _in_lines(_names(specs, words))
            files[ROOT / "web" / "templates" / f"{language}.json"] = _in_lines(_of_templates(specs, words, language))
    files[ROOT / "web" / "task_inputs.json"] = json.dumps(task_inputs(specs), indent=1) + "\n"
    return files


def _of_optimizers(language: str) -> Mapping[str, str]:
    """Sentences about optimizers by their English."""
    file = ROOT / "locales" / language / "optimizers.json"
    return {} if language == "en" else json.loads(file.read_text(encoding="utf-8"))


def _of_templates(specs: list[Any], words: Words, language: str) -> dict[str, str]:
    """What templates say, by its English, with nodes and widgets called as the page shows them."""
    texts = json.loads((ROOT / "locales" / language / "templates.json").read_text(encoding="utf-8"))
    called = {f"*{spec.display_name}*": f"*{words.text(spec.display_name)}*" for spec in specs}
    called |= {f"*{entry.name}*": f"*{words.name(entry.name)}*" for spec in specs for entry in spec.inputs}
    pattern = re.compile("|".join(map(re.escape, called)))
    return {english: pattern.sub(lambda name: called[name[0]], text) for english, text in texts.items()}


def _names(specs: list[Any], words: Words) -> dict[str, str]:
    """What inputs are called, by what workflows call them; only those that have another name."""
    inputs = sorted({entry.name for spec in specs for entry in spec.inputs})
    return {name: words.name(name) for name in inputs if words.name(name) != name}


def _said(value: Any, texts: Mapping[str, str]) -> Any:
    """The table of optimizers in a language: what is under "group", "help" and "rate"."""
    if isinstance(value, Mapping):
        return {key: texts.get(one, one) if key in ("group", "help", "rate") else _said(one, texts) for key, one in value.items()}
    return [_said(one, texts) for one in value] if isinstance(value, (list, tuple)) else value


def _in_lines(table: Mapping[str, Any]) -> str:
    """JSON with a line for each entry."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()) + "\n}\n"


def task_inputs(specs: list[Any]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """node -> input -> {Model Paths node: the tasks that take it, empty: all}, for inputs that not all of these take."""
    nodes = [spec.id for spec in specs if spec.id.endswith("ModelPaths")]
    found = {
        spec.id: {
            entry.name: {node: list(entry.tasks) for node in nodes if spec.id.startswith(node.removesuffix("ModelPaths"))}
            if entry.tasks
            else {f"MusubiTuner_{family}ModelPaths": list(tasks) for family, tasks in entry.takers.items()}
            for entry in spec.inputs
            if entry.tasks or entry.takers
        }
        for spec in specs
    }
    return {node: inputs for node, inputs in found.items() if inputs}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(entry: Any, words: Words) -> str:
    if entry.default in (None, ""):
        return ""
    return words.of_page("on" if entry.default else "off") if isinstance(entry.default, bool) else _cell(f"{entry.default}")


def _flag(entry: Any) -> str:
    return f" (`--{entry.option}`)" if entry.option and entry.option != entry.name else ""


def main() -> None:
    runpy.run_path(str(ROOT / "headless" / "__main__.py"))["load_pack"]()
    nodes = sys.modules["musubituner_pack.nodes.catalog"].NODES
    optimizers = sys.modules["musubituner_pack.nodes.optimizer_settings"].for_the_page()
    pages = importlib.import_module("musubituner_pack.nodes.help_pages")
    for path, text in pages.texts([node.spec for node in nodes], optimizers).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
