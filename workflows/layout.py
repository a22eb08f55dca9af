"""Where the nodes of an example workflow stand: groups from left to right, each a column, and links that skip a column in lanes above.

Widget values are stored by position, so everything follows from the nodes' specifications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Widgets = Mapping[str, Any]
Entry = tuple[str, Widgets, dict[str, tuple[str, str]]]
"""(node, widgets that differ from their defaults, {input: (node, output)}); where a node is there twice: "Node: its title"."""

WIDTH, GUTTER, GAP = 340, 90, 60
TITLE, SLOT, ROW, TEXT_ROWS, FOOT = 30, 20, 30, 100, 40
"""Heights, as the taller of ComfyUI's two ways of drawing has them."""
DRAWN = {"OptimizerConfig": 280}
"""What scripts of the page add below a node's own widgets: the arguments of AdamW and the picture of the learning rate."""
GROWN = {
    **{"LoRATrainer": 520, "TrainingMonitor": 570, "ResourceMonitor": 260, "LoRAPostHocEMA": 540, "CompareCheckpoints": 480},
    **{"MemoryOptimizer": 260, "VideoOutput": 300},
}
"""What they add while they run, by how nodes end: the curve and the last sample, a report, a video. Their group has room for it."""
PADDING, LANE = 24, 26
NOTE_LINE, NOTE_LETTERS = 18, 48
COLOURS = ("#3f789e", "#3f9e5c", "#b58b3d", "#8a5fa8", "#3d9e97", "#a85f5f")


@dataclass(frozen=True)
class Group:
    """A column of nodes under a heading."""

    title: str
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Workflow:
    """What an example workflow holds.

    note     for the person who opens it, in Markdown
    models   file -> (address, ComfyUI's model folder), for ComfyUI to offer what is missing
    takes    (node, input) -> whether the page shows that input before anything is changed
    """

    note: str
    groups: Sequence[Group]
    models: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    hidden: frozenset[tuple[str, str]] = frozenset()


def build(workflow: Workflow, specs: Mapping[str, Any], first: int = 1) -> dict[str, Any]:
    """A workflow as ComfyUI saves it. specs: node specifications by name without prefix; first: the least id of a node."""
    nodes: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    numbers = count(first)
    x = WIDTH + GUTTER
    for group in workflow.groups:
        y = 0
        for entry, widgets, links in group.entries:
            node = make_node(next(numbers), specs[short(entry)], widgets, [x, y], workflow, set(links))
            if short(entry) != entry:
                node["title"] = entry.partition(": ")[2]
            nodes[entry] = node
            y += node["size"][1] + TITLE + GAP + next((room for end, room in GROWN.items() if short(entry).endswith(end)), 0)
        groups.append(_frame(len(groups), group.title, x, y - GAP))
        x += WIDTH + GUTTER
    note = note_node(next(numbers), workflow.note, [0, 0])
    made = _links(workflow, nodes, specs)
    reroutes = lanes(made, {node["id"]: node for node in nodes.values()})
    top = min((reroute["pos"][1] for reroute in reroutes.get("reroutes", [])), default=-4 * PADDING)
    return {
        "last_node_id": note["id"],
        "last_link_id": len(made),
        "nodes": [*nodes.values(), note],
        "links": made,
        "groups": groups,
        "config": {},
        "extra": {**reroutes, "ds": view(x - GUTTER, top)},
        "version": 0.4,
    }


def short(name: str) -> str:
    """A node's name without its title."""
    return name.partition(": ")[0]


def view(width: float, top: float = 0) -> dict[str, Any]:
    """What the page shows first: all of it, where titles can be read then, else its left part; below the page's own bars."""
    scale = max(0.65, min(1.0, round(1500 / (width + 2 * PADDING), 2)))
    return {"scale": scale, "offset": [round(80 / scale), round(130 / scale - top)]}


def note_node(number: int, text: str, position: list[int]) -> dict[str, Any]:
    """A note as high as its text."""
    lines = sum(1 + len(line) // NOTE_LETTERS for line in text.splitlines())
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": position,
        "size": [WIDTH, 80 + NOTE_LINE * lines],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
    }


