"""In a real ComfyUI page: every template opens without an error where titles can be read, and clips are uploaded with captions.

Needs COMFYUI_PATH, and Chromium with its driver on the PATH. With MUSUBITUNER_SCREENSHOTS naming a folder, the pictures of the first steps
are written there.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from pathlib import Path

import pytest
from browser import Browser
from PIL import Image

from .test_comfyui import started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
MODELS = ("diffusion_models/wan2.1_t2v_1.3B_bf16.safetensors", "vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp16.safetensors")
"""Of the first template, for its picture."""
READY = "window.app?.graph && window.app.extensionManager && window.LiteGraph?.registered_node_types?.MusubiTuner_DatasetViewer ? 1 : 0"
# Errors of our scripts and of the graph. A browser also logs what it could not load: weights elsewhere, previews of files not chosen yet.
LISTEN = """
window.said = [];
for (const name of ["error"]) {
  const told = console[name].bind(console);
  console[name] = (...words) => { window.said.push(words.map(String).join(" ")); told(...words); };
}
window.addEventListener("error", (event) => window.said.push(event.message));
window.addEventListener("unhandledrejection", (event) => window.said.push(String(event.reason)));
return 1;
"""
OVERLAPS = """
const boxes = window.app.graph.nodes.map((node) => [node.type, node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30]);
const over = [];
for (const [a, ax, ay, aw, ah] of boxes) for (const [b, bx, by, bw, bh] of boxes)
  if (a < b && ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah) over.push(`${a} ${b}`);
