"""The example workflows of the LoRA tools, run on a terminal on tiny files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_examples import layers_of, write_layout
from musubi_backend.weights.safetensors_file import load, save_atomic

ROOT = Path(__file__).resolve().parents[2]


def run(home: Path, workflow: str, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "headless", str(ROOT / "workflows" / f"{workflow}.json"), "--home", str(home), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture
def my_loras(home: Path) -> Path:
    """The LoRAs that the workflows name, in two layouts; returns their folder."""
    folder = home / "models" / "loras" / "musubi_tuner"
    folder.mkdir(parents=True)
    for name, layout in (("my_lora", "musubi"), ("my_style", "diffusers")):
        write_layout(folder / f"{name}.safetensors", layout, "wan", layers_of("wan"))
    return folder


def test_conversion(home, my_loras):
    done = run(home, "lora_conversion")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "detected: musubi-tuner; Wan; LoRA" in done.stdout
    assert all(name.startswith("diffusion_model.blocks.") for name in load(my_loras / "my_lora_comfy.safetensors"))


def test_merging_several(home, my_loras):
    models = home / "models" / "diffusion_models"
    models.mkdir(parents=True)
    save_atomic({f"{path}.weight": torch.zeros_like(d) for path, d in layers_of("wan").items()}, models / "tiny.safetensors")
    done = run(home, "lora_merging", "LoRAMerger.model=tiny.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    merged = load(models / "my_merged_model.safetensors")
    assert all(torch.allclose(merged[f"{path}.weight"], 1.3 * delta, atol=1e-4) for path, delta in layers_of("wan").items())
