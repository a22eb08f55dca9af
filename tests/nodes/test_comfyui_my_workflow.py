"""In a real ComfyUI and its page: checkpoints of a training are queued in the graph that is open, and what it saves comes into the gallery,
also when the page is closed meanwhile. Needs COMFYUI_PATH, Chromium and its driver."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from PIL import Image

from .test_comfyui import ROOT, Server, running
from .test_comfyui_background import until
from .test_trainings_in_comfyui import picture
from .test_workflow_samples import lora

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(900)]
SECONDS = 120
# stands in for all that makes a picture of a model with a LoRA: one that follows from the file
NODE = """
import hashlib, folder_paths, torch

class Picture:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "draw", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"lora_name": (folder_paths.get_filename_list("loras"),)}}

    def draw(self, lora_name):
        with open(folder_paths.get_full_path_or_raise("loras", lora_name), "rb") as file:
            data = file.read()
        if b'"ss_steps": "6"' in data:
            raise ValueError("this LoRA is broken")
        colours = torch.tensor(list(hashlib.sha256(data).digest()[:12])).reshape(1, 2, 2, 3) / 255
        return (colours.repeat_interleave(32, 1).repeat_interleave(32, 2),)

NODE_CLASS_MAPPINGS = {"TestPicture": Picture}
"""
PROMPT = {
    "1": {"class_type": "TestPicture", "inputs": {"lora_name": "before.safetensors"}, "_meta": {"title": "Picture"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "mine"}, "_meta": {"title": "Save"}},
}
BUTTON = "[...document.querySelectorAll('.mt-detail button, .mt-flow button')].find(one => one.innerText.trim() === '{}')"


@pytest.fixture
def server(comfyui_path: Path, comfyui_python: Path, tmp_path: Path, part: Any) -> Iterator[Server]:
    """A ComfyUI whose home has a training that has ended, with three checkpoints."""
    base = tmp_path / "base"
    home, run = base / "our home", base / "our home" / "runs" / "cat-1"
    for folder in (run, base / "custom_nodes" / "pictures", base / "models" / "loras"):
        folder.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}))
    (base / "custom_nodes" / "pictures" / "__init__.py").write_text(NODE)
    (base / "custom_nodes" / "pack").symlink_to(ROOT, target_is_directory=True)
    lora(base / "models" / "loras" / "before.safetensors", 0)
    for step in (2, 4, 6):
        lora(run / f"cat-step{step:08d}.safetensors", step)
    folder = part("nodes.jobs.folder").JobFolder.create(home, "wan_train_network")
    training = {"name": "cat", "run": "cat-1", "endings": [""], "values": {}, "results": {}}
    folder.write_task({"tool": "wan_train_network", "training": training})
    folder.write_status("ended", outcome="finished")
    with running(comfyui_path, comfyui_python, base) as made:
        yield made


def test_checkpoints_in_the_open_graph_come_into_the_gallery(server: Server, browser: Browser) -> None:
    browser.resize(1500, 950)
    _open(browser, server)
    browser.run("await app.loadApiJson(args[0], 'tiny'); return 1;", PROMPT)
    browser.run(f"{BUTTON.format('Sample with my workflow…')}.click();")
    boxes = "document.querySelectorAll('.mt-flow .mt-storage input')"
    browser.wait(f"{boxes}.length === 3 && !{BUTTON.format('Queue')}.disabled ? 1 : 0", SECONDS)
    browser.run(f"{boxes}[1].click(); {boxes}[2].click();")
    picture(browser, "sample_with_my_workflow", ".mt-flow")
    browser.run(f"{BUTTON.format('Queue')}.click();")
    browser.wait("document.querySelector('.mt-flow')?.innerText.includes('3 of 3 queued') ? 1 : 0", SECONDS)
    browser.open("about:blank")

    ids = [job["id"] for job in asyncio.run(server.get("/musubi_tuner/jobs"))["jobs"]]

    def samples() -> Any:
        made = asyncio.run(server.get(f"/musubi_tuner/jobs/{ids[0]}"))["workflow_samples"]
        return len(made) == 3 and all(one["state"] != "queued" for one in made) and {one["step"]: one for one in made}

    made = until(samples)
    assert {step: (one["state"], one["text"], len(one["files"])) for step, one in made.items()} == {
        6: ("failed", "TestPicture: this LoRA is broken", 0), 4: ("finished", "", 1), 2: ("finished", "", 1),
    }  # fmt: skip
    taken = sorted((server.home / "runs" / "cat-1" / "workflow_samples").glob("*.png"))
    pictures = [Image.open(path) for path in taken]
    assert len({picture.tobytes() for picture in pictures}) == 2, "each checkpoint has its own"
    names = [str(Path("musubi_tuner", f"cat-step{step:08d}.safetensors")) for step in (4, 2)]
    assert sorted(json.loads(one.info["prompt"])["1"]["inputs"]["lora_name"] for one in pictures) == sorted(names)
    widgets = [json.loads(one.info["workflow"])["nodes"] for one in pictures]
    assert sorted(next(node["widgets_values"][0] for node in nodes if node["type"] == "TestPicture") for nodes in widgets) == sorted(names)
    output = server.home.parent / "output"
    assert sorted(path.stat().st_ino for path in output.glob("mine_*.png")) == sorted(path.stat().st_ino for path in taken)

    _open(browser, server)
    browser.wait("document.querySelectorAll('.mt-gallery tbody tr').length === 3 ? 1 : 0", SECONDS)
    label = "document.querySelectorAll('.mt-sample')[0].getAttribute('aria-label')"
    assert browser.run(f"return {label};").startswith("step 4 · ")
    loaded = "[...document.querySelectorAll('.mt-sample img')].filter(one => one.complete && one.naturalWidth === 64).length"
    browser.wait(f"{loaded} === 2 ? 1 : 0", SECONDS)
    assert browser.run("return document.querySelector('.mt-gallery .mt-bad').textContent;") == "TestPicture: this LoRA is broken"


def _open(browser: Browser, server: Server) -> None:
    """The page, with the training in the tab."""
    browser.open(server.url)
    browser.wait(
        "window.LiteGraph?.registered_node_types?.TestPicture && window.app?.extensionManager?.workflow?.activeWorkflow ? 1 : 0", SECONDS
    )
    browser.press("Escape")
    browser.run("await app.extensionManager.command.execute('Workspace.ToggleSidebarTab.musubi-tuner-trainings'); return 1;")
    browser.wait("document.querySelector('.mt-open') ? 1 : 0", SECONDS)
    browser.run("document.querySelector('.mt-open').click();")
    browser.wait(f"{BUTTON.format('Sample with my workflow…')} ? 1 : 0", SECONDS)
