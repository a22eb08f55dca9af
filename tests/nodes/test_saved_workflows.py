"""Workflows that people have saved keep working: ComfyUI stores widget values and links by position, so both only ever get longer.

`saved_workflows.json` holds what was there on 2026-11-27: of each node the widgets (name, kind, default, and its choices or its least and
greatest value), sockets and outputs in their order, and the example workflows as they were saved then. It only ever grows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SAVED: dict[str, Any] = json.loads(Path(__file__).with_name("saved_workflows.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", SAVED["nodes"])
def test_inputs_and_outputs_keep_their_places_and_kinds(part: Any, node: str) -> None:
    spec, saved = part("nodes.catalog").BY_NAME[node].spec, SAVED["nodes"][node]
    widgets = [[entry.name, entry.kind] for entry in spec.inputs if entry.is_widget]
    assert widgets[: len(saved["widgets"])] == [widget[:2] for widget in saved["widgets"]]
    sockets = [[entry.name, entry.kind] for entry in spec.inputs if not entry.is_widget]
    assert sockets[: len(saved["sockets"])] == saved["sockets"]
    assert [[output.name, output.kind] for output in spec.outputs][: len(saved["outputs"])] == saved["outputs"]


@pytest.mark.parametrize("node", SAVED["nodes"])
def test_values_that_could_be_saved_are_still_taken(part: Any, node: str) -> None:
    spec = part("nodes.catalog").BY_NAME[node].spec
    for name, kind, default, allowed in SAVED["nodes"][node]["widgets"]:
        entry = spec.input(name)
        if kind in ("INT", "FLOAT"):
            assert entry.lowest <= allowed[0] and entry.maximum >= allowed[1], name
        elif allowed is not None:
            assert set(allowed) <= set(entry.choices), name
        assert entry.default == default, f"{name}: prompts that leave it out would mean something else"


@pytest.mark.parametrize("name", SAVED["workflows"])
def test_a_saved_workflow_is_read_as_it_was_meant(part: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(SAVED["workflows"][name]), encoding="utf-8")
    steps = part("headless.workflow").read(file)
    host = part("headless.terminal").TerminalHost(tmp_path)
    for step in steps.values():
        widgets = [widget[0] for widget in SAVED["nodes"][step.node.spec.id.removeprefix("MusubiTuner_")]["widgets"]]
        assert set(widgets) <= set(step.constants) | set(step.links), step.title
        listed = {entry.name for entry in step.node.spec.inputs if callable(entry.choices)}  # files that are not on this machine
        values = {name: value for name, value in step.constants.items() if name not in listed}
        assert {problem.input for problem in part("nodes.checks").check(step.node, host, values)} <= PLACES, step.title
        for socket, (source, slot) in step.links.items():
            given, wanted = steps[source].node.spec.outputs[slot].kind, step.node.spec.input(socket).kind
            assert given == wanted or given == "*", f"{step.title}.{socket}"


PLACES = {"path", "cache_directory", "checkpoints"}
"""Widgets that name folders and files that only the people have who saved the workflow."""
