"""Reads a workflow: ComfyUI's API format ({id: {class_type, inputs}}) and its UI format (nodes, links, widgets_values)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.documents import parse_json, read_json
from ..backend.musubi_backend.errors import UserError
from ..nodes.catalog import NODES
from ..nodes.spec import Input, Node
from .subgraphs import BYPASSED, MUTED, Value, unfolded

_BY_ID = {node.spec.id: node for node in NODES}
_DECORATION = {"Note", "MarkdownNote"}
_SEED_MODES = {"fixed", "increment", "decrement", "randomize"}


@dataclass
class Step:
    """One node of a workflow. links: input name -> (id of the node it comes from, output number)."""

    id: str
    title: str
    node: Node
    constants: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)


def read(path: Path) -> dict[str, Step]:
    """The steps of a workflow file by node id. UserError if it is not a workflow of this pack's nodes."""
    try:
        data = read_json(path, dict)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a workflow, which is a JSON object: {error}") from error
    try:
        steps = _from_ui(data) if "nodes" in data else _from_api(data.get("prompt", data))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is not a workflow as ComfyUI writes it ({type(error).__name__}: {error})") from error
    for step in steps.values():
        for name, (source, slot) in step.links.items():
            if source not in steps:
                raise UserError(f"{step.title}: input {name} comes from node {source}, which is not there")
            if not 0 <= slot < len(steps[source].node.spec.outputs):
                raise UserError(f"{step.title}: input {name} comes from output {slot} of {steps[source].title}, which has no such output")
    return steps


def override(steps: Mapping[str, Step], settings: list[str]) -> None:
    """Apply `NODE.input=value`; NODE is an id, a title or a node type. Values are JSON where they read as the widget's type, else text."""
    for setting in settings:
        name, equals, text = setting.partition("=")
        target, dot, widget = name.rpartition(".")
        if not equals or not dot:
            raise UserError(f"--set {setting}: write NODE.input=value")
        found = [step for step in steps.values() if target in (step.id, step.title, step.node.spec.id, step.node.spec.id.split("_", 1)[-1])]
        if len(found) != 1:
            titles = ", ".join(f"{step.id} ({step.title})" for step in steps.values())
            raise UserError(f"--set {setting}: {'several nodes are' if found else 'no node is'} called {target!r}; there are {titles}")
        step = found[0]
        entry = next((entry for entry in step.node.spec.inputs if entry.name == widget and entry.is_widget), None)
        if entry is None:
            known = ", ".join(entry.name for entry in step.node.spec.inputs if entry.is_widget)
            raise UserError(f"--set {setting}: {step.title} has no widget {widget!r}; it has {known}")
        step.constants[widget] = _value(entry, text)
        step.links.pop(widget, None)


def order(steps: Mapping[str, Step]) -> list[Step]:
    """Steps so that each comes after those it needs. UserError for a cycle."""
    done: dict[str, Step] = {}
    waiting = dict(steps)
    while waiting:
        ready = [step for step in waiting.values() if all(source in done for source, _ in step.links.values())]
        if not ready:
            raise UserError(f"the workflow has a cycle through {', '.join(step.title for step in waiting.values())}")
        for step in ready:
            done[step.id] = waiting.pop(step.id)
    return list(done.values())


def _value(entry: Input, text: str) -> Any:
    if entry.kind in ("INT", "FLOAT", "BOOLEAN"):
        try:
            return parse_json(text.lower(), object)
        except ValueError:
            return text  # the node's check says what is wrong
    return text


def _node(class_type: str, where: str) -> Node:
    if class_type not in _BY_ID:
        raise UserError(f"{where} is a {class_type} node. Without ComfyUI only this pack's nodes run: {', '.join(_BY_ID)}")
    return _BY_ID[class_type]()


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is no text")
    return value


def _from_api(data: Mapping[str, Any]) -> dict[str, Step]:
    steps = {}
    for key, entry in data.items():
        title = (entry.get("_meta") or {}).get("title") or _node(entry["class_type"], f"node {key}").spec.display_name
        step = Step(str(key), _text(title, f"the title of node {key}"), _node(entry["class_type"], f"node {key}"))
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                step.links[name] = (str(value[0]), int(value[1]))
            else:
                step.constants[name] = value
        steps[step.id] = step
    return steps


def _from_ui(data: Mapping[str, Any]) -> dict[str, Step]:
    steps = {}
    for key, entry, sources in unfolded(data):
        if entry["type"] in _DECORATION or entry.get("mode") in (MUTED, BYPASSED):
            continue
        node = _node(entry["type"], f"node {key}")
        step = Step(key, _text(entry.get("title") or node.spec.display_name, f"the title of node {key}"), node)
        step.constants = _widget_values(node, entry.get("widgets_values") or [])
        for name, source in sources.items():
            name = _text(name, f"the name of an input of node {key}")
            if isinstance(source, Value):
                step.constants[name] = source.value
            else:
                step.links[name] = source
                step.constants.pop(name, None)
        steps[key] = step
    return steps


def _widget_values(node: Node, values: Any) -> dict[str, Any]:
    """Widget values stand in the order of the inputs; ComfyUI's page adds a mode after an input called "seed"."""
    if isinstance(values, dict):
        return dict(values)
    rest = list(values)
    constants = {}
    for entry in node.spec.inputs:
        if not entry.is_widget or not rest:
            continue
        constants[entry.name] = rest.pop(0)
        if entry.name == "seed" and rest and rest[0] in _SEED_MODES:
            rest.pop(0)
    return constants
