"""`--demo`: any workflow on tiny models and clips, in seconds and without a GPU, to see that it runs from end to end.

Model files, folders, sizes and lengths are replaced by small ones; everything else stays as the workflow has it. What is missing of the
models and clips is made first. LoRA tools want a LoRA that a training made before.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import default_card
from ..backend.musubi_backend.architectures.templates import templates_of
from ..backend.musubi_backend.demo.models import KINDS, kind_for
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..nodes.checkpoints import trainings
from ..nodes.jobs.config import DEMO_MODELS
from ..nodes.jobs.follow import run_tool
from ..nodes.models import ModelPaths
from ..nodes.widgets import NONE
from .terminal import TerminalHost
from .workflow import Step

_DATASET = Path("demo", "dataset")
_SMALL: dict[str, Any] = {
    "width": 64,
    "height": 64,
    "target_frames": "9",
    "video_length": 5,
    "video_seconds": 0.3,
    "infer_steps": 2,
    "latent_window_size": 2,
    "max_train_steps": 2,
    "save_every_n_steps": 1,
    "network_dim": 4,
    "network_alpha": 4.0,
    "sample_width": 64,
    "sample_height": 64,
    "sample_frames": 9,
    "sample_steps": 2,
    "max_size": 112,
    "max_new_tokens": 16,
}
_FIRST = next(iter(KINDS))
_TRAINING = f"{templates_of(default_card())[0].name}_lora_training"
_UNCAPTIONED = Path("demo", "uncaptioned")
_TOOLS_OF_ONE_LORA = {"LoRAFormatConverter": "lora", "LoRAMerger": "lora_1"}
_TOOLS_OF_CHECKPOINTS = ("LoRAPostHocEMA", "CompareCheckpoints")
_LORA = re.compile(r"(high_)?lora_\d+")


async def prepare(steps: Mapping[str, Step], host: TerminalHost) -> None:
    """Make what the workflow needs of the demo models and clips, and put it in place of the workflow's own."""
    for kind in sorted({kind for step in steps.values() if (kind := _kind_needed(step))}):
        await _make(host, "demo_models", {"output": str(host.home / DEMO_MODELS), "kind": kind})
    await _make(host, "demo_dataset", {"output": str(host.home / _DATASET)})
    for step in steps.values():
        _make_small(step)
        _name_files(step, host)


def kind_of(step: Step) -> str:
    """Which demo models stand in for those of a Model Paths node. UserError where there are none."""
    assert isinstance(step.node, ModelPaths)
    card = step.node.card
    return kind_for(card, card.task(step.node.task_of(step.constants)))


def _kind_needed(step: Step) -> str | None:
    """Which demo models a step needs, if any."""
    if isinstance(step.node, ModelPaths):
        return kind_of(step)
    return {"CaptionImages": "qwen_vl", "LoRAMerger": _FIRST}.get(_name(step))


def _name(step: Step) -> str:
    """A node's name without the pack's."""
    return step.node.spec.id.split("_", 1)[1]


async def _make(host: TerminalHost, tool: str, values: dict[str, Any]) -> None:
    await run_tool(host.named(tool), tool, to_argv(tool, values), foreign=False, gpu=False)


def _uncaptioned(home: Path) -> str:
    """The demo clips once more, without their captions."""
    (home / _UNCAPTIONED).mkdir(exist_ok=True)
    for clip in (home / _DATASET).glob("*.mp4"):
        shutil.copy(clip, home / _UNCAPTIONED)
    return _UNCAPTIONED.as_posix()


def _make_small(step: Step) -> None:
    for entry in step.node.spec.inputs:
        if entry.name in _SMALL and entry.is_widget and entry.name not in step.links:
            step.constants[entry.name] = _SMALL[entry.name]
    if step.constants.get("sample_prompts", "").strip():
        step.constants["sample_every_n_steps"] = 2


def _name_files(step: Step, host: TerminalHost) -> None:
    """Demo files in place of the workflow's. LoRAs that are not there are left out."""
    if isinstance(step.node, ModelPaths):
        step.constants |= {part: demo.file for part, demo in KINDS[kind_of(step)].items()}
    name = _name(step)
    if name == "CaptionImages":
        step.constants |= {"path": _uncaptioned(host.home), "model": KINDS["qwen_vl"]["qwen_vl"].file}
    if name == "LoRAMerger" and step.constants.get("model", NONE) != NONE:
        step.constants["model"] = KINDS[_FIRST]["dit"].file
    if name == "DatasetConfig" and "path" in step.links:  # from the captions of clips
        step.constants["source"] = "video folder"
    elif name == "DatasetConfig":
        step.constants["path"] = _DATASET.as_posix()
        if step.constants.get("control_directory"):
            step.constants["control_directory"] = _DATASET.as_posix()
    if name == "VideoInput":
        step.constants["path"] = next((host.home / _DATASET).glob("*.mp4")).relative_to(host.home).as_posix()
    there = host.model_names("loras")
    if name in _TOOLS_OF_ONE_LORA and step.constants[_TOOLS_OF_ONE_LORA[name]] not in there:
        raise UserError(f"--demo: {step.title} needs a LoRA: run workflows/{_TRAINING}.json --demo first")
    if name in _TOOLS_OF_CHECKPOINTS and "job" not in step.links and step.constants["checkpoints"] not in trainings(host.home):
        raise UserError(f"--demo: {step.title} needs a training: run workflows/{_TRAINING}.json --demo first")
    for widget, value in list(step.constants.items()):
        if _LORA.fullmatch(widget) and value != NONE and str(value).replace("\\", "/") not in there:
            host.screen.line(f"{step.title}  {value} is not there; continuing without it")
            step.constants[widget] = NONE
