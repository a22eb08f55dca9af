"""The generator node: text to video with any number of LoRAs, model loading included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import content
from .cache import DEVICES
from .jobs.config import engine_stamp
from .jobs.follow import run_tool
from .models import MODELS
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .widgets import NONE, UNSET, folder, settings, widget

_TOOL = tool_names(cards()["wan"])[GENERATE]
_LORAS = 4
_SUFFIXES = (".mp4", ".png")


def _lora_inputs() -> tuple[Input, ...]:
    entries: list[Input] = []
    for number in range(1, _LORAS + 1):
        later = number > 2
        entries.append(
            folder(
                f"lora_{number}",
                "loras",
                "A LoRA to apply; connect the trainer's lora_name to use what it trained.",
                empty=NONE,
                advanced=later,
            )
        )
        entries.append(
            Input(
                f"multiplier_{number}",
                "FLOAT",
                f"Strength of lora_{number}.",
                default=1.0,
                minimum=-10.0,
                maximum=10.0,
                step=0.05,
                advanced=later,
            )
        )
    return tuple(entries)


class WanVideoGenerator(Node):
    spec = NodeSpec(
        id="MusubiTuner_WanVideoGenerator",
        display_name="Wan Video Generator",
        category="MusubiTuner/Generate",
        description="Generate a video (or with one frame a picture) from text, with LoRAs. The models are loaded in the backend, "
        "not in ComfyUI.",
        inputs=(
            Input("models", MODELS, "From Wan Model Paths"),
            widget(_TOOL, "prompt", multiline=True),
            widget(_TOOL, "negative_prompt", multiline=True),
            Input("width", "INT", "Width of the video; multiples of 16.", default=832, minimum=16, maximum=8192, step=16),
            Input("height", "INT", "Height of the video; multiples of 16.", default=480, minimum=16, maximum=8192, step=16),
            widget(_TOOL, "video_length", 81, step=4),
            widget(_TOOL, "fps"),
            widget(_TOOL, "infer_steps", off=0),
            widget(_TOOL, "guidance_scale", off=-1.0),
            widget(_TOOL, "flow_shift", off=0.0),
            widget(_TOOL, "seed", 0, maximum=2**32 - 1),
            widget(_TOOL, "sample_solver"),
            *_lora_inputs(),
            widget(_TOOL, "cfg_skip_mode"),
            widget(_TOOL, "cfg_apply_ratio", off=-1.0),
            widget(_TOOL, "slg_layers"),
            widget(_TOOL, "slg_mode"),
            widget(_TOOL, "slg_scale"),
            widget(_TOOL, "slg_start"),
            widget(_TOOL, "slg_end"),
            widget(_TOOL, "cpu_noise"),
            widget(_TOOL, "trim_tail_frames"),
            widget(_TOOL, "attn_mode", "sdpa", choices=("sdpa", "torch", "flash", "flash3", "xformers"), advanced=True),
            widget(_TOOL, "vae_cache_cpu"),
            widget(_TOOL, "device", kind="COMBO", choices=DEVICES, default=UNSET, off=UNSET, advanced=True),
        ),
        outputs=(
            Output("video", "VIDEO", "The video"),
            Output("frames", "IMAGE", "Its frames"),
            Output("path", "STRING", "Its file, in the temporary folder until Video Output saves it"),
        ),
        is_output=True,
    )

    def validate(self, host: Host, **constants: Any) -> str | None:
        for side in ("width", "height"):
            if constants.get(side, 16) % 16:
                return f"{side}: {constants[side]} is not a multiple of 16; nearest is {round(constants[side] / 16) * 16}"
        length = constants.get("video_length", 1)
        if (length - 1) % 4:
            return f"video_length: {length} is not 4n+1; nearest is {round((length - 1) / 4) * 4 + 1}"
        layers = constants.get("slg_layers", "")
        if "prompt" in constants and not constants["prompt"].strip():
            return "prompt is empty: say what the video shows"
        if layers and not all(part.strip().isdigit() for part in layers.split(",")):
            return f"slg_layers: {layers!r} is not a list of block numbers such as 9,10"
        return None

    def fingerprint(self, host: Host, **constants: Any) -> str:
        names = [constants.get(f"lora_{number}", NONE) for number in range(1, _LORAS + 1)]
        loras = [host.model_path("loras", name) for name in names if name != NONE]
        return f"{engine_stamp(host.home)} {content.of_files(loras)}"

    async def run(self, host: Host, **inputs: Any) -> Result:
        card = cards()[inputs["models"]["architecture"]]
        tool = tool_names(card)[GENERATE]
        target = host.temp_dir / "musubi_tuner"
        target.mkdir(parents=True, exist_ok=True)
        values = generation_values(host, card, self.spec, inputs)
        folder_of_run = _fresh_folder(target)
        job = await run_tool(host, tool, to_argv(tool, {**values, "save_path": str(folder_of_run)}))
        made = sorted(path for path in folder_of_run.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not made:
            raise UserError(f"{tool} wrote no video. The whole log: {job.folder.log}")
        path = made[0]
        return Result((host.video(path), host.frames(path), str(path)), text=str(path), shown=(path,), files=(path,))


def generation_values(host: Host, card: Card, spec: NodeSpec, inputs: dict[str, Any]) -> dict[str, Any]:
    """option name -> value of a generation, without where it writes."""
    models = inputs["models"]
    values = {
        "task": models["task"],
        **{part: models[part] for part in ("dit", "vae", "t5")},
        "video_size": [inputs["height"], inputs["width"]],
        **settings(spec.inputs, inputs),
    }
    chosen = [(inputs[f"lora_{number}"], inputs[f"multiplier_{number}"]) for number in range(1, _LORAS + 1)]
    chosen = [(name, multiplier) for name, multiplier in chosen if name and name != NONE]
    if chosen:
        values["lora_weight"] = [str(host.model_path("loras", str(name))) for name, _ in chosen]
        values["lora_multiplier"] = [1.0 if multiplier is None else multiplier for _, multiplier in chosen]
    return values


def _fresh_folder(parent: Path) -> Path:
    """A new numbered folder: ComfyUI keeps showing old results, so none is ever overwritten."""
    number = 1
    while True:
        path = parent / f"video_{number:05d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
