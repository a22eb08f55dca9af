"""The trainer node continues where a training is: with more steps, other samples, less memory; and keeps every LoRA it made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def train(home: Path, workflow: Path, *changes: str) -> str:
    """Train, with settings "Node.widget=value" changed. Returns what was printed."""
    settings = [word for change in changes for word in ("--set", change)]
    result = subprocess.run(
        [sys.executable, "-m", "headless", str(workflow), "--home", str(home), *settings],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def published(home: Path) -> set[str]:
    return {path.name for path in (home / "models/loras/musubi_tuner").glob("*.safetensors")}


@pytest.mark.slow
def test_more_steps_other_samples_and_less_memory_go_on_in_one_run(home: Path, training_only: Path) -> None:
    kept = ("LoRATrainingConfig.save_state_on_train_end=true", "LoRATrainingConfig.save_every_n_steps=2")
    train(home, training_only, *kept, "LoRATrainingConfig.max_train_steps=4")
    first = published(home)
    said = train(home, training_only, *kept, "LoRATrainingConfig.max_train_steps=6", "LoRATrainingConfig.blocks_to_swap=1")
    assert "step 4" in said and "continuing from" in said
    assert len(list((home / "runs").iterdir())) == 1, "the same training"
    second = published(home) - first
    assert first == {"quickstart.safetensors"} and len(second) == 1, "the LoRA of four steps is still there"
    assert f"this one is {second.copy().pop()}" in said
    said = train(home, training_only, *kept, "LoRATrainingConfig.max_train_steps=4", "LoRATrainingConfig.training_comment=")
    assert "nothing that decides it changed" in said or "nothing changed" in said
    assert published(home) == first | second
