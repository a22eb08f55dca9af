"""In a real ComfyUI and a real browser: a training, and behind it all that watches it; ComfyUI is killed then, and TensorBoard with it.
Needs COMFYUI_PATH, Chromium and its driver."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from browser import Browser

from .test_comfyui import id_of, quickstart, started
from .test_trainings_in_comfyui import READY, SECONDS

__all__ = ["quickstart"]
pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(1500)]
GENERATING = ("VideoOutput", "VideoComparison", "VideoInput", "WanVideoGenerator", "WanVideoGenerator")
_BEFORE_THE_EYES = """
const node = app.graph.nodes.find((one) => one.type === "MusubiTuner_TrainingMonitor");
app.canvas.ds.scale = 1;
app.canvas.ds.offset = [480 - node.pos[0], 90 - node.pos[1]];
app.canvas.setDirty(true, true);
"""
# of the monitor: the curve is above the report, is no line, and lies inside of the node
_CURVE = """
const node = app.graph.nodes.find((one) => one.type === "MusubiTuner_TrainingMonitor");
const shown = [node.musubiTraining.whole.querySelector("canvas"), node.musubiReport.whole];
const [curve, report] = shown.map((one) => one.getBoundingClientRect());
const { scale, offset } = app.canvas.ds;
const top = app.canvas.canvas.getBoundingClientRect().top + (node.pos[1] + offset[1]) * scale;
const frame = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect() ?? { top, bottom: top + node.size[1] * scale };
return [curve.bottom <= report.top + 1, curve.height > 40, curve.top >= frame.top && curve.bottom <= frame.bottom + 1];
"""
_SAYS = "(widget) => widget.name.includes('text-preview') && widget.value"
TINY = {"width": 32, "height": 32, "video_length": 5, "infer_steps": 1, "guidance_scale": 1.0, "cell_height": 64}


def test_what_watches_a_training_works_together_and_ends_with_comfyui(
    comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser, quickstart: Any
) -> None:
    prompt = quickstart(LoRATrainingConfig={"max_train_steps": 8, "save_every_n_steps": 2}, WanLoRATrainer={"output_name": "seen"})
    for name in GENERATING:
        del prompt[id_of(prompt, name)]
    trainer, models = id_of(prompt, "WanLoRATrainer"), id_of(prompt, "WanModelPaths")
    job = [trainer, 4]
    compared = {"models": [models, 0], "prompts": "a chessboard", "at_most": 2, "strengths": "1, 0.5", "job": job, **TINY}
    prompt |= {
        "200": {"class_type": "MusubiTuner_TrainingMonitor", "inputs": {"job": job, "until_end": True}},
        "201": {"class_type": "MusubiTuner_ResourceMonitor", "inputs": {"seconds": 0.5, "after": job}},
        "202": {"class_type": "MusubiTuner_TensorBoard", "inputs": {"job": job}},
        "203": {"class_type": "MusubiTuner_CompareCheckpoints", "inputs": compared},
        "204": {"class_type": "PreviewImage", "inputs": {"images": ["200", 0]}},
        "205": {"class_type": "PreviewImage", "inputs": {"images": ["203", 0]}},
        "206": {"class_type": "SaveVideo", "inputs": {"video": ["203", 1], "filename_prefix": "side", "format": "auto", "codec": "auto"}},
        "207": {"class_type": "LossGraphNode", "inputs": {"loss": ["200", 2], "filename_prefix": "loss"}},
    }
    for node in ("200", "201", "202", "203"):
        prompt[node]["inputs"] = {**_defaults(prompt[node]["class_type"]), **prompt[node]["inputs"]}
    base = tmp_path / "base"
    base.mkdir()
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        first = asyncio.run(server.queue(prompt, seconds=SECONDS))
        assert first.kind == "success", first.error
        assert first.trainings["200"] == first.trainings[trainer], "the monitor shows the training of the trainer"
        end = time.monotonic() + SECONDS
        while not (kept := asyncio.run(server.get("/history"))):  # which ComfyUI writes after it has told of the end
            assert time.monotonic() < end
            time.sleep(0.1)
        [history] = kept.values()
        outputs = history["outputs"]
        assert "loss" in outputs["200"]["musubi_report"][0]["text"] and outputs["200"]["musubi_job"]
        assert "system RAM" in outputs["201"]["musubi_report"][0]["text"]
        assert outputs["203"]["images"][0]["filename"] == "video.mp4" and outputs["204"]["images"] and outputs["205"]["images"]
        assert list((base / "output").glob("side*.mp4"))
        address = next(text for node, text in reversed(first.texts) if node == "202")
        [board] = [one for one in server.jobs() if "tensorboard" in one.cmdline()]
        with urllib.request.urlopen(f"{address}data/runs", timeout=60) as answer:  # noqa: S310
            assert len(json.loads(answer.read())) == 1
        detail = asyncio.run(server.get(f"/musubi_tuner/jobs/{outputs['200']['musubi_job'][0]['id']}"))
        assert {sample["step"] for sample in detail["samples"]} == {0, 2, 8} and len(detail["samples"]) == 5
        _look(browser, server.url, prompt, address, [int(node) for node in (trainer, "200", "201", "202", "203")])
        os.kill(server.process.pid, signal.SIGKILL)
        end = time.monotonic() + SECONDS
        while board.is_running() and board.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "TensorBoard goes on without ComfyUI"
            time.sleep(0.1)


def _look(browser: Browser, url: str, prompt: dict[str, Any], address: str, say: list[int]) -> None:
    """Queued again from a page of each renderer, where nearly all is as it was: the curve is on the monitor too, above its report, and the
    address can be clicked; there, and when the graph is opened again. say: the nodes whose line ComfyUI gives
    again with a kept result."""
    link, nodes = f"document.querySelector('a[href=\"{address}\"]') ? 1 : 0", "app.graph.nodes"
    for vue in (False, True):
        _open(browser, url, vue)
        browser.run("await app.loadApiJson(args[0], 'watch'); await app.queuePrompt(0); return 1;", prompt)
        browser.wait(link, SECONDS)
        browser.wait("document.querySelectorAll('.mt-node canvas').length === 3 ? 1 : 0", SECONDS)
        browser.wait(f"{nodes}.find((one) => one.type === 'MusubiTuner_TrainingMonitor').musubiReport ? 1 : 0", SECONDS)
        browser.wait(f"{json.dumps(say)}.every((id) => app.graph.getNodeById(id).widgets.some({_SAYS})) ? 1 : 0", SECONDS)
        browser.run(_BEFORE_THE_EYES)
        browser.wait(f"(() => {{ {_CURVE} }})().every(Boolean) ? 1 : 0", SECONDS)
        graph = browser.run("return app.graph.serialize();")
        browser.run("localStorage.clear(); sessionStorage.clear(); return 1;")
        _open(browser, url, vue)
        browser.run("await app.loadGraphData(args[0]); return 1;", graph)
        browser.wait(f"{link} && document.querySelectorAll('.mt-node canvas').length ? 1 : 0", SECONDS)


def _open(browser: Browser, url: str, vue: bool) -> None:
    browser.open(url)
    browser.wait(READY, SECONDS)
    browser.wait("app.extensionManager.workflow?.activeWorkflow ? 1 : 0", SECONDS)
    browser.run("await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', args[0]); return 1;", vue)


def _defaults(name: str) -> dict[str, Any]:
    nodes = sys.modules["pack_under_test.nodes.catalog"].BY_NAME
    spec = nodes[name.removeprefix("MusubiTuner_")].spec
    return {entry.name: entry.default for entry in spec.inputs if entry.is_widget and entry.default is not None}
