"""Pickers for model files. A wrong file is recognised by its keys and refused by name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.weights.recognise import expect
from . import content
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .widgets import folder

MODELS = "MUSUBITUNER_MODELS"
_WAN = cards()["wan"]


class WanModelPaths(Node):
    spec = NodeSpec(
        id="MusubiTuner_WanModelPaths",
        display_name="Wan Model Paths",
        category="MusubiTuner/Models",
        description="Choose the files of a Wan2.1 model from ComfyUI's model folders. A file of another model is recognised and refused.",
        inputs=(
            Input(
                "task",
                "COMBO",
                "Which Wan model the transformer file is: text-to-video with 14 or 1.3 billion weights, or text-to-image. "
                "Tiny demo models go with any of them.",
                default="t2v-1.3B",
                choices=tuple(task.name for task in _WAN.tasks if task.supported),
            ),
            folder(
                "dit",
                _WAN.model_folders["dit"],
                "The transformer, for example wan2.1_t2v_1.3B_bf16.safetensors (in models/diffusion_models).",
            ),
            folder("vae", _WAN.model_folders["vae"], "The Wan VAE, for example wan_2.1_vae.safetensors (in models/vae)."),
            folder(
                "t5",
                _WAN.model_folders["t5"],
                "The umt5-xxl text encoder, for example umt5_xxl_fp16.safetensors (in models/text_encoders).",
            ),
        ),
        outputs=(Output("models", MODELS, "The files, for caching, training and generating"),),
    )

    def fingerprint(self, host: Host, **constants: Any) -> str:
        paths = [host.model_path(_WAN.model_folders[part], constants[part]) for part in ("dit", "vae", "t5") if part in constants]
        return content.of_files(paths)

    async def run(self, host: Host, **inputs: Any) -> Result:
        paths = {part: host.model_path(_WAN.model_folders[part], inputs[part]) for part in ("dit", "vae", "t5")}
        kinds = await asyncio.to_thread(_recognise, paths)
        value = {"architecture": _WAN.id, "task": inputs["task"], **{part: str(path) for part, path in paths.items()}}
        return Result((value,), text="; ".join(kinds))


def _recognise(paths: dict[str, Path]) -> list[str]:
    expected = {"dit": "wan_transformer", "vae": "wan_vae", "t5": "umt5"}
    return [str(expect(path, expected[part], part)) for part, path in paths.items()]


def model_stamps(models: dict[str, Any]) -> list[Any]:
    """What tells one set of model files from another: names, sizes and times."""
    return [models["architecture"], models["task"], *(content.stamp(Path(models[part])) for part in ("dit", "vae", "t5"))]
