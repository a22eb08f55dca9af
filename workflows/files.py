"""The example workflows as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nodes.catalog import BY_NAME
from .contents import FIRST, WORKFLOWS
from .layout import build
from .start_here import start_here

HERE = Path(__file__).resolve().parent
ORDER = HERE.parent / "web" / "templates" / "order.json"
"""Names of the templates as the page lists them; a server lists files as they come."""
MARK = "musubi_template"
"""Of a template that nobody has saved yet: `web/templates.js` says it in the language of the page."""


def texts() -> dict[Path, str]:
    """file -> its text, for all workflows and the order in which they are listed."""
    specs = {name: node.spec for name, node in BY_NAME.items()}
    built = {f"train_a_lora{name}": start_here(FIRST, specs, app=app) for name, app in (("_start_here", False), (".app", True))}
    built |= {name: build(workflow, specs) for name, workflow in WORKFLOWS.items()}
    files = {HERE / f"{name}.json": _text(workflow) for name, workflow in built.items()}
    return {**files, ORDER: json.dumps([*built], indent=1) + "\n"}


def _text(workflow: Mapping[str, Any]) -> str:
    marked = {**workflow, "extra": {**workflow["extra"], MARK: True}}
    return json.dumps(marked, ensure_ascii=False, indent=1) + "\n"


def sentences(workflow: Mapping[str, Any]) -> set[str]:
    """What a workflow says: lines of its notes, titles, groups without their numbers, and what subgraphs call their inputs."""
    said: set[str] = set()
    for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", [])):
        for node in graph["nodes"]:
            said.add(node.get("title", ""))
            if node["type"] == "MarkdownNote":
                said.update(node["widgets_values"][0].split("\n"))
        said |= {group["title"].split(". ", 1)[-1] for group in graph["groups"]}
        said |= {entry.get("label", "") for owner in (graph, *graph["nodes"]) for entry in owner.get("inputs", [])}
    return {line for line in said if line and not line.startswith("* models/")}


def write() -> None:
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
