"""What Wan's nodes show and check."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...weights.safetensors_file import read_model_header
from ..widgets import CONTROL_IMAGES, CONTROL_MASKS, CONTROL_VIDEO, END, START, FamilyNodes, Own, Shared, Size, Widget
from .card import CARD
from .geometry import PREFIXES, geometry_of

_EXPERTS = CARD.expert_tasks
_WITH_IMAGE = tuple(task.name for task in CARD.tasks if task.in_dim > CARD.latent_channels)
_ONE_FRAME = tuple(task.name for task in CARD.tasks if task.start_image and not task.control)
_CONTROL = tuple(task.name for task in CARD.tasks if task.control)

_SOURCES = (
    replace(START, tasks=_WITH_IMAGE),
    replace(END, tasks=_WITH_IMAGE),
    replace(CONTROL_VIDEO, tasks=_CONTROL),
    replace(CONTROL_IMAGES, tasks=_ONE_FRAME),
    replace(CONTROL_MASKS, tasks=_ONE_FRAME),
)


def _check_transformer(path: Path, task: str) -> None:
    geometry_of(read_model_header(path, PREFIXES), task)


def _problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    layers = values.get("slg_layers", "")
    if layers and not all(part.strip().isdigit() for part in layers.split(",")):
        yield "slg_layers", f"slg_layers: {layers!r} is not a list of block numbers such as 9,10"


def _check(models: Mapping[str, Any], inputs: Mapping[str, Any], have: Collection[str]) -> None:
    """UserError where the images are not what the task takes. One frame needs control images only."""
    task = CARD.task(models["task"])
    takes_one_frame = task.name in _ONE_FRAME
    one_frame = bool(inputs["one_frame"]) and takes_one_frame
    controls = {CONTROL_IMAGES.option, CONTROL_MASKS.option}
    of_video = ((START, task.start_image), (END, task.last_frame), (CONTROL_VIDEO, task.control))
    needed = {CONTROL_IMAGES.option} if one_frame else {source.option for source, wanted in of_video if wanted}
    taken = {source.option for source in _SOURCES if task.name in source.tasks} - (set() if one_frame else controls)
    words = {source.option: source.socket for source in _SOURCES}
    missing = [words[option] for option in sorted(needed - set(have))]
    if missing:
        raise UserError(f"task {task.name} needs {' and '.join(missing)}: connect it, or fill in its path")
    surplus = [words[option] for option in sorted(set(have) - taken)]
    if surplus:
        hint = "set one_frame" if takes_one_frame and not one_frame else "choose a task that does"
        raise UserError(f"task {task.name} takes no {' and '.join(surplus)}: disconnect it, or {hint}")


NODES = FamilyNodes(
    generates="Generate a video (or with one frame an image) from text, from a first and a last frame, or after a control video, with "
    "LoRAs. Which images it takes follows from the task of the models.",
    variant=Own(
        "task",
        "COMBO",
        "Which Wan model the transformer file is: t2v makes video from text, t2i images, i2v video from a first frame, flf2v "
        "from first and last frame, FC follows a control video; 14 or 1.3 billion weights, A14B is Wan2.2 with its two experts. "
        "Tiny demo models go with any task of their kind.",
        default="t2v-1.3B",
        choices=tuple(task.name for task in CARD.tasks),
    ),
    check_transformer=_check_transformer,
    sources=_SOURCES,
    generator=(
        Widget("prompt", multiline=True),
        Widget("negative_prompt", multiline=True),
        Size(832, 480),
        Widget("video_length", 81, step=4),
        Widget("fps"),
        Widget("infer_steps", off=0),
        Widget("guidance_scale", off=-1.0),
        Widget("flow_shift", off=0.0),
        Widget("seed", 0, maximum=2**32 - 1),
        Widget("sample_solver"),
        Shared.LORAS,
        Widget("cfg_skip_mode"),
        Widget("cfg_apply_ratio", off=-1.0),
        Widget("slg_layers"),
        Widget("slg_mode"),
        Widget("slg_scale"),
        Widget("slg_start"),
        Widget("slg_end"),
        Widget("cpu_noise"),
        Widget("trim_tail_frames"),
        Widget("attn_mode", "sdpa", advanced=True),
        Widget("vae_cache_cpu"),
        Shared.DEVICE,
        Shared.IMAGES,
        Widget("one_frame_inference", name="one_frame", tasks=_ONE_FRAME),
        Widget("guidance_scale_high_noise", off=-1.0, tasks=_EXPERTS),
        Widget("timestep_boundary", off=-1.0, tasks=_EXPERTS),
        Shared.HIGH_LORAS,
        Widget("offload_inactive_dit", tasks=_EXPERTS),
        Widget("lazy_loading", tasks=_EXPERTS),
        Widget("fp8"),
        Widget("fp8_scaled"),
        Widget("fp8_t5"),
        Widget("blocks_to_swap", off=0),
        Widget("use_pinned_memory_for_block_swap"),
        Widget("compile"),
        Widget("skip_mismatched"),
    ),
    problems=_problems,
    check=_check,
)
