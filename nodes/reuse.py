"""When ComfyUI may use a kept result again: while its files are as it left them, and what the node looked at is as it was then.

ComfyUI compares what is written into the prompt, and asks `Node.fingerprint` about files, but only with those values: what comes over
a link is not known yet. So each result remembers the values its node got and what the fingerprint was with all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.errors import UserError
from .spec import Host, Node, Result


@dataclass(frozen=True)
class Kept:
    """What one result stands on. Made with `before`, completed with the result."""

    node: Node
    values: Mapping[str, Any]
    looked_at: str
    stamps: tuple[tuple[str, int, int] | None, ...] = ()

    @classmethod
    def before(cls, node: Node, host: Host, inputs: Mapping[str, Any]) -> Kept:
        """To be asked before the node runs, so that what changes meanwhile is noticed the next time."""
        values = widget_values(node, inputs)
        return cls(node, values, node.fingerprint(host, **values))

    def after(self, result: Result) -> Kept:
        return Kept(self.node, self.values, self.looked_at, tuple(map(content.stamp, result.files)))

    def holds(self, host: Host) -> bool:
        """Is all of it still so?"""
        if not all(content.is_as_stamped(stamp) for stamp in self.stamps):
            return False
        try:
            return self.node.fingerprint(host, **self.values) == self.looked_at
        except (UserError, OSError):  # a folder that has gone: the run will say so
            return False


class KeptResults:
    """What the results that ComfyUI keeps stand on, by their place (see `place_of`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, list[Kept]]] = {}
        self._generation: dict[str, int] = {}

    def remember(self, place: str, prompt_id: str, kept: Kept) -> None:
        """One more result of this prompt; those of an earlier prompt at this place are forgotten. A node that goes through a list item by
        item has several."""
        with self._lock:
            earlier = self._kept.get(place)
            self._kept[place] = prompt_id, [*(earlier[1] if earlier and earlier[0] == prompt_id else ()), kept]

    def generation(self, place: str, host: Host) -> int:
        """Counts how often results at this place did not hold any more: with another number ComfyUI runs the node again."""
        with self._lock:
            if not all(kept.holds(host) for kept in self._kept.get(place, ("", []))[1]):
                del self._kept[place]
                self._generation[place] = self._generation.get(place, 0) + 1
            return self._generation.get(place, 0)


def widget_values(node: Node, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that are widgets and have a value, wherever it came from."""
    return {entry.name: inputs[entry.name] for entry in node.spec.inputs if entry.is_widget and inputs.get(entry.name) is not None}


def place_of(node_id: str, get_node: Callable[[str], Mapping[str, Any]]) -> str:
    """Equal for nodes of any prompt that do the same with the same: the node, its values, and so on for all that it is linked to.

    get_node: the entry of a prompt in API format, {"class_type": ..., "inputs": ...}; a link is [node id, output number].
    """
    known: dict[str, str] = {}

    def describe(one: str) -> str:
        if one not in known:
            node = get_node(one)
            inputs = {name: [describe(value[0]), value[1]] if _is_link(value) else value for name, value in node["inputs"].items()}
            known[one] = content.digest(node["class_type"], inputs)
        return known[one]

    return describe(node_id)


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