def make_node(number: int, spec: Any, widgets: Widgets, position: list[int], workflow: Workflow, linked: set[str]) -> dict[str, Any]:
    """One node with its widget values. ValueError for a widget it does not have."""
    unknown = set(widgets) - {entry.name for entry in spec.inputs if entry.is_widget}
    if unknown:
        raise ValueError(f"{spec.id} has no widgets {unknown}")
    name = spec.id.split("_", 1)[1]
    values: list[Any] = []
    rows = height = 0
    sockets = []
    for entry in spec.inputs:
        shown = (name, entry.name) not in workflow.hidden or entry.name in widgets or entry.name in linked
        if not entry.is_widget:
            if shown:
                sockets.append({"name": entry.name, "type": entry.kind, "link": None})
            continue
        value = widgets.get(entry.name, entry.default)
        values.append(value)
        if entry.name == "seed":
            values.append("fixed")  # ComfyUI's page adds this mode after an input called "seed"
            rows += 1
        if shown and (not entry.advanced or value != entry.default):
            rows, height = (rows, height + TEXT_ROWS) if entry.multiline else (rows + 1, height)
    files = [file for file in values if isinstance(file, str) and file in workflow.models]
    properties: dict[str, Any] = {"Node name for S&R": spec.id}
    if files:
        properties["models"] = [
            {"name": file, "url": workflow.models[file][0], "directory": workflow.models[file][1]} for file in dict.fromkeys(files)
        ]
    return {
        "id": number,
        "type": spec.id,
        "pos": position,
        "size": [WIDTH, height + SLOT * max(len(sockets), len(spec.outputs)) + ROW * rows + FOOT + DRAWN.get(name, 0)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": output.name, "type": output.kind, "links": []} for output in spec.outputs],
        "properties": properties,
        "widgets_values": values,
    }


def _frame(number: int, title: str, x: int, height: int) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "bounding": [x - PADDING, -TITLE - 3 * PADDING, WIDTH + 2 * PADDING, height + TITLE + 4 * PADDING],
        "color": COLOURS[number % len(COLOURS)],
        "font_size": 24,
        "flags": {},
    }


def _links(workflow: Workflow, nodes: dict[str, dict[str, Any]], specs: Mapping[str, Any]) -> list[list[Any]]:
    links: list[list[Any]] = []
    for group in workflow.groups:
        for entry, _, wanted in group.entries:
            for socket, (source, output) in wanted.items():
                link = connect(len(links) + 1, nodes[source], specs[short(source)], output, nodes[entry], specs[short(entry)], socket)
                links.append(link)
    return links


def connect(
    number: int, origin: dict[str, Any], origin_spec: Any, output: str, target: dict[str, Any], target_spec: Any, socket: str
) -> list[Any]:
    """The link from an output to an input, written into both nodes."""
    slot = [entry.name for entry in origin_spec.outputs].index(output)
    place = socket_of(target, target_spec, socket)
    target["inputs"][place]["link"] = number
    origin["outputs"][slot]["links"].append(number)
    return [number, origin["id"], slot, target["id"], place, origin_spec.outputs[slot].kind]


def socket_of(node: dict[str, Any], spec: Any, name: str) -> int:
    """The place of an input among a node's sockets; a widget gets one."""
    names = [entry["name"] for entry in node["inputs"]]
    if name not in names:
        node["inputs"].append({"name": name, "type": spec.input(name).kind, "widget": {"name": name}, "link": None})
        names.append(name)
    return names.index(name)


def lanes(
    links: Sequence[Sequence[Any]], nodes: Mapping[int, Mapping[str, Any]], below: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Reroutes of the links that skip a column: one lane above the groups for each output. below: reroutes that are there already."""
    skipping: dict[tuple[int, int], list[Sequence[Any]]] = {}
    for link in links:
        if nodes[link[3]]["pos"][0] - nodes[link[1]]["pos"][0] > WIDTH + GUTTER:
            skipping.setdefault((link[1], link[2]), []).append(link)
    reroutes: list[dict[str, Any]] = [dict(one) for one in below]
    parents: list[dict[str, int]] = []
    for number, ((origin, _), found) in enumerate(skipping.items(), len({one["pos"][1] for one in below})):
        y = -TITLE - 4 * PADDING - LANE * number
        columns = sorted({nodes[link[3]]["pos"][0] for link in found})
        start = nodes[origin]["pos"][0] + nodes[origin]["size"][0] + GUTTER // 2
        last = _reroute(reroutes, [start, y], [link[0] for link in found])
        for column in columns:
            ahead = [link for link in found if nodes[link[3]]["pos"][0] >= column]
            last = _reroute(reroutes, [column - GUTTER // 2, y], [link[0] for link in ahead], last)
            parents += [{"id": link[0], "parentId": last} for link in ahead if nodes[link[3]]["pos"][0] == column]
    return {"reroutes": reroutes, "linkExtensions": parents} if reroutes else {}


def _reroute(reroutes: list[dict[str, Any]], position: list[int], links: list[int], parent: int | None = None) -> int:
    number = len(reroutes) + 1
    reroutes.append({"id": number, "pos": position, "linkIds": links} | ({"parentId": parent} if parent else {}))
    return number
