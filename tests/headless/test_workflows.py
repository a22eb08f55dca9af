"""Every workflow that is shipped runs from end to end on the demo models: trainings first, then the videos made with their LoRAs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED_BY = {"batch_prompts": "wan_lora_training"}  # the others are called as their training
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
TRAININGS = [name for name in WORKFLOWS if name.endswith("_lora_training")]
GENERATIONS = [name for name in WORKFLOWS if name.endswith("_generate_with_lora") or name in NEEDED_BY]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, backend_python: str) -> Path:
    home = tmp_path_factory.mktemp("workflows")
    (home / "config.json").write_text(json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []}))
    return home


def run(place: Path, name: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "headless", str(ROOT / "workflows" / f"{name}.json"), "--demo", "--home", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def _jobs(place: Path) -> set[str]:
    """The jobs so far, without those that look whether the demo data is there."""
    return {path.name for path in (place / "jobs").iterdir() if "-demo_" not in path.name and "video_convert" not in path.name}


@pytest.mark.slow
def test_clips_are_captioned_as_a_demo_too(place: Path) -> None:
    assert "4 captions written, 0 kept" in run(place, "captioning")


def test_tools_say_which_lora_a_demo_needs(tmp_path: Path, backend_python: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []}))
    assert "run workflows/wan_lora_training.json --demo first" in run(tmp_path, "lora_conversion", code=2)


def _average_once(place: Path) -> None:
    """A second run does again only what is gone: the saved video."""
    said = run(place, "lora_post_hoc_ema")
    assert "checkpoints: my_lora-step00000001.safetensors to my_lora.safetensors" in said
    video = place / "output" / "musubi_tuner" / "my_lora_ema_00001.mp4"
    assert (place / "models" / "loras" / "musubi_tuner" / "my_lora_ema.safetensors").is_file() and video.is_file()
    assert list((place / "temp" / "musubi_tuner").glob("my_lora_ema_ema_*.png"))
    assert next((place / "runs").glob("my_lora-*/loss.svg")).is_file()
    jobs = _jobs(place)
    video.unlink()
    assert run(place, "lora_post_hoc_ema").count("nothing changed") == 3
    assert video.is_file()
    assert _jobs(place) == jobs


def widget(part: Any, name: str, node: str, widget_name: str) -> Any:
    """A widget's value in a shipped workflow."""
    steps = part("headless.workflow").read(ROOT / "workflows" / f"{name}.json").values()
    return next(step.constants[widget_name] for step in steps if step.node.spec.id.endswith(node))


def test_every_workflow_is_run_somewhere() -> None:
    others = "lora_post_hoc_ema train_a_lora_start_here" + "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)
    )
    assert [name for name in WORKFLOWS if name not in (*TRAININGS, *GENERATIONS) and name not in others] == []
    assert {name.removesuffix("_generate_with_lora") for name in GENERATIONS} - set(NEEDED_BY) == {
        name.removesuffix("_lora_training") for name in TRAININGS
    }


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_and_what_uses_its_lora(place: Path, part: Any, training: str) -> None:
    run(place, training)
    lora = place / "models" / "loras" / "musubi_tuner" / f"{widget(part, training, 'LoRATrainer', 'output_name')}.safetensors"
    assert lora.is_file()
    samples = next((place / "runs").glob(f"{lora.stem}-*")) / "sample"
    assert list(samples.glob("*.mp4")), "samples were made on the way"
    generation = training.replace("_lora_training", "_generate_with_lora")
    for name in [generation, *(name for name, needed in NEEDED_BY.items() if needed == training)]:
        said = run(place, name)
        assert "continuing without it" not in said, "the LoRA is found by the name that the workflow has"
        made = list((place / "output" / "musubi_tuner").glob("batch_*" if name in NEEDED_BY else f"{lora.stem}_*"))
        assert made and all(path.stat().st_size > 500 for path in made)
    if training == "wan_lora_training":
        _average_once(place)
        assert "continuing from" not in run(place, "train_a_lora_start_here"), "the same training, which is there already"
        assert "converted: 20 layers" in run(place, "lora_conversion")
        assert "20 of 69 tensors changed" in run(place, "lora_merging")
