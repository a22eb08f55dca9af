"""The first template: a whole training behind one node with a few widgets. Opened (the arrow at its corner), it is the real nodes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .contents import Model, training
from .layout import GUTTER, WIDTH, build, lanes, note_node, socket_of, view

NAME = "Train a LoRA"
_NAMESPACE = uuid.UUID("6f0d4c1e-4a0b-5a7e-9d55-6d7573756269")
_INPUTS, _OUTPUTS, _HOST = -10, -20, 1
_INPUTS_WIDTH = 160

NOTE = """## What it does
Trains a {title} LoRA on your clips or images. \
The arrow at the corner of the node, or “Enter subgraph” below it, opens it: inside are the real nodes with all settings.

1. **Clips.** *Upload clips…* on the node, or a folder in ComfyUI's input folder. 10 to 30 clips of 2 to 5 seconds. \
“dog.txt” next to “dog.mp4” is its caption; the upload can write one with your trigger word.
2. **Model.** The three files below. With a larger file choose its task.
3. **Sample prompt.** The large field: what samples are to show, with your trigger word. Some are made every 250 steps.
4. **my VRAM.** *auto* looks at your GPU and chooses what saves memory; what it chose stands on the node inside.
5. **Run.** The node says what is being done, then shows the loss and the last sample. The LoRA comes into loras/musubi_tuner. \
*Cancel* saves the state; *Run* continues from there.
"""


def _shown(model: Model) -> tuple[tuple[str, str, str], ...]:
    """(node, widget, what it is called outside)"""
    return (
        ("DatasetConfig", "path", "clips folder"),
        (model.paths, "task", "task"),
        (model.paths, "dit", "model"),
        ("SamplingConfig", "sample_prompts", "sample prompt"),
        ("LoRATrainingConfig", "max_train_steps", "steps"),
        ("MemoryOptimizer", "vram", "my VRAM"),
        (model.trainer, "output_name", "output name"),
    )


def start_here(model: Model, specs: Mapping[str, Any], *, app: bool) -> dict[str, Any]:
    """The workflow. app: it opens in ComfyUI's app mode, a form without nodes."""
    inside = build(training(model, fitted=True), specs, first=_HOST + 2)
    names = {node["type"].split("_", 1)[-1]: node for node in inside["nodes"]}
    definition, host, shown = _definition(inside, model.card.title), _host(), _shown(model)
    for node, widget, label in shown:
        _expose(definition, host, names[node], specs[node], widget, label)
    trainer = names[model.trainer]
    _route(definition)
    _give(definition, host, trainer, specs[model.trainer].outputs[0])
    files = "".join(f"\n* models/{folder}/{file}" for file, (_, folder) in model.downloads.items())
    note = note_node(2, f"{NOTE.format(title=model.card.title)}\n## Files{files}", [WIDTH + 2 * GUTTER + 100, 0])
    form = {"inputs": [[str(_HOST), widget] for _, widget, _ in shown], "outputs": [f"{_HOST}:{trainer['id']}"]}
    return {
        "last_node_id": inside["last_node_id"],
        "last_link_id": 0,
        "nodes": [host, note],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {"ds": view(2 * WIDTH + 4 * GUTTER), "linearData": form, "linearMode": app},
        "version": 0.4,
    }


def _id(name: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, name))


