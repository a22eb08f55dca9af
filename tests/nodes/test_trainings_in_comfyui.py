"""A training in a real ComfyUI page, in a real browser: live on its node and in the tab "Trainings", stopped there, and the same after a
reload and in the other renderer. Needs COMFYUI_PATH, Chromium and its driver. With MUSUBITUNER_SCREENSHOTS naming a folder, the pictures
of the documentation are written into it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from PIL import Image

from .test_comfyui import ROOT, started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(1500)]
READY = "!!(window.app?.graph && window.app.extensionManager && window.LiteGraph?.registered_node_types?.MusubiTuner_WanLoRATrainer)"
TRAINER = "window.app.graph.nodes.find(node => node.type === 'MusubiTuner_WanLoRATrainer')"
LINE = f"({TRAINER}.widgets.find(widget => widget.name.includes('text-preview'))?.value ?? '')"
SECONDS = 400  # for what a busy machine is slow at: nothing here is measured

_SET_UP = """
const [graph, vue] = args;
await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue);
await app.loadGraphData(graph);
const values = {
  MusubiTuner_WanLoRATrainer: { output_name: "watched" },
  MusubiTuner_LoRATrainingConfig: { max_train_steps: 3000 },
  MusubiTuner_SamplingConfig: {
    sample_prompts: "a red chessboard, seen from above", sample_every_n_steps: 20,
    sample_frames: 5, sample_steps: 2, sample_width: 64, sample_height: 64,
  },
};
for (const node of [...app.graph.nodes]) {
  if (/VideoOutput|VideoComparison|VideoInput|Generator/.test(node.type)) app.graph.remove(node);
  for (const [name, value] of Object.entries(values[node.type] ?? {})) node.widgets.find((widget) => widget.name === name).value = value;
}
const trainer = app.graph.nodes.find((node) => node.type === "MusubiTuner_WanLoRATrainer");
app.canvas.ds.scale = 1;
app.canvas.ds.offset = [480 - trainer.pos[0], 90 - trainer.pos[1]];
app.canvas.setDirty(true, true);
return 1;
"""
# how far what is shown on the node reaches out of it, in pixels: of the canvas, or of its element in the other renderer
_OUTSIDE = """
const node = app.graph.nodes.find((one) => one.type === "MusubiTuner_WanLoRATrainer");
const panel = document.querySelector(".mt-node").getBoundingClientRect();
const element = document.querySelector(`[data-node-id="${node.id}"]`);
let frame = element?.getBoundingClientRect();
if (!frame) {
  const { scale, offset } = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const left = canvas.left + (node.pos[0] + offset[0]) * scale;
  const top = canvas.top + (node.pos[1] + offset[1]) * scale;
  frame = { left, top, right: left + node.size[0] * scale, bottom: top + node.size[1] * scale };
}
const out = [frame.left - panel.left, panel.right - frame.right, frame.top - panel.top, panel.bottom - frame.bottom];
return Math.max(...out, panel.width > 100 ? 0 : 999);
"""


def test_a_training_is_seen_and_stopped_in_the_page(comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        _watch(browser, server.url, server.home)


def _watch(browser: Browser, url: str, home: Path) -> None:
    browser.resize(1500, 950)
    _open(browser, url, vue=False)
    browser.run("await app.extensionManager.command.execute('Workspace.ToggleSidebarTab.musubi-tuner-trainings'); return 1;")
    browser.wait("document.querySelector('.mt-message')?.innerText.includes('No trainings yet') ? 1 : 0", SECONDS)
    picture(browser, "trainings_empty")
    browser.run("await app.queuePrompt(0); return 1;")
    browser.wait(f"{LINE}.startsWith('loss ') ? 1 : 0", SECONDS)
    browser.wait("document.querySelector('.mt-open') ? 1 : 0", SECONDS)
    browser.run("document.querySelector('.mt-open').click(); return 1;")
    label = "document.querySelector('.mt-detail .mt-plot')?.getAttribute('aria-label') ?? ''"
    seen = f"Number(/ to .* at step (\\d+),/.exec({label})?.[1] ?? 0)"
    browser.wait(f"{seen} > 1 ? 1 : 0", SECONDS)
    before = browser.run(f"return {seen};")
    browser.wait(f"{seen} > {before} ? 1 : 0", SECONDS)
    browser.wait("document.querySelector('.mt-node canvas') ? 1 : 0", SECONDS)
    browser.wait("document.querySelector('.mt-node figcaption')?.textContent.includes('a red chessboard') ? 1 : 0", SECONDS)
    assert browser.run(_OUTSIDE) <= 1
    picture(browser, "training_live")

    stop = "[...document.querySelectorAll('.mt-detail .mt-button')].find(one => one.innerText.trim() === 'Stop and save')"
    browser.run(f"{stop}.click(); return 1;")
    browser.wait("document.querySelector('.mt-detail .mt-badge')?.innerText.trim() === 'stopped' ? 1 : 0", SECONDS)
    said = browser.run("return document.querySelector('.mt-how').innerText;")
    assert "saved" in said
    assert list(home.glob("runs/watched-*/*-state/*")), "the state that it says is saved"
    browser.wait(f"{LINE}.startsWith('stopped at step ') ? 1 : 0", SECONDS)
    assert browser.run("return app.extensionManager.lastExecutionError == null;"), "a stop is no failure"
    picture(browser, "training_stopped")

    graph = browser.run("return app.graph.serialize();")
    assert _job_of(graph)
    browser.run("localStorage.clear(); sessionStorage.clear(); return 1;")
    for vue in (False, True):
        _open(browser, url, vue=vue, graph=graph)
        browser.wait("document.querySelector('.mt-node canvas') ? 1 : 0", SECONDS)
        browser.wait("document.querySelector('.mt-node .mt-badge')?.innerText.trim() === 'stopped' ? 1 : 0", SECONDS)
        assert browser.run(_OUTSIDE) <= 1, f"Vue nodes: {vue}"
        picture(browser, f"training_node_{'vue' if vue else 'canvas'}")


def _open(browser: Browser, url: str, *, vue: bool, graph: dict[str, Any] | None = None) -> None:
    browser.open(url)
    browser.wait(READY, SECONDS)
    browser.wait("app.extensionManager.workflow?.activeWorkflow ? 1 : 0", SECONDS)
    graph = graph or json.loads((ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
    browser.run(_SET_UP, graph, vue)
    browser.press("Escape")  # the templates, which ComfyUI shows on its first start


def _job_of(graph: dict[str, Any]) -> str:
    return next(str(node["properties"].get("musubi_job", "")) for node in graph["nodes"] if node["type"] == "MusubiTuner_WanLoRATrainer")


def picture(browser: Browser, name: str, of: str = "body") -> None:
    """Of an element, for the documentation."""
    folder = os.environ.get("MUSUBITUNER_SCREENSHOTS")
    if folder:
        edges = browser.run(
            "const { x, y, right, bottom } = document.querySelector(args[0]).getBoundingClientRect(); return [x, y, right, bottom];", of
        )
        with Image.open(io.BytesIO(browser.image())) as image:
            image.crop(tuple(map(round, edges))).save(Path(folder, f"{name}.webp"), quality=80, method=6)
