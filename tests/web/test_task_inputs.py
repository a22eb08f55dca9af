"""The page's script that shows what the chosen task takes, run by node against nodes that behave like the page's."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PAGE = """
import fs from "node:fs";
import { extensions, app } from "./scripts/app.js";
globalThis.window = {};
globalThis.fetch = async (url) => ({ json: async () => JSON.parse(fs.readFileSync(new URL(url))) });
await import("./extensions/pack/task_inputs.js");
const [extension] = extensions;

class Node {
  static nodeData;
  constructor(type, widgets, inputs) {
    Object.assign(this, { type, comfyClass: type, graph: app.graph, size: [300, 100] });
    const required = Object.fromEntries(Object.entries(widgets).map(([name, value]) => [name, ["STRING", { default: value }]]));
    const optional = Object.fromEntries(inputs.map((name) => [name, ["IMAGE", {}]]));
    this.constructor = { nodeData: { input: { required, optional } } };
    this.widgets = Object.entries(widgets).map(([name, value]) => ({ name, value, options: {} }));
    this.inputs = inputs.map((name) => ({ name, link: null }));
    app.graph.nodes.push(this);
  }
  getInputNode(slot) {
    if (!this.graph) throw new Error("Attempted to access LGraph reference that was null or undefined.");
    return this.inputs[slot].link;
  }
  addInput(name) { this.inputs.push({ name, link: null }); }
  removeInput(slot) { this.inputs.splice(slot, 1); }
  computeSize() { return [300, 20 * this.widgets.filter((widget) => !widget.hidden).length]; }
  setSize(size) { this.size = size; }
  addWidget(kind, name, value, press) {
    this.button = { name, options: {}, press };
    return this.button;
  }
  connect(name, origin) {
    this.inputs.find((input) => input.name === name).link = origin;
    this.onConnectionsChange?.();
  }
  seen() {
    return [...this.widgets.filter((widget) => !widget.hidden), ...this.inputs].map((entry) => entry.name).sort();
  }
}
const tick = () => new Promise((resolve) => setTimeout(resolve));
const said = {};

const models = new Node("MusubiTuner_WanModelPaths", { task: "t2v-1.3B", dit: "a", clip: "b", dit_high_noise: "c" }, []);
const other = new Node("KSampler", { task: "x", clip: "y" }, []);
const generator = new Node(
  "MusubiTuner_WanVideoGenerator", { prompt: "", start_image_path: "", one_frame: "" }, ["models", "start_image", "control_video"]);
const reroute = new Node("Reroute", {}, [""]);
await extension.init();
for (const node of app.graph.nodes) extension.nodeCreated(node);
await tick();
said.unconnected = generator.seen();
said.models_t2v = models.seen();

reroute.inputs[0].link = models;
generator.connect("models", reroute);
await tick();
said.t2v = generator.seen();
said.height = generator.size[1];

const choose = (task) => { models.widgets[0].value = task; models.widgets[0].callback?.(task); };
reroute.inputs[0].link = models;
generator.inputs[0].link = models;
choose("i2v-14B");
said.i2v = generator.seen();
said.models_i2v = models.seen();
generator.inputs.find((input) => input.name === "start_image").link = other;
choose("t2v-A14B");
said.connected_stays = generator.seen();
said.values = models.widgets.map((widget) => widget.value);
said.other = other.seen();
generator.widgets[1].value = "a.png";
choose("t2v-1.3B");
said.set_stays = generator.seen();

const cache = new Node("MusubiTuner_VAELatentCache", { skip_existing: true, vae_tiling: false, device: "default" }, ["models"]);
Object.assign(cache.constructor.nodeData.input.required.device[1], { advanced: true });
const settings = new Node("MusubiTuner_SamplingConfig", { start_image_path: "" }, []);
const trainer = new Node("MusubiTuner_WanLoRATrainer", {}, ["models"]);
app.graph.links = { 1: { target_id: trainer } };
settings.outputs = [{ links: [1] }];
app.graph.getNodeById = (id) => id;
const framepack = new Node("MusubiTuner_FramePackModelPaths", {}, []);
for (const node of [cache, settings, trainer]) extension.nodeCreated(node);
cache.connect("models", framepack);
trainer.connect("models", framepack);
await tick();
said.framepack = [cache.seen(), settings.seen()];
cache.connect("models", models);
trainer.connect("models", models);
await tick();
said.wan = [cache.seen(), settings.seen()];
cache.button.press();
said.advanced = [cache.seen(), cache.button.label];
cache.button.press();
cache.widgets[2].value = "cpu";
trainer.connect("models", models);
await tick();
said.set_advanced = cache.seen();
cache.onConnectionsChange(); // of a node that is deleted, or taken out of a subgraph, as ComfyUI does both
cache.graph = null;
await tick();
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is to be seen on the page as the task changes."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's scripts")
    tmp_path = tmp_path_factory.mktemp("page")
    extension, scripts = tmp_path / "extensions" / "pack", tmp_path / "scripts"
    (extension / "trainings").mkdir(parents=True)
    scripts.mkdir()
    shutil.copytree(ROOT / "web" / "texts", extension / "texts")
    for name in ("task_inputs.js", "task_inputs.json", "trainings/words.js", "trainings/names.js"):
        shutil.copy(ROOT / "web" / name, extension / name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (scripts / "app.js").write_text(
        "export const extensions = [];\n"
        "export const app = { graph: { nodes: [], setDirtyCanvas() {} }, registerExtension: (extension) => extensions.push(extension) };\n"
    )
    (scripts / "api.js").write_text("export const api = { fetchApi: async () => ({ ok: false }) };\n")
    (tmp_path / "page.mjs").write_text(_PAGE)
    result = subprocess.run([node, "page.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_inputs_appear_with_the_task_that_takes_them(seen: Any) -> None:
    assert seen["unconnected"] == ["control_video", "models", "one_frame", "prompt", "start_image", "start_image_path"]
    assert seen["t2v"] == ["models", "prompt"]
    assert seen["height"] == 20, "the node shrinks with them"
    assert seen["i2v"] == ["models", "one_frame", "prompt", "start_image", "start_image_path"]
    assert seen["models_t2v"] == ["dit", "task"]
    assert seen["models_i2v"] == ["clip", "dit", "task"]


def test_what_is_connected_stays_and_no_value_is_lost(seen: Any) -> None:
    assert seen["connected_stays"] == ["models", "prompt", "start_image"]
    assert seen["set_stays"] == ["models", "prompt", "start_image", "start_image_path"], "what is set is never hidden"
    assert seen["values"] == ["t2v-A14B", "a", "b", "c"]
    assert seen["other"] == ["clip", "task"], "nodes of others are left alone"


def test_inputs_of_other_families_are_hidden_also_where_the_models_are_reached_through_the_trainer(seen: Any) -> None:
    assert seen["framepack"] == [["models", "skip_existing", "vae_tiling"], ["start_image_path"]]
    assert seen["wan"] == [["models", "skip_existing"], []]


def test_advanced_settings_are_folded_until_asked_for_unless_they_are_set(seen: Any) -> None:
    assert seen["advanced"] == [["device", "models", "skip_existing"], "Hide advanced settings"]
    assert seen["set_advanced"] == ["device", "models", "skip_existing"]
