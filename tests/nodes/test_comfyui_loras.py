"""ComfyUI's own loader finds a place for every tensor of every LoRA that the shipped trainings make. Needs COMFYUI_PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
TRAININGS = sorted(path.stem for path in (ROOT / "workflows").glob("*_lora_training.json"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}))
    return home


def trained(place: Path, training: str) -> Path:
    """The LoRA of a shipped training, run on the demo models without samples."""
    workflow = ROOT / "workflows" / f"{training}.json"
    command = [sys.executable, "-m", "headless", str(workflow), "--demo", "--home", str(place), "--set", "SamplingConfig.sample_prompts="]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return max((place / "models" / "loras" / "musubi_tuner").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def make_demo_models(place: Path, kind: str) -> None:
    command = [sys.executable, "-m", "musubi_backend", "demo_models", "--kind", kind, "--output", str(place / "demo" / "models")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "backend")}, capture_output=True, check=True)


def loaded(comfyui_path: Path, comfyui_python: Path, model: Path, lora: Path) -> Any:
    """What ComfyUI's loader makes of a LoRA."""
    command = [str(comfyui_python), str(ROOT / "tests" / "nodes" / "comfy_lora_check.py"), str(model), str(lora)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=comfyui_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("training", TRAININGS)
def test_every_key_of_a_trained_lora_finds_its_layer(
    comfyui_path: Path, comfyui_python: Path, place: Path, part: Any, training: str
) -> None:
    lora = trained(place, training)
    steps = part("headless.workflow").read(ROOT / "workflows" / f"{training}.json").values()
    paths = next(step for step in steps if isinstance(step.node, part("nodes.models").ModelPaths))
    demo = part("headless.demo")
    kind = demo.kind_of(paths)
    # ComfyUI has no FramePack: its LoRA is named as HunyuanVideo's, whose demo model has the same sizes
    model = place / "demo" / "models" / demo.KINDS["hv" if kind == "fp" else kind]["dit"].file
    if not model.is_file():
        make_demo_models(place, "hv")
    found = loaded(comfyui_path, comfyui_python, model, lora)
    assert found["left"] == []
    assert found["misfits"] == []
    assert found["patches"] > 0