def _definition(inside: Mapping[str, Any], title: str) -> dict[str, Any]:
    """The nodes of a workflow as a subgraph that shows nothing yet."""
    right = max(group["bounding"][0] + group["bounding"][2] for group in inside["groups"])
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    parents = {entry["id"]: {"parentId": entry["parentId"]} for entry in inside["extra"].get("linkExtensions", [])}
    x, y = next(node for node in inside["nodes"] if node["type"] == "MarkdownNote")["pos"]
    nodes = [{**node, "pos": [x - _INPUTS_WIDTH - GUTTER, y]} if node["type"] == "MarkdownNote" else node for node in inside["nodes"]]
    return {
        "id": _id(NAME),
        "version": 1,
        "state": {
            "lastGroupId": len(inside["groups"]),
            "lastNodeId": inside["last_node_id"],
            "lastLinkId": inside["last_link_id"],
            "lastRerouteId": len(inside["extra"].get("reroutes", [])),
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "inputNode": {"id": _INPUTS, "bounding": [x + WIDTH - _INPUTS_WIDTH, 0, _INPUTS_WIDTH, 220]},
        "outputNode": {"id": _OUTPUTS, "bounding": [right + GUTTER, 0, 120, 60]},
        "inputs": [],
        "outputs": [],
        "widgets": [],
        "nodes": nodes,
        "groups": inside["groups"],
        "links": [dict(zip(keys, link, strict=True)) | parents.get(link[0], {}) for link in inside["links"]],
        "reroutes": inside["extra"].get("reroutes", []),
        "extra": {"workflowRendererVersion": "LG"},
        "category": "MusubiTuner",
        "description": f"Trains a {title} LoRA on a folder of clips or images.",
    }


def _host() -> dict[str, Any]:
    return {
        "id": _HOST,
        "type": _id(NAME),
        "pos": [0, 0],
        "size": [WIDTH + 100, 460],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": NAME,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [],
    }


def _link(definition: dict[str, Any], ends: Sequence[Any]) -> int:
    number: int = definition["state"]["lastLinkId"] + 1
    definition["state"]["lastLinkId"] = number
    keys = ("origin_id", "origin_slot", "target_id", "target_slot", "type")
    definition["links"].append({"id": number, **dict(zip(keys, ends, strict=True))})
    return number


def _expose(definition: dict[str, Any], host: dict[str, Any], node: dict[str, Any], spec: Any, widget: str, label: str) -> None:
    """Put a widget of a node inside on the outside."""
    entry = spec.input(widget)
    place = socket_of(node, spec, widget)
    number = _link(definition, (_INPUTS, len(definition["inputs"]), node["id"], place, entry.kind))
    node["inputs"][place]["link"] = number
    definition["inputs"].append({"id": _id(widget), "name": widget, "type": entry.kind, "linkIds": [number], "label": label})
    host["inputs"].append({"name": widget, "label": label, "type": entry.kind, "widget": {"name": widget}, "link": None})
    host["widgets_values"].append(_value(node, spec, widget))


def _route(definition: dict[str, Any]) -> None:
    """Lead what comes from outside past the columns on its way."""
    x, y, width, height = definition["inputNode"]["bounding"]
    places = {_INPUTS: {"pos": [x, y], "size": [width, height]}, **{node["id"]: node for node in definition["nodes"]}}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    exposed = [link for link in definition["links"] if link["origin_id"] == _INPUTS]
    routed = lanes([[link[key] for key in keys] for link in exposed], places, definition["reroutes"])
    parents = {entry["id"]: entry["parentId"] for entry in routed["linkExtensions"]}
    for link in exposed:
        if link["id"] in parents:
            link["parentId"] = parents[link["id"]]
    definition["reroutes"] = routed["reroutes"]
    definition["state"]["lastRerouteId"] = len(routed["reroutes"])


def _value(node: Mapping[str, Any], spec: Any, widget: str) -> Any:
    names = [entry.name for entry in spec.inputs if entry.is_widget]
    assert "seed" not in names[: names.index(widget)], "a mode would follow it"
    return node["widgets_values"][names.index(widget)]


def _give(definition: dict[str, Any], host: dict[str, Any], node: dict[str, Any], output: Any) -> None:
    """Put the first output of a node inside on the outside."""
    number = _link(definition, (node["id"], 0, _OUTPUTS, 0, output.kind))
    node["outputs"][0]["links"].append(number)
    definition["outputs"].append({"id": _id(output.name), "name": output.name, "type": output.kind, "linkIds": [number]})
    host["outputs"].append({"name": output.name, "type": output.kind, "links": None})
