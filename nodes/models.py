"""Pickers for model files, one node per architecture. A wrong file is recognised by its keys and refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend import content
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card, Task
from ..backend.musubi_backend.architectures.precision import stored_precision
from ..backend.musubi_backend.architectures.wan.keys import PREFIXES, geometry_of
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.registry import options_for
from ..backend.musubi_backend.weights.recognise import PICKLE_SUFFIXES, expect
from ..backend.musubi_backend.weights.safetensors_file import read_model_header
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .split_models import all_files, first_file
from .widgets import NONE, folder

MODELS = "MUSUBITUNER_MODELS"
HIGH_NOISE = "dit_high_noise"
_NODE_NAMES = {"wan": "Wan", "hv": "HunyuanVideo", "fp": "FramePack"}
F1 = "FramePack-F1"


@dataclass(frozen=True)
class Part:
    """One file of a model; what its keys must say it is stands in the card. example: a file as ComfyUI's users have it; only_for and
    tasks: which tasks need it, in words and by name; empty for those that every task needs."""

    name: str
    what: str
    example: str
    only_for: str = ""
    tasks: tuple[str, ...] = ()


WITH_EXPERTS = tuple(task.name for task in cards()["wan"].tasks if task.boundary is not None)
_WITH_CLIP = tuple(task.name for task in cards()["wan"].tasks if task.image_encoder)

PARTS: dict[str, tuple[Part, ...]] = {
    "wan": (
        Part("dit", "The transformer; of Wan2.2 the low-noise one", "wan2.1_t2v_1.3B_bf16.safetensors"),
        Part("vae", "The Wan VAE", "wan_2.1_vae.safetensors"),
        Part("t5", "The umt5-xxl text encoder", "umt5_xxl_fp16.safetensors"),
        Part("clip", "The CLIP image encoder", "clip_vision_h.safetensors", "i2v and flf2v of Wan2.1, and FC", _WITH_CLIP),
        Part(
            HIGH_NOISE,
            "The high-noise transformer",
            "wan2.2_t2v_high_noise_14B_fp16.safetensors",
            "Wan2.2 (A14B); without it only one expert is trained or used",
            WITH_EXPERTS,
        ),
    ),
    "hv": (
        Part("dit", "The transformer", "hunyuan_video_t2v_720p_bf16.safetensors"),
        Part("vae", "The HunyuanVideo VAE", "hunyuan_video_vae_bf16.safetensors"),
        Part("text_encoder1", "The LLaVA-Llama3 text encoder", "llava_llama3_fp16.safetensors"),
        Part("text_encoder2", "The CLIP-L text encoder", "clip_l.safetensors"),
    ),
    "fp": (
        Part("dit", "The transformer", "FramePackI2V_HY_bf16.safetensors"),
        Part("vae", "The HunyuanVideo VAE", "hunyuan_video_vae_bf16.safetensors"),
        Part("text_encoder1", "The LLaVA-Llama3 text encoder", "llava_llama3_fp16.safetensors"),
        Part("text_encoder2", "The CLIP-L text encoder", "clip_l.safetensors"),
        Part("image_encoder", "The SigLIP image encoder", "sigclip_vision_patch14_384.safetensors"),
    ),
}


def folder_key(card: Card, part: str) -> str:
    """ComfyUI's folder for a part: all transformers lie in one."""
    return card.model_folders["dit" if part == HIGH_NOISE else part]


def _picker(card: Card, part: Part) -> Input:
    key = folder_key(card, part.name)
    where = f"{part.what}, for example {part.example} (in models/{key})."
    if not part.only_for:
        return folder(part.name, key, where)
    return folder(part.name, key, f"{where} Only for {part.only_for}.", empty=NONE, tasks=part.tasks)


def _spec(card: Card, extra: tuple[Input, ...] = ()) -> NodeSpec:
    name = _NODE_NAMES[card.id]
    return NodeSpec(
        id=f"MusubiTuner_{name}ModelPaths",
        display_name=f"{name} Model Paths",
        category="MusubiTuner/Models",
        description=f"Choose the files of a {name} model from ComfyUI's model folders. A file of another model is recognised and refused.",
        inputs=(*extra, *(_picker(card, part) for part in PARTS[card.id])),
        outputs=(Output("models", MODELS, "The files, for caching, training and generating"),),
    )


