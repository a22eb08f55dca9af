"""Captions for a folder of images and clips, written by Qwen2.5-VL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import CAPTION
from ..backend.musubi_backend.options.registry import options_for
from ..backend.musubi_backend.options.tables.captioning import DEFAULT_PROMPT
from ..backend.musubi_backend.weights.recognise import expect
from .jobs import guard
from .jobs.follow import run_tool
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import folder, settings, widget

_MODELS = "text_encoders"


class CaptionImages(Node):
    spec = NodeSpec(
        id="MusubiTuner_CaptionImages",
        display_name="Caption Images",
        category="MusubiTuner/Dataset",
        description="Let Qwen2.5-VL describe the images and clips of a folder, for training. Captions that exist are kept, so it continues "
        "where it was stopped. Look them over afterwards: Dataset Viewer shows and edits them.",
        inputs=(
            Input(
                "path",
                "STRING",
                "The folder. Relative paths start in ComfyUI's input folder, or else in this pack's home folder. It must lie in one of "
                "ComfyUI's folders or one allowed in Settings, MusubiTuner.",
                default="",
            ),
            folder(
                "model",
                _MODELS,
                "Qwen2.5-VL, for example qwen_2.5_vl_7b_fp8_scaled.safetensors (in models/text_encoders). Another file is recognised and "
                "rejected.",
            ),
            widget(CAPTION, "output_format", "text"),
            Input(
                "file_name",
                "STRING",
                "With jsonl: name of the list, which is written into the folder. Clips get one of their own, called ..._videos.jsonl.",
                default="captions.jsonl",
            ),
            widget(CAPTION, "prompt", DEFAULT_PROMPT, off=DEFAULT_PROMPT, multiline=True),
            widget(CAPTION, "media"),
            widget(CAPTION, "max_size"),
            widget(CAPTION, "max_new_tokens"),
            widget(CAPTION, "batch_size"),
            widget(CAPTION, "fp8_vl"),
            widget(CAPTION, "overwrite"),
            widget(CAPTION, "video_frames"),
            widget(CAPTION, "caption_extension"),
        ),
        outputs=(
            Output("images", "STRING", "Path for Dataset Config: the folder, or the list of the images. Empty if there are none."),
            Output("videos", "STRING", "The same for clips: the folder, or the list of the clips. Empty if there are none."),
            Output("report", "STRING", "How many captions were written and kept, and what was left out and why"),
        ),
        is_output=True,
    )

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "path" in constants:
            yield from refused("path", _folder, host, constants["path"])
        if "file_name" in constants:
            yield from refused("file_name", _file_name, constants["file_name"])

    def fingerprint(self, host: Host, **constants: Any) -> str:
        model = content.stamp(host.model_path(_MODELS, constants["model"])) if "model" in constants else None
        files = content.of_folder(_folder(host, constants["path"])) if constants.get("path") else ""
        return content.digest(model, files)

    async def run(self, host: Host, **inputs: Any) -> Result:
        place, model = _folder(host, inputs["path"]), host.model_path(_MODELS, inputs["model"])
        await asyncio.to_thread(expect, model, "qwen_vl", "model")
        chosen = {"image_dir": str(place), "model_path": str(model), **_needed(settings(self.spec.inputs, inputs))}
        lists = _lists(place, inputs["file_name"])
        if inputs["output_format"] == "jsonl":
            chosen["output_file"] = str(lists[0])
        # musubi-tuner's tool knows neither clips nor continuing, and wants the internet: ours runs whatever engine is chosen
        job = await run_tool(host, CAPTION, to_argv(CAPTION, chosen), foreign=False, warns=False)
        report = _report(job.folder.log.read_text(encoding="utf-8", errors="replace"))
        if inputs["output_format"] == "text":
            return Result((str(place), str(place), report), text=report)
        found = [path for path in lists if path.is_file()]
        values = [str(path) if path in found else "" for path in lists]
        return Result((*values, report), text=report, files=tuple(found))


def _needed(chosen: dict[str, Any]) -> dict[str, Any]:
    """Without flags that musubi-tuner does not have and that change nothing: then the command line is one of its own."""
    options = options_for(CAPTION)
    return {name: value for name, value in chosen.items() if not options[name].own or value != options[name].default}


def _folder(host: Host, text: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "path", relative_to=(host.input_dir, host.home))
    if not path.is_dir():
        raise UserError(f"path: {path} is not a folder")
    return path


def _file_name(text: str) -> str:
    name = guard.plain_name(text, "file_name")
    if not name.endswith(".jsonl"):
        raise UserError(f"file_name: {name} must end in .jsonl")
    return name


def _lists(place: Path, name: str) -> tuple[Path, Path]:
    """The JSONL files of the images and of the clips."""
    images = place / _file_name(name)
    return images, images.with_name(f"{images.stem}_videos{images.suffix}")


def _report(log: str) -> str:
    """What the tool said at its end: its last line, and before it what was left out."""
    lines = [line for line in log.splitlines() if line.strip()]
    left_out = next((number for number, line in enumerate(lines) if " left out:" in line), len(lines) - 1)
    said = [line.split(":", 2)[-1] if line.startswith(("INFO:", "WARNING:")) else line for line in lines[left_out:]]
    return "\n".join([*said[-1:], *said[:-1]])