return over;
"""

DROP = """
const files = new DataTransfer();
const bytes = (data) => Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
for (const [name, data] of Object.entries(args[0])) files.items.add(new File([bytes(data)], name));
document.querySelector('.musubi-upload').dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
return 1;
"""
WORDS = base64.b64encode(b"my own words").decode()


def test_templates_open_and_clips_are_uploaded(comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser) -> None:
    base = tmp_path / "base"
    for name in MODELS:
        (base / "models" / name).parent.mkdir(parents=True)
        (base / "models" / name).touch()
    # ComfyUI serves no scripts from a folder whose name has blanks or other than plain letters
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        listed = asyncio.run(server.get("/workflow_templates"))["musubi-tuner"]
        assert {*listed} == {path.stem for path in TEMPLATES}
        browser.open(server.url)
        browser.wait(READY, 240)
        shown = browser.run("return (await (await import('/scripts/api.js')).api.getWorkflowTemplates())['musubi-tuner'];")
        assert shown == json.loads((ROOT / "web" / "templates" / "order.json").read_text(encoding="utf-8")) and {*shown} == {*listed}
        browser.run(LISTEN)
        for nodes_2 in (True, False):  # a new ComfyUI draws its nodes without Nodes 2.0, and so do the pictures
            browser.run("await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', args[0]); return 1;", nodes_2)
            for path in TEMPLATES:
                browser.run("await window.app.loadGraphData(args[0]); return 1;", json.loads(path.read_text(encoding="utf-8")))
                browser.run("await new Promise((resolve) => setTimeout(resolve, 300)); return 1;")
                assert browser.run("return window.said.splice(0).filter((words) => !words.includes('Failed to fetch'));") == [], path.stem
                assert browser.run("return window.app.canvas.ds.scale;") >= 0.65, path.stem
                assert browser.run(OVERLAPS) == [], path.stem
        _unpacked(browser)
        _in_japanese(browser, server.url)
        _upload(browser, base)


def _unpacked(browser: Browser) -> None:
    """The first template is taken apart, as its page in the docs says one can."""
    browser.run(
        "await window.app.loadGraphData(args[0]); window.app.graph.unpackSubgraph(window.app.graph.nodes.find((node) => node.subgraph));",
        json.loads((ROOT / "workflows" / "train_a_lora_start_here.json").read_text(encoding="utf-8")),
    )
    browser.run("await new Promise((resolve) => setTimeout(resolve, 300)); return 1;")
    of_ours = [words for words in browser.run("return window.said.splice(0);") if not words.startswith("Missing Link ID")]
    assert [words for words in of_ours if "Failed to fetch" not in words] == []
    assert len(browser.run("return Object.keys((await window.app.graphToPrompt()).output);")) == 9


def _in_japanese(browser: Browser, url: str) -> None:
    workflow = json.loads((ROOT / "workflows" / "wan_lora_training.json").read_text(encoding="utf-8"))
    load = "await window.app.loadGraphData(args[0]); return [...window.app.graph._groups.map((one) => one.title), window.app.graph.extra];"
    _speak(browser, url, "ja")
    *groups, extra = browser.run(load, workflow)
    assert groups[0] == "1. クリップとモデル" and len(groups) == len(workflow["groups"])
    assert "musubi_template" not in extra, "saved from here it is somebody's own"
    _speak(browser, url, "en")
    assert browser.run(load, workflow)[0] == workflow["groups"][0]["title"]


def _speak(browser: Browser, url: str, language: str) -> None:
    """Open the page in a language. Changed in an open one, ComfyUI loads its workflow again, at a time of its own."""
    put = "{ method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(args[0]) }"
    browser.run(f"await fetch('/api/settings/Comfy.Locale', {put}); return 1;", language)
    browser.open(url)
    browser.wait(READY, 240)
    browser.wait("window.app.extensionManager.workflow?.activeWorkflow ? 1 : 0", 240)


def _upload(browser: Browser, base: Path) -> None:
    workflow = json.loads((ROOT / "workflows" / "train_a_lora_start_here.json").read_text(encoding="utf-8"))
    browser.run("await window.app.loadGraphData(args[0]); return 1;", workflow)
    browser.wait("window.app.graph.nodes[0].musubiUpload ? 1 : 0")
    browser.run("await new Promise((resolve) => setTimeout(resolve, 1000)); return 1;")
    browser.press("Escape")  # the templates, which ComfyUI shows on its first start
    _picture(browser, "first_lora_template")
    browser.run("window.app.graph.nodes[0].musubiUpload.callback(); return 1;")
    browser.wait("document.querySelector('.musubi-upload') ? 1 : 0")
    clip = next((base / "our home" / "demo" / "dataset").glob("*.mp4")).read_bytes()
    browser.run(DROP, {"one.mp4": base64.b64encode(clip).decode(), "two.mp4": base64.b64encode(clip).decode(), "two.txt": WORDS})
    fields = "const [folder, caption] = document.querySelectorAll('.musubi-upload input[type=text]');"
    browser.run(f"{fields} folder.value = 'my_dog'; caption.value = 'ohwx dog'; return 1;")
    _picture(browser, "first_lora_upload")
    browser.run(DROP, {"tool.exe": WORDS})
    browser.wait("document.querySelector('.musubi-upload [role=status]').innerText.includes('tool.exe') ? 1 : 0")
    browser.run("document.querySelector('.musubi-upload input[type=text]').value = 'new clips 名'; return 1;")
    browser.run("document.querySelector('.musubi-upload form').requestSubmit(); return 1;")
    browser.wait("document.querySelector('.musubi-upload') ? 0 : 1")
    folder = base / "input" / "new clips 名"
    assert {path.name for path in folder.iterdir()} == {"one.mp4", "one.txt", "two.mp4", "two.txt"}
    assert (folder / "one.mp4").read_bytes() == clip
    assert [(folder / name).read_text() for name in ("one.txt", "two.txt")] == ["ohwx dog", "my own words"]
    prompt = browser.run("return (await window.app.graphToPrompt()).output;")
    (dataset,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "MusubiTuner_DatasetConfig"]
    assert (dataset["path"], dataset["source"]) == ("new clips 名", "video folder")


def _picture(browser: Browser, name: str) -> None:
    folder = os.environ.get("MUSUBITUNER_SCREENSHOTS")
    if folder:
        with Image.open(io.BytesIO(browser.image())) as image:
            image.crop((60, 80, 1050, 670)).save(Path(folder) / f"{name}.webp", quality=80, method=6)  # without ComfyUI's bars
