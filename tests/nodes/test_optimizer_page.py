"""Optimizer Config in a real ComfyUI page: the arguments of the chosen optimizer, the drawn learning rate, and the same after a reload.

Needs COMFYUI_PATH, and Chromium with its driver on the PATH.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser

from .test_comfyui import started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]
MAKE = """
const make = (type) => { const node = window.LiteGraph.createNode(type); window.app.graph.add(node); return node; };
const [optimizer, config, trainer] = ["OptimizerConfig", "LoRATrainingConfig", "WanLoRATrainer"].map((name) => make("MusubiTuner_" + name));
config.widgets.find((widget) => widget.name === "max_train_steps").value = 321;
for (const [node, input] of [[optimizer, "optimizer"], [config, "lora_config"]])
  node.connect(0, trainer, trainer.inputs.findIndex((one) => one.name === input));
"""
FIND = "window.app.graph.nodes.find((node) => node.comfyClass === 'MusubiTuner_OptimizerConfig')"
SET = f"""
const node = {FIND}, widget = node.widgets.find((one) => one.name === args[0]);
widget.value = args[1];
widget.callback?.(args[1]);
"""
SHOWN = f"{FIND}.widgets.filter((one) => one.name.startsWith('musubi_') && one.label).map((one) => one.label)"
PICTURE = f"{FIND}?.musubiOptimizer?.picture.words.textContent"


def test_optimizers_show_their_arguments_and_how_their_rate_goes(
    comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        browser.open(server.url)
        ready = "window.app?.graph && window.LiteGraph?.registered_node_types?.MusubiTuner_OptimizerConfig ? 1 : 0"
        browser.wait(ready, 200)
        browser.run(f"window.app.graph.clear(); {MAKE} return 1;")
        browser.wait(f"{PICTURE}?.includes('321 steps')")
        for name, value in (
            ("optimizer_type", "HinaAdamW"), ("lr_scheduler", "cosine"), ("optimizer_preset", "HinaAdamW: SD"), ("musubi_alora_eta", "2"),
        ):  # fmt: skip
            browser.run(f"{SET} return 1;", name, value)
        browser.wait(f"{PICTURE}?.includes('8.00e-4')")
        shown = browser.run(f"return {SHOWN};")
        assert {"alora_ratio", "use_spd"} <= set(shown) and "amsgrad" not in shown
        saved = browser.run("return window.app.graph.serialize();")
        (values,) = [node["widgets_values"] for node in saved["nodes"] if node["type"] == "MusubiTuner_OptimizerConfig"]
        assert [values[0], values[1], values[9], values[10]] == ["HinaAdamW", 8e-4, "alora_eta=2", "HinaAdamW: SD"]
        assert not [value for value in values[11:] if value is not None], "what the page adds is not saved"
        browser.run("await window.app.loadGraphData(args[0]); return 1;", saved)
        browser.wait(f"{PICTURE}?.includes('321 steps')")
        assert browser.run(f"return {SHOWN};") == shown
        browser.run(f"{SET} return 1;", "optimizer_type", "adamw")
        decay = f"return {FIND}.widgets.find((one) => one.name === 'musubi_weight_decay').value;"
        assert browser.run(decay) == "0.01", "its own, not that of the optimizer before"
        browser.run(f"{SET} return 1;", "optimizer_type", "HinaAdamW")
        eta = f"{FIND}.widgets.find((one) => one.name === 'musubi_alora_eta').value"
        assert browser.run(f"return {eta};") == "2"
        browser.run(f"{SET} return 1;", "lr_scheduler", "warmup_stable_decay")
        browser.run(f"{SET} return 1;", "optimizer_args", "no_such=1")
        browser.wait(f"{PICTURE}?.includes('no such argument')")
