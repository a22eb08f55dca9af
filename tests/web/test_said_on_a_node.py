"""What a node's run said is on the node: at the end of the run, where ComfyUI gives a kept result, and in a graph that is opened again.
Needs Chromium and its driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser

from .recorded import STATES, Recorded, page

_GRAPH = """
const before = window.app.extensions.length;
await import("/extensions/pack/trainings/report.js");
await import("/extensions/pack/trainings/on_node.js");
for (const one of window.app.extensions.slice(before)) one.setup?.();
window.lines = [];
window.api.addEventListener("progress_text", ({ detail }) => window.lines.push([detail.nodeId, detail.text]));
window.made = (id, kind, graph) => {
  const node = {
    id, graph, comfyClass: `MusubiTuner_${kind}`, size: [400, 300], widgets: [], properties: {},
    computeSize: () => [400, 300], setSize() {},
    setProperty(name, value) { this.properties[name] = value; },
    addDOMWidget(name, type, whole) {
      document.body.append(whole);
      const widget = { name, whole };
      this.widgets.push(widget);
      return widget;
    },
    removeWidget(widget) { widget.whole.remove(); this.widgets.splice(this.widgets.indexOf(widget), 1); },
  };
  graph.nodes.push(node);
  for (const one of window.app.extensions) one.nodeCreated?.(node);
  return node;
};
const root = { nodes: [], subgraphs: new Map() }, folded = { nodes: [] };
root.subgraphs.set("12ab", folded);
Object.assign(window.app, { graph: root, canvas: { graph: root } });
window.board = window.made(5, "TensorBoard", root);
window.within = window.made(7, "ResourceMonitor", folded);
window.made(9, "Folder", root).subgraph = folded;
"""
_SHOWN = "[...document.querySelectorAll('.mt-report pre')].map((one) => one.textContent).join('|')"
ADDRESS = "http://127.0.0.1:43210/"
NOTHING = "20261127-101113-wan_train_network-ab12ce"


@pytest.fixture
def window(browser: Browser) -> Iterator[Browser]:
    recorded = Recorded()
    job = {**STATES["running"], "id": "20261127-101112-tensorboard-ab12cd", "kind": "tool", "verb": "tensorboard", "name": "", "run": None}
    recorded.jobs.append({**job, "text": f"TensorBoard of cat-1: {ADDRESS}", "phase": f"TensorBoard of cat-1: {ADDRESS}"})
    recorded.jobs.append(
        {**STATES["stopped"], "id": NOTHING, "step": 0, "loss": None, "average": None, "run": "early-1", "text": "stopped; nothing saved"}
    )
    with page(recorded) as url:
        browser.open(url)
        browser.wait("window.app?.tab ? 1 : 0")
        browser.run(_GRAPH)
        yield browser


def said(line: str, text: str) -> dict[str, Any]:
    return {"musubi_report": [{"line": line, "text": text}]}


def test_a_kept_result_says_again_what_its_run_said(window: Browser) -> None:
    window.run("window.board.onExecuted(args[0]);", said(ADDRESS, "all of it"))
    window.wait(f"{_SHOWN} === 'all of it' ? 1 : 0")
    assert window.run("return window.lines;") == [["5", ADDRESS]]
    window.run("window.board.onExecuted(args[0]);", said("TensorBoard was stopped", ""))
    window.wait(f"{_SHOWN} === '' ? 1 : 0")
    assert window.run("return window.lines[1];") == ["5", "TensorBoard was stopped"]


@pytest.mark.parametrize("end", ["execution_error", "execution_interrupted"])
def test_what_an_earlier_run_said_is_gone_when_one_fails(window: Browser, end: str) -> None:
    for node in ("board", "within"):
        window.run("window[args[0]].onExecuted(args[1]);", node, said("fine", node))
    window.wait(f"{_SHOWN} === 'board|within' ? 1 : 0")
    window.run("window.api.say(args[0], { node_id: '9:7' });", end)
    assert window.run(f"return {_SHOWN};") == "board", "another node's stays"


def test_a_graph_that_is_seen_again_has_what_was_said_in_it(window: Browser) -> None:
    outputs = {
        "5": said(ADDRESS, "whole"),
        "12ab:7": said("nothing is short", "much"),
        "6": said("of a node that is gone", "x"),
        "9": {"images": []},
    }
    window.run("for (const one of window.app.extensions) one.onNodeOutputsUpdated?.(args[0]);", outputs)
    window.wait(f"{_SHOWN} === 'whole|much' ? 1 : 0")
    assert window.run("return window.lines;") == [["5", ADDRESS]], "the number of a node that is folded away is another node's here"


def test_the_address_of_tensorboard_is_there_again_after_a_reload_while_it_runs(window: Browser) -> None:
    window.run("window.board.properties.musubi_job = args[0];", "20261127-101112-tensorboard-ab12cd")
    window.run("for (const one of window.app.extensions) one.loadedGraphNode?.(window.board);")
    window.wait(f"document.querySelector('.mt-node a[href=\"{ADDRESS}\"]') ? 1 : 0")
    assert window.run("return document.querySelector('.mt-node .mt-badge').textContent;") == "running"


@pytest.mark.parametrize("width", [340, 270])
def test_why_a_training_failed_can_be_read_on_its_node_after_a_reload(window: Browser, width: int) -> None:
    window.run("window.trainer = window.made(11, 'WanLoRATrainer', window.app.graph); window.trainer.size[0] = args[0];", width)
    window.run("window.trainer.properties.musubi_job = args[0];", STATES["failed"]["id"])
    window.run("for (const one of window.app.extensions) one.loadedGraphNode?.(window.trainer);")
    window.wait("document.querySelector('.mt-node .mt-badge') ? 1 : 0")
    window.run("document.querySelector('.mt-node').style.width = `${args[0] - 20}px`;", width)
    seen = "const text = document.querySelector('.mt-node-line > span:not(:has(*))');"
    said = window.run(f"{seen} return text.textContent;")
    assert said.startswith("CUDA out of memory: 2.1 GB") and said.endswith("lower the resolution."), (
        "that it failed is said once, by the badge"
    )
    assert window.run(f"{seen} return text.scrollHeight - text.clientHeight;") <= 1, "no line of it is cut"
    assert window.run("const { whole, height } = window.trainer.musubiTraining; return whole.scrollHeight - height();") <= 0


@pytest.mark.parametrize(("job", "drawn"), [(NOTHING, False), (STATES["starting"]["id"], True), (STATES["stopped"]["id"], True)])
def test_no_empty_curve_stays_where_a_training_ended_before_its_first_step(window: Browser, job: str, drawn: bool) -> None:
    window.run("window.trainer = window.made(11, 'WanLoRATrainer', window.app.graph); window.trainer.properties.musubi_job = args[0];", job)
    window.run("for (const one of window.app.extensions) one.loadedGraphNode?.(window.trainer);")
    window.wait("document.querySelector('.mt-node .mt-badge') ? 1 : 0")
    assert window.run("return document.querySelector('.mt-node .mt-plot').checkVisibility();") == drawn


_FAILED = """
const inside = window.app.graph.nodes.find((one) => one.id === 9).subgraph;
if (!inside.nodes.some((one) => one.id === 11)) window.made(11, "WanLoRATrainer", inside);
const exception_message = "nothing in this dataset can be used:\\n  /in/clips: no videos here\\nmore";
window.api.say("execution_error", { node_id: "9:7", exception_message });
"""


def test_a_folded_training_says_why_a_node_inside_failed_until_the_next_run(window: Browser) -> None:
    """Also where the last job went well: the dataset was read, and refused."""
    badge = "(document.querySelector('.mt-node .mt-badge')?.textContent.trim() ?? '')"
    words = "document.querySelector('.mt-node-line').innerText"
    reason = "nothing in this dataset can be used: /in/clips: no videos here"
    window.run(_FAILED)
    window.wait(f"{badge} === 'failed' && {words}.includes('{reason}') ? 1 : 0")
    assert not window.run("return document.querySelector('.mt-node .mt-chart').checkVisibility();"), "nothing has trained"
    window.run("window.api.say('execution_start', { prompt_id: '1' });")
    assert window.run(f"return {badge};") == ""
    window.run("window.api.say('musubi_tuner.begins', { node: '9:7', job: args[0] });", STATES["finished"]["id"])
    window.wait(f"{badge} === 'finished' ? 1 : 0")
    window.run(_FAILED)
    window.wait(f"{badge} === 'failed' && {words}.includes('no videos here') ? 1 : 0")
    window.run("const panel = window.app.graph.nodes[1].musubiTraining; await panel._read();")
    assert window.run(f"return {badge};") == "failed", "what is told of the job meanwhile says no other end"
    window.run("window.api.say('execution_start', { prompt_id: '2' });")
    window.wait(f"{badge} === 'finished' ? 1 : 0")
