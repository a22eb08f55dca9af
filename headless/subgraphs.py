"""Subgraphs of ComfyUI's workflow files, read as if they were unfolded: nodes inside are called `<node of the subgraph>:<node>`, as in
ComfyUI's prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_INPUTS, _OUTPUTS = -10, -20
"""Ids that ComfyUI gives to the two ends of a subgraph."""


@dataclass(frozen=True)
class Value:
    """What a widget on the subgraph's node says in place of a widget inside."""

    value: Any


Source = tuple[str, int] | Value
"""(id of a node, number of its output), or a value."""


@dataclass(frozen=True)
class Graph:
    """A workflow, or a subgraph of it in one of the places where it is used.

    links   link -> (node, output) that it comes from
    host    the node that stands for it in `outside`
    """

    nodes: Mapping[str, Mapping[str, Any]]
    links: Mapping[int, tuple[int, int]]
    ends: Mapping[int, int] = field(default_factory=dict)
    """Of a subgraph: output -> the link into it."""
    inputs: tuple[str, ...] = ()
    host: Mapping[str, Any] = field(default_factory=dict)
    outside: Graph | None = None
    prefix: str = ""

    def source(self, link: int, definitions: Mapping[str, Any]) -> Source | None:
        """What a link brings. None for an input of the subgraph that nothing is given to."""
        origin, slot = self.links[link]
        if origin == _INPUTS:
            return self._from_outside(self.inputs[slot], definitions)
        node = self.nodes[str(origin)]
        if node["type"] not in definitions:
            return f"{self.prefix}{origin}", slot
        inside = subgraph(node, self, definitions)
        return inside.source(inside.ends[slot], definitions)

    def _from_outside(self, name: str, definitions: Mapping[str, Any]) -> Source | None:
        assert self.outside is not None
        entry: Mapping[str, Any] = next((entry for entry in self.host.get("inputs") or [] if entry["name"] == name), {})
        if entry.get("link") is not None:
            return self.outside.source(entry["link"], definitions)
        values = _values_of(self.host)
        return Value(values[name]) if values.get(name) is not None else None


def subgraph(host: Mapping[str, Any], outside: Graph, definitions: Mapping[str, Any]) -> Graph:
    """The subgraph that the node `host` stands for. ValueError where one contains itself."""
    prefix = f"{outside.prefix}{host['id']}:"
    if prefix.count(":") > len(definitions):
        raise ValueError("a subgraph contains itself")
    inside = definitions[host["type"]]
    return Graph(
        {str(node["id"]): node for node in inside["nodes"]},
        {link["id"]: (int(link["origin_id"]), int(link["origin_slot"])) for link in inside["links"]},
        {link["target_slot"]: link["id"] for link in inside["links"] if link["target_id"] == _OUTPUTS},
        tuple(entry["name"] for entry in inside.get("inputs") or []),
        host,
        outside,
        prefix,
    )


def unfolded(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Source]]]:
    """Every node of a workflow that is not a subgraph: its id, what the file says of it, and what its inputs get over links."""
    definitions = {entry["id"]: entry for entry in (data.get("definitions") or {}).get("subgraphs") or []}
    links = {link[0]: (int(link[1]), int(link[2])) for link in data["links"]}
    yield from _nodes(Graph({str(node["id"]): node for node in data["nodes"]}, links), definitions)


def _nodes(graph: Graph, definitions: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Source]]]:
    for number, node in graph.nodes.items():
        if node["type"] in definitions:
            if not _off(node):
                yield from _nodes(subgraph(node, graph, definitions), definitions)
            continue
        linked = [entry for entry in node.get("inputs") or [] if entry.get("link") is not None and not _off(node)]
        sources = {entry["name"]: graph.source(entry["link"], definitions) for entry in linked}
        yield f"{graph.prefix}{number}", node, {name: source for name, source in sources.items() if source is not None}


MUTED, BYPASSED = 2, 4


def _off(node: Mapping[str, Any]) -> bool:
    return node.get("mode") in (MUTED, BYPASSED)


def _values_of(host: Mapping[str, Any]) -> dict[str, Any]:
    """input of a subgraph's node -> the value of its widget."""
    values = host.get("widgets_values") or []
    if isinstance(values, Mapping):
        return dict(values)
    names = [entry["name"] for entry in host.get("inputs") or [] if entry.get("widget")]
    return dict(zip(names, values, strict=False))
