"""The page's script of Optimizer Config, run by node: arguments of the chosen optimizer, presets, groups, and the picture of the rate."""

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
import { asked } from "./scripts/api.js";
globalThis.window = {};
const made = () => ({ style: {}, children: [], attributes: {}, append(...more) { this.children.push(...more); }, addEventListener() {},
  setAttribute(name, value) { this.attributes[name] = value; } });
globalThis.document = { createElement: made, createElementNS: made };
globalThis.fetch = async (url) => ({ json: async () => JSON.parse(fs.readFileSync(new URL(url))) });
await import("./extensions/pack/optimizer_config.js");
const extension = extensions.find((one) => one.name === "MusubiTuner.OptimizerConfig");
await extension.init();
const tick = () => new Promise((resolve) => setTimeout(resolve, 150));

class Node {
  constructor(type, values) {
    Object.assign(this, { type, comfyClass: type, size: [300, 100], inputs: [], outputs: [], graph: app.graph });
    this.widgets = Object.entries(values).map(([name, value]) => ({ name, value, options: {} }));
  }
  addWidget(kind, name, value, callback, options) {
    const kept = (this.kept ??= {}); // as the page does, by the name, when a widget goes and another one of its name comes
    kept[name] ??= value;
    const widget = { kind, name, callback, options: options ?? {} };
    Object.defineProperty(widget, "value", { get: () => kept[name], set: (one) => (kept[name] = one) });
    this.widgets.push(widget);
    return widget;
  }
  addDOMWidget(name, type, element) { const widget = { name, element, options: {} }; this.widgets.push(widget); return widget; }
  removeWidget(widget) { this.widgets.splice(this.widgets.indexOf(widget), 1); }
  computeSize() { return [300, 20 * this.widgets.length]; }
  setSize(size) { this.size = size; }
  getInputNode(slot) { return this.inputs[slot].origin; }
}
const node = new Node("MusubiTuner_OptimizerConfig", {
  optimizer_type: "adamw", learning_rate: 2e-4, lr_scheduler: "cosine", optimizer_args: "", optimizer_preset: "none" });
