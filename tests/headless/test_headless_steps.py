"""Steps of a workflow on a terminal: items of lists, exit codes, what the store keeps, and what is left out."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    return part("headless.terminal").TerminalHost(tmp_path, screen=part("headless.terminal").Screen(io.StringIO()))


def step(part: Any, key: str, run: Any, inputs: tuple[Any, ...] = (), many: bool = False, links: dict[str, Any] | None = None) -> Any:
    """A step whose node gives what `run` makes of its inputs."""
    spec = part("nodes.spec")

    async def give(self: Any, host: Any, **given: Any) -> Any:
        return spec.Result((run(**given),), text=f"{key} ran")

    made = spec.NodeSpec(key, key, "", "", inputs, (spec.Output("out", "STRING", "", many=many),))
    node = type(key, (spec.Node,), {"spec": made, "run": give})()
    return part("headless.workflow").Step(key, key, node, {}, links or {})


def test_items_of_lists_go_one_by_one_and_the_last_of_a_short_list_repeats(part: Any, host: Any) -> None:
    entry, seen = part("nodes.spec").Input, []
    steps = {
        "long": step(part, "long", lambda: ["a", "b", "c"], many=True),
        "short": step(part, "short", lambda: ["1", "2"], many=True),
        "each": step(
            part,
            "each",
            lambda x, y: seen.append((x, y)),
            (entry("x", "STRING", ""), entry("y", "STRING", "")),
            links={"x": ("long", 0), "y": ("short", 0)},
        ),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 0
    assert seen == [("a", "1"), ("b", "2"), ("c", "2")]


def test_a_failed_node_is_counted_and_what_needs_it_is_not_run(part: Any, host: Any) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise part("backend.musubi_backend.errors").UserError("it went wrong")

    entry = part("nodes.spec").Input
    steps = {
        "bad": step(part, "bad", fail),
        "after": step(part, "after", lambda x: ran.append("after"), (entry("x", "STRING", ""),), links={"x": ("bad", 0)}),
        "beside": step(part, "beside", lambda: ran.append("beside")),
    }
    assert asyncio.run(part("headless.run").run(steps, host)) == 1
    assert ran == ["beside"]
    said = host.screen.stream.getvalue()
    assert "ERROR in bad: it went wrong" in said and "after: not run, because node bad did not give its x" in said


def test_the_exit_code_says_that_a_node_failed(part: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": "/nowhere/python"}), encoding="utf-8")
    (tmp_path / "clips").mkdir()
    workflow = tmp_path / "x.json"
    workflow.write_text(json.dumps({"1": {"class_type": "MusubiTuner_DatasetConfig", "inputs": {"path": "clips"}}}), encoding="utf-8")
    assert part("headless.run").run_file(workflow, [], (), tmp_path) == 1
    assert "the backend is not installed yet" in capsys.readouterr().out


def test_the_store_keeps_the_newest_results(part: Any, tmp_path: Path) -> None:
    run, result = part("headless.run"), part("nodes.spec").Result
    store = run.ResultStore(tmp_path)
    store._entries = {str(number): {} for number in range(run._KEPT_RESULTS)}
    store.put("new", result(("x",)))
    assert run.ResultStore(tmp_path).get("new").values == ("x",)
    assert "0" not in store._entries and len(store._entries) == run._KEPT_RESULTS


def test_bypassed_and_muted_nodes_are_left_out_and_others_not(part: Any, tmp_path: Path) -> None:
    data = {"nodes": [{"id": mode, "type": "MusubiTuner_BackendInfo", "mode": mode} for mode in (0, 2, 4)], "links": []}
    file = tmp_path / "x.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert set(part("headless.workflow").read(file)) == {"0"}


def test_a_widget_set_on_the_terminal_wins_over_its_link(part: Any) -> None:
    workflow = part("headless.workflow")
    made = step(part, "one", lambda **given: None, (part("nodes.spec").Input("x", "INT", "", default=1),), links={"x": ("zero", 0)})
    workflow.override({"one": made}, ["one.x=5"])
    assert made.constants == {"x": 5} and made.links == {}


def test_a_link_to_an_output_that_is_not_there_is_refused(part: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    outputs = len(part("nodes.dataset").DatasetConfig.spec.outputs)
    for slot, fits in ((outputs - 1, True), (outputs, False)):
        nodes = {
            "1": {"class_type": "MusubiTuner_DatasetConfig", "inputs": {"path": "x"}},
            "2": {"class_type": "MusubiTuner_VAELatentCache", "inputs": {"dataset": ["1", slot]}},
        }
        file.write_text(json.dumps(nodes), encoding="utf-8")
        if fits:
            assert part("headless.workflow").read(file)["2"].links == {"dataset": ("1", slot)}
        else:
            with pytest.raises(part("backend.musubi_backend.errors").UserError, match="has no such output"):
                part("headless.workflow").read(file)
