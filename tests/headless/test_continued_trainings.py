"""The trainer node continues where a training is: with more steps, other samples, less memory; and keeps every LoRA it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def train(home: Path, *changes: str) -> str:
    """The quickstart up to its trainer, with settings "Node.widget=value" changed. Returns what was printed."""
    workflow = json.loads((ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
    path = home / "training.json"
    path.write_text(json.dumps(without_generating(workflow)), encoding="utf-8")
    settings = [word for change in changes for word in ("--set", change)]
    result = subprocess.run(
        [sys.executable, "-m", "headless", str(path), "--home", str(home), *settings],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def without_generating(workflow: dict[str, Any]) -> dict[str, Any]:
    """The nodes that lead to the trainer, alone."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {link[0]: link[1] for link in workflow["links"]}
    kept: set[int] = set()
    todo = [node["id"] for node in nodes.values() if node["type"].endswith("LoRATrainer")]
    while todo:
        number = todo.pop()
        kept.add(number)
        todo += [sources[entry["link"]] for entry in nodes[number].get("inputs", []) if entry.get("link") in sources]
    links = [link for link in workflow["links"] if link[1] in kept and link[3] in kept]
    for number in kept:
        for output in nodes[number].get("outputs", []):
            output["links"] = [link[0] for link in links if link[1] == number and link[0] in (output.get("links") or [])]
    return {**workflow, "nodes": [nodes[number] for number in sorted(kept)], "links": links, "groups": []}


def published(home: Path) -> set[str]:
    return {path.name for path in (home / "models/loras/musubi_tuner").glob("*.safetensors")}


@pytest.mark.slow
def test_more_steps_other_samples_and_less_memory_go_on_in_one_run(home: Path) -> None:
    kept = ("LoRATrainingConfig.save_state_on_train_end=true", "LoRATrainingConfig.save_every_n_steps=2")
    train(home, *kept, "LoRATrainingConfig.max_train_steps=4")
    first = published(home)
    said = train(home, *kept, "LoRATrainingConfig.max_train_steps=6", "LoRATrainingConfig.blocks_to_swap=1")
    assert "step 4" in said and "continuing from" in said
    assert len(list((home / "runs").iterdir())) == 1, "the same training"
    second = published(home) - first
    assert first == {"quickstart.safetensors"} and len(second) == 1, "the LoRA of four steps is still there"
    assert f"this one is {second.copy().pop()}" in said
    said = train(home, *kept, "LoRATrainingConfig.max_train_steps=4", "LoRATrainingConfig.training_comment=")
    assert "nothing that decides it changed" in said or "nothing changed" in said
    assert published(home) == first | second
    (home / "demo" / "quickstart" / "chessboard.txt").write_text("a new caption", encoding="utf-8")
    train(home, *kept, "LoRATrainingConfig.max_train_steps=4")
    assert len(list((home / "runs").iterdir())) == 2 and len(published(home)) == 3, "another caption is another training with its own file"