const config = new Node("MusubiTuner_LoRATrainingConfig", { max_train_steps: 700, max_train_epochs: 0 });
const trainer = new Node("MusubiTuner_WanLoRATrainer", {});
trainer.properties = {};
trainer.inputs = [{ name: "lora_config", origin: config }];
node.outputs = [{ links: [1] }];
app.graph.links = { 1: { target_id: trainer } };
app.graph.getNodeById = (id) => id;
extension.nodeCreated(node);
await tick();
const widget = (name) => node.widgets.find((one) => one.name === name);
const set = (name, value) => { widget(name).value = value; widget(name).callback?.(value); };
const OWN = ["musubi_group", "musubi_search", "musubi_report"];
const state = () => ({
  shown: node.widgets.filter((one) => one.label && !OWN.includes(one.name)).map((one) => one.label),
  values: ["optimizer_type", "learning_rate", "optimizer_args", "optimizer_preset"].map((name) => widget(name).value),
  presets: widget("optimizer_preset").options.values,
});
const said = { adamw: state(), kept: node.widgets.filter((one) => one.serialize !== false).map((one) => one.name) };
set("musubi_weight_decay", "0.05");
set("musubi_amsgrad", true);
said.changed = state();
set("musubi_weight_decay", "0.01");
said.back = state().values[2];
set("optimizer_type", "AdaptiveHinaAdamW");
said.other = { ...state(), decay: widget("musubi_weight_decay").value };
set("optimizer_preset", "AdaptiveHinaAdamW: large model");
said.preset = [state().values, widget("musubi_warmup_steps").value, widget("musubi_use_spd").kind];
set("musubi_warmup_steps", "10");
set("musubi_spd_anchor", "zero");
said.lines = state().values[2];
set("optimizer_type", "adamw");
said.returned = state().values;
set("musubi_group", "Schedule-free");
said.group = [widget("optimizer_type").value, widget("optimizer_type").options.values];
set("optimizer_args", "betas=(0.5, 0.9)\\nstrange=1");
said.typed = [widget("musubi_betas").value, widget("optimizer_args").value];
await tick();
said.asked = asked.at(-1);
const picture = widget("musubi_schedule").element;
said.picture = [picture.children[0].textContent, picture.children[1].children[0].attributes.points.split(" ").length];
config.widgets[1].value = 3;
config.widgets[1].callback(3);
await tick();
said.epochs = [asked.at(-1).steps, picture.children[0].textContent];
const report = async () => {
  widget("musubi_report").callback();
  await tick();
  return [node.musubiReport.heading.textContent, node.musubiReport.words.textContent];
};
said.silent = await report();
trainer.properties.musubi_job = "one";
config.widgets[1].callback(3);
await tick();
said.known = [asked.at(-1).steps, picture.children[0].textContent];
said.report = await report();
set("musubi_group", "all");
const offered = () => widget("optimizer_type").options.values;
const searched = (text) => (set("musubi_search", text), [widget("optimizer_type").value, offered().length]);
said.search = [searched("lion"), offered(), searched("no such"), widget("musubi_search").label, searched("sinkGD")];
console.log(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's scripts")
    tmp_path = tmp_path_factory.mktemp("page")
    extension, scripts = tmp_path / "extensions" / "pack", tmp_path / "scripts"
    scripts.mkdir()
    for folder in ("texts", "optimizers", "trainings"):
        shutil.copytree(ROOT / "web" / folder, extension / folder)
    for name in ("task_inputs.js", "task_inputs.json", "optimizer_config.js"):
        shutil.copy(ROOT / "web" / name, extension / name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (scripts / "app.js").write_text(
        "export const extensions = [];\n"
        "export const app = { graph: { nodes: [], setDirtyCanvas() {} }, registerExtension: (extension) => extensions.push(extension) };\n"
    )
    (scripts / "api.js").write_text(
        "const job = { name: 'cat', total: 80, epochs: 4, created: 1, "
        "optimizer: { step: 20, lines: ['use_spd: on', 'global_step: 20'] } };\n"
        "export const asked = [];\nexport const api = { addEventListener() {}, fetchApi: async (path, sent) => {\n"
        "  if (path === '/musubi_tuner/jobs/one') return { ok: true, json: async () => job };\n"
        "  asked.push({ path, ...JSON.parse(sent.body) });\n"
        "  return { json: async () => ({ rates: [[1, 0.001], [700, 0.0005]], note: 'a note' }) };\n} };\n"
    )
    (tmp_path / "page.mjs").write_text(_PAGE)
    result = subprocess.run([node, "page.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_only_the_arguments_of_the_chosen_optimizer_are_shown_and_only_the_node_s_own_inputs_are_saved(said: Any) -> None:
    assert said["adamw"]["shown"] == ["betas", "eps", "weight_decay", "amsgrad"] and said["adamw"]["presets"] == ["none"]
    assert said["kept"] == ["optimizer_type", "learning_rate", "lr_scheduler", "optimizer_args", "optimizer_preset"]
    assert "use_spd" in said["other"]["shown"] and "amsgrad" not in said["other"]["shown"]
    assert said["other"]["decay"] == "None", "not what the one before had"


def test_arguments_are_lines_of_optimizer_args_and_the_usual_ones_are_none(said: Any) -> None:
    assert said["changed"]["values"][2] == "weight_decay=0.05\namsgrad=True" and said["back"] == "amsgrad=True"
    assert said["typed"] == ["(0.5, 0.9)", "betas=(0.5, 0.9)\nstrange=1"]
    assert said["returned"] == ["adamw", 2e-4, "amsgrad=True", "none"], "what was set comes back with its optimizer"


def test_an_optimizer_brings_its_rate_and_a_preset_its_own_and_its_arguments(said: Any) -> None:
    assert said["other"]["values"] == ["AdaptiveHinaAdamW", 1e-3, "", "none"] and len(said["other"]["presets"]) == 5
    assert said["preset"] == [["AdaptiveHinaAdamW", 5e-4, "", "AdaptiveHinaAdamW: large model"], "1000", "combo"]
    assert said["lines"] == 'warmup_steps=10\nspd_anchor="zero"'


def test_a_group_lists_its_optimizers(said: Any) -> None:
    chosen, listed = said["group"]
    assert chosen == listed[0] and "AdamWScheduleFree" in listed and "adamw" not in listed


def test_the_rate_is_drawn_over_the_steps_of_the_training_it_is_for(said: Any) -> None:
    assert said["asked"]["path"] == "/musubi_tuner/learning_rates" and said["asked"]["steps"] == 700
    assert set(said["asked"]["values"]) == set(said["kept"])
    assert said["picture"] == ["a note · learning rate over 700 steps: 0.00100 … 5.00e-4", 2]


def test_how_many_steps_epochs_have_is_what_the_last_training_says(said: Any) -> None:
    assert said["epochs"][0] == 1000 and "over 3 epochs, drawn as 1000 steps" in said["epochs"][1]
    assert said["known"][0] == 60 and "over 3 epochs, 60 steps as in the last training" in said["known"][1]


def test_the_node_shows_what_the_optimizer_of_its_last_training_said(said: Any) -> None:
    assert said["silent"][0] == "" and "log_optimizer_every" in said["silent"][1]
    assert said["report"] == ["cat: What the optimizer says at step 20", "use_spd: on\nglobal_step: 20"]


def test_a_search_lists_the_optimizers_that_it_finds(said: Any) -> None:
    (kept, _), found, (after, every), label, (only, one) = said["search"]
    assert {"Lion", "Lion8bit"} <= set(found) and len(found) < 15 and kept == "AdamWScheduleFree"
    assert every > 40 and after == kept and "none found" in label
    assert (only, one) == ("SinkGD", 1)
