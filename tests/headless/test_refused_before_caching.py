"""What the header of a model file or two nodes' settings show to be wrong is rejected before anything is cached."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.demo.models import KINDS
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(home: Path) -> Path:
    """The demo models once more with transformers in 16 bits, and one of another size."""
    folder = home / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    path = home / "demo" / "models" / KINDS["wan"]["dit"].file
    metadata = read_header(path).metadata
    for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16)):
        save_atomic({key: tensor.to(dtype) for key, tensor in load(path).items()}, folder / f"{name}.safetensors", metadata)
    sizes = {**json.loads(metadata["musubi_geometry"]), "in_dim": 36}
    save_atomic(load(path), folder / "other.safetensors", {"musubi_geometry": json.dumps(sizes)})
    return home


def run(place: Path, workflow: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "headless", str(workflow), "--home", str(place), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)


def cachings(place: Path) -> list[str]:
    jobs = place / "jobs"
    return [path.name for path in jobs.iterdir() if "cache" in path.name] if jobs.is_dir() else []


@pytest.mark.parametrize(("file", "precision"), [("half", "bf16"), ("brain", "fp16")])
def test_a_precision_that_contradicts_the_file(place: Path, training_only: Path, file: str, precision: str) -> None:
    settings = f"WanModelPaths.dit={file}.safetensors", f"LoRATrainingConfig.mixed_precision={precision}"
    result = run(place, training_only, *settings)
    assert result.returncode == 1
    own = {"half": "fp16", "brain": "bf16"}[file]
    assert f"in {own}, mixed precision must be auto, {own} or no, not {precision}" in result.stdout
    assert result.stdout.count("ERROR") == 1
    assert not cachings(place)


def test_a_transformer_of_another_task(place: Path) -> None:
    for settings in (["WanModelPaths.dit=other.safetensors"], ["WanModelPaths.task=i2v-A14B"]):
        result = run(place, ROOT / "workflows" / "quickstart.json", *settings)
        assert result.returncode == 2
        assert "in_dim" in result.stderr and "use task" in result.stderr
        assert not (place / "jobs").exists()


def test_two_experts_of_different_formats(place: Path) -> None:
    settings = ("task=t2v-A14B", "dit=half.safetensors", "dit_high_noise=brain.safetensors")
    result = run(place, ROOT / "workflows" / "quickstart.json", *(f"WanModelPaths.{setting}" for setting in settings))
    assert result.returncode == 2
    assert "half.safetensors (fp16) and brain.safetensors (bf16) have different dtypes" in result.stderr


def test_models_of_another_architecture(place: Path, training_only: Path, tmp_path: Path) -> None:
    """The trainer of one with the models of the other: known before the captions are cached for the wrong one."""
    workflow: dict[str, Any] = json.loads(training_only.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "MusubiTuner_WanLoRATrainer":
            node["type"] = "MusubiTuner_HunyuanVideoLoRATrainer"
            node["widgets_values"] = node["widgets_values"][:4]
            node["outputs"] = node["outputs"][:5]
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow), encoding="utf-8")
    result = run(place, path)
    assert result.returncode == 1
    assert "the models are Wan2.1" in result.stdout
    assert not cachings(place)
