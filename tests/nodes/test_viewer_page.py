"""The captioning workflow in a real ComfyUI page, in a real browser: captions are made, shown, edited, saved, and there after a reload.

Needs COMFYUI_PATH, and Chromium with its driver on the PATH.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from .test_comfyui import Server, started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]


def workflow(part: Any, home: Path, images: Path) -> dict[str, Any]:
    """The captioning workflow with the demo model, on two images of which one has a caption."""
    from musubi_backend.demo.models import write_models
    from PIL import Image
    from skimage import data

    write_models(home / "demo" / "models", kind="qwen_vl")
    images.mkdir(parents=True, exist_ok=True)
    for name in ("coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((168, 112)).save(images / f"{name}.png")
    (images / "coffee.txt").write_text("a coffee <b>bold</b>", encoding="utf-8")
    example = part("workflows.contents").captioning()
    captions, cut = example.groups[0].entries[0], example.groups[1].entries[0]
    captions[1].update(path=images.name, model="demo_qwen_vl.safetensors", max_size=112)
    cut[1].update(width=160, height=96)
    specs = {name: node.spec for name, node in part("nodes.catalog").BY_NAME.items()}
    built: dict[str, Any] = part("workflows.layout").build(example, specs)
    return built


def test_captions_are_edited_in_the_page(comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser, part: Any) -> None:
    base = tmp_path / "comfy base"
    base.mkdir()
    # ComfyUI serves no scripts from a folder whose name has blanks or other than plain letters
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        _edit(server, browser, part, base / "input" / "my_pictures")


def _edit(server: Server, browser: Browser, part: Any, images: Path) -> None:
    graph = workflow(part, server.home, images)
    browser.open(server.url)
    ready = "window.app?.graph && window.app.extensionManager && window.LiteGraph?.registered_node_types?.MusubiTuner_DatasetViewer ? 1 : 0"
    browser.wait(ready, 120)
    browser.run("await window.app.loadGraphData(args[0]); await window.app.queuePrompt(0); return 1;", graph)
    browser.wait("document.querySelectorAll('.musubi-viewer textarea').length === 2", 120)
    boxes = "[...document.querySelectorAll('.musubi-viewer textarea')]"
    assert browser.run(f"return {boxes}.map(box => box.value);") == ["a coffee <b>bold</b>", "a dark picture in cold colours"]
    assert browser.run("return document.querySelectorAll('.musubi-viewer b b, .musubi-viewer .musubi-text > b').length;") == 0
    image = browser.run(
        "const url = getComputedStyle(document.querySelector('.musubi-thumbnail')).backgroundImage.slice(5, -2);"
        "return (await fetch(url)).status;"
    )
    assert image == 200
    browser.run(
        f"const box = {boxes}[0]; box.value = 'a cup of coffee, 日本'; box.dispatchEvent(new Event('input'));"
        "box.closest('.musubi-item').querySelector('button').click(); return 1;"
    )
    browser.wait("[...document.querySelectorAll('.musubi-facts')].some(one => one.textContent === 'saved')")
    assert (images / "coffee.txt").read_text(encoding="utf-8") == "a cup of coffee, 日本"
    assert (images / "rocket.txt").read_text(encoding="utf-8") == "a dark picture in cold colours"

    saved = browser.run("return window.app.graph.serialize();")
    browser.run("localStorage.clear(); sessionStorage.clear(); return 1;")  # or the page puts back its own copy of an earlier state
    browser.open(server.url)
    browser.wait(ready, 120)
    browser.wait("window.app.extensionManager.workflow?.activeWorkflow ? 1 : 0")
    browser.run("await window.app.loadGraphData(args[0]); return 1;", saved)
    browser.wait("document.querySelectorAll('.musubi-viewer textarea').length === 2")
    assert browser.run(f"return {boxes}[0].value;") == "a cup of coffee, 日本"
    said = server.log.read_text(encoding="utf-8", errors="replace")
    assert "custom_nodes/musubi-tuner/nodes/" not in said, "a traceback through our files"
    assert asyncio.run(server.get("/system_stats"))