class ModelPaths(Node):
    """What all architectures' pickers do; a subclass names its card and adds what tells its models apart."""

    card: ClassVar[Card]

    def details(self, inputs: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
        """What the MODELS value holds beside files."""
        return {"task": self.card.tasks[0].name}

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return content.of_files(all_files(self._files(host, constants).values()))

    async def run(self, host: Host, **inputs: Any) -> Result:
        files = self._files(host, inputs)
        kinds = await asyncio.to_thread(_recognise, self.card, files)
        value = {
            "architecture": self.card.id,
            **self.details(inputs, files),
            **{part: str(first_file(path)) for part, path in files.items()},
        }
        return Result((value,), text="; ".join(kinds))

    def _files(self, host: Host, values: dict[str, Any]) -> dict[str, Path]:
        """The chosen files that the task uses, by part."""
        unused = self.unused_parts(values)
        names = {part.name: values.get(part.name, NONE) for part in PARTS[self.card.id]}
        return {
            part: host.model_path(folder_key(self.card, part), name)
            for part, name in names.items()
            if name and name != NONE and part not in unused
        }

    def unused_parts(self, values: dict[str, Any]) -> set[str]:
        """Parts that the chosen task does without."""
        return set()


class WanModelPaths(ModelPaths):
    card = cards()["wan"]
    spec = _spec(
        card,
        (
            Input(
                "task",
                "COMBO",
                "Which Wan model the transformer file is: t2v makes video from text, t2i pictures, i2v video from a first frame, flf2v "
                "from first and last frame, FC follows a control video; 14 or 1.3 billion weights, A14B is Wan2.2 with its two experts. "
                "Tiny demo models go with any task of their kind.",
                default="t2v-1.3B",
                choices=tuple(task.name for task in card.tasks),
            ),
        ),
    )

    def details(self, inputs: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
        return {"task": inputs["task"]}

    def unused_parts(self, values: dict[str, Any]) -> set[str]:
        if "task" not in values:  # it comes over a link and is not known yet
            return set()
        task = wan_task(values["task"])
        unused = set() if task.image_encoder else {"clip"}
        return unused if task.boundary is not None else unused | {HIGH_NOISE}

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        name = constants.get("task")
        files = self._files(host, constants) if name else {}
        transformers = {part: files[part] for part in ("dit", HIGH_NOISE) if part in files and _has_header(files[part])}
        wrong = [problem for part, path in transformers.items() for problem in refused(part, self._check_transformer, part, path, name)]
        yield from wrong or refused(HIGH_NOISE, _check_same_format, self.card, transformers.values())
        if name and constants.get("clip") == NONE and wan_task(name).image_encoder and wan_task(name).start_image:
            text = f"clip: {name} looks at the first frame through the CLIP image encoder; choose its file, clip_vision_h.safetensors"
            yield Problem("clip", text)

    def _check_transformer(self, part: str, path: Path, task: str) -> None:
        """UserError for a file of another kind or task. Reads the header."""
        expect(path, self.card.kinds[part][0], part)
        try:
            geometry_of(read_model_header(path, PREFIXES), task)
        except UserError as error:
            raise UserError(f"{part}: {path.name}: {str(error).replace('--task', 'task')}") from None


class HunyuanVideoModelPaths(ModelPaths):
    card = cards()["hv"]
    spec = _spec(card)

    def details(self, inputs: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
        """SkyReels' image-to-video models have more input channels, which musubi-tuner wants to be told."""
        channels = _input_channels(files["dit"])
        return {**super().details(inputs, files), **({"dit_in_channels": channels} if channels not in (None, 16) else {})}


class FramePackModelPaths(ModelPaths):
    card = cards()["fp"]
    spec = _spec(
        card,
        (
            Input(
                "variant",
                "COMBO",
                "Which FramePack the transformer file is: the original makes a video from its end backwards, F1 forwards.",
                default="FramePack",
                choices=("FramePack", F1),
            ),
        ),
    )

    def details(self, inputs: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
        return {**super().details(inputs, files), "f1": inputs["variant"] == F1}


def wan_task(name: str) -> Task:
    """The task as the card describes it."""
    return cards()["wan"].task(name)


def _has_header(path: Path) -> bool:
    """PyTorch files have none that could be read without loading them."""
    return path.suffix.lower() not in PICKLE_SUFFIXES


def _check_same_format(card: Card, transformers: Collection[Path]) -> None:
    """UserError for two experts of different dtypes. Reads headers."""
    formats = {path.name: stored_precision(path, card) for path in transformers}
    if len(set(formats.values())) > 1:
        named = " and ".join(f"{name} ({stored})" for name, stored in formats.items())
        raise UserError(f"{HIGH_NOISE}: {named} have different dtypes; choose two files of the same")


def _input_channels(dit: Path) -> int | None:
    """Input channels of a HunyuanVideo transformer by its file; None for a PyTorch file, whose shapes are not looked at."""
    if not _has_header(dit):
        return None
    tensors = read_model_header(dit).tensors
    return next((int(info.shape[1]) for name, info in tensors.items() if name.endswith("img_in.proj.weight")), None)


def _recognise(card: Card, paths: dict[str, Path]) -> list[str]:
    return [str(expect(path, card.kinds[part][0], part)) for part, path in paths.items()]


def model_values(card: Card, models: dict[str, Any], tool: str) -> dict[str, Any]:
    """option name -> value of what a MODELS value says, as far as `tool` takes it."""
    known = options_for(tool)
    names = ("task", "f1", "dit_in_channels", *(part.name for part in PARTS[card.id]))
    return {name: models[name] for name in names if name in known and name in models}


def check_architecture(card: Card, models: dict[str, Any], node: str) -> None:
    """UserError where models of another architecture are connected."""
    if models["architecture"] != card.id:
        other = cards()[models["architecture"]].title
        raise UserError(f"{node} makes {card.title} videos, but the models are {other}: use {other}'s own node, or connect other models")


def files_for(models: dict[str, Any], parts: tuple[str, ...], what: str) -> dict[str, str]:
    """The named files of a MODELS value. UserError names the one that was not chosen."""
    missing = [part for part in parts if part not in models]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}: choose it in {_NODE_NAMES[models['architecture']]} Model Paths")
    return {part: models[part] for part in parts}
