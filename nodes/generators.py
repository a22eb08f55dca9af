"""The generator node of each architecture: its widgets, what it can start from, and checks of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import loras, pictures
from .generate import (
    LORAS,
    TEXT_ONLY,
    VideoGenerator,
    device_input,
    generator_spec,
    more_memory_inputs,
    one_frame_output,
    size_inputs,
)
from .models import MODELS, WITH_EXPERTS, wan_task
from .pictures import CONTROL_IMAGES, CONTROL_MASKS, CONTROL_VIDEO, END, SOURCE_VIDEO, START
from .spec import Host, Input, Problem, refused
from .widgets import widget

_WAN = tool_names(cards()["wan"])[GENERATE]


def _wan_tasks() -> dict[str, tuple[str, ...]]:
    """Option of a picture -> the tasks of Wan that can take it."""
    all_tasks = cards()["wan"].tasks
    with_picture = tuple(task.name for task in all_tasks if task.in_dim > TEXT_ONLY)
    one_frame = tuple(task.name for task in all_tasks if task.start_image and not task.control)
    control = tuple(task.name for task in all_tasks if task.control)
    return {
        START.option: with_picture,
        END.option: with_picture,
        CONTROL_VIDEO.option: control,
        CONTROL_IMAGES.option: one_frame,
        CONTROL_MASKS.option: one_frame,
    }


class WanVideoGenerator(VideoGenerator):
    card = cards()["wan"]
    sources = (START, END, CONTROL_VIDEO, CONTROL_IMAGES, CONTROL_MASKS)
    spec = generator_spec(
        "WanVideo",
        "Wan Video",
        "Generate a video (or with one frame a picture) from text, from a first and a last frame, or after a control video, with LoRAs. "
        "Which pictures it takes follows from the task of the models.",
        (
            Input("models", MODELS, "From Wan Model Paths"),
            widget(_WAN, "prompt", multiline=True),
            widget(_WAN, "negative_prompt", multiline=True),
            *size_inputs(),
            widget(_WAN, "video_length", 81, step=4),
            widget(_WAN, "fps"),
            widget(_WAN, "infer_steps", off=0),
            widget(_WAN, "guidance_scale", off=-1.0),
            widget(_WAN, "flow_shift", off=0.0),
            widget(_WAN, "seed", 0, maximum=2**32 - 1),
            widget(_WAN, "sample_solver"),
            *loras.inputs(LORAS),
            widget(_WAN, "cfg_skip_mode"),
            widget(_WAN, "cfg_apply_ratio", off=-1.0),
            widget(_WAN, "slg_layers"),
            widget(_WAN, "slg_mode"),
            widget(_WAN, "slg_scale"),
            widget(_WAN, "slg_start"),
            widget(_WAN, "slg_end"),
            widget(_WAN, "cpu_noise"),
            widget(_WAN, "trim_tail_frames"),
            widget(_WAN, "attn_mode", "sdpa", advanced=True),
            widget(_WAN, "vae_cache_cpu"),
            device_input(_WAN),
            *pictures.sockets_and_paths(sources, _wan_tasks()),
            widget(_WAN, "one_frame_inference", name="one_frame", tasks=_wan_tasks()[CONTROL_IMAGES.option]),
            widget(_WAN, "guidance_scale_high_noise", off=-1.0, tasks=WITH_EXPERTS),
            widget(_WAN, "timestep_boundary", off=-1.0, tasks=WITH_EXPERTS),
            *loras.inputs(2, "high_", " to the high-noise model of Wan2.2", hidden=True, tasks=WITH_EXPERTS),
            widget(_WAN, "offload_inactive_dit", tasks=WITH_EXPERTS),
            widget(_WAN, "lazy_loading", tasks=WITH_EXPERTS),
            widget(_WAN, "fp8"),
            widget(_WAN, "fp8_scaled"),
            widget(_WAN, "fp8_t5"),
            widget(_WAN, "blocks_to_swap", off=0),
            *more_memory_inputs(_WAN),
        ),
    )

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        layers = constants.get("slg_layers", "")
        if layers and not all(part.strip().isdigit() for part in layers.split(",")):
            yield Problem("slg_layers", f"slg_layers: {layers!r} is not a list of block numbers such as 9,10")
        yield from super().validate(host, **constants)

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        task = models["task"]
        wan_pictures_problem(task, pictures.given(self.sources, inputs), bool(inputs["one_frame"]))
        for name in ("high_lora_1", "high_lora_2"):
            if loras.is_chosen(inputs, name) and wan_task(task).boundary is None:
                raise UserError(f"{name} is for the high-noise model of Wan2.2; task {task} has none")

    def own_values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**loras.options(host, inputs, "high_", "_high_noise"), **one_frame_output(inputs)}


def wan_pictures_problem(name: str, have: set[str], one_frame: bool) -> None:
    """UserError where `have` (options of pictures) is not what a Wan task takes. One frame needs control pictures only."""
    task, takers = wan_task(name), _wan_tasks()
    controls = {CONTROL_IMAGES.option, CONTROL_MASKS.option}
    of_video = ((START, task.start_image), (END, task.last_frame), (CONTROL_VIDEO, task.control))
    one_frame = one_frame and name in takers[CONTROL_IMAGES.option]
    needed = {CONTROL_IMAGES.option} if one_frame else {source.option for source, wanted in of_video if wanted}
    taken = {option for option, names in takers.items() if name in names} - (set() if one_frame else controls)
    words = {source.option: source.socket for source in WanVideoGenerator.sources}
    missing = [words[option] for option in sorted(needed - have)]
    if missing:
        raise UserError(f"task {name} needs {' and '.join(missing)}: connect it, or fill in its path")
    surplus = [words[option] for option in sorted(have - taken)]
    if surplus:
        hint = "set one_frame" if name in takers[CONTROL_IMAGES.option] and not one_frame else "choose a task that does"
        raise UserError(f"task {name} takes no {' and '.join(surplus)}: disconnect it, or {hint}")


_HV = tool_names(cards()["hv"])[GENERATE]


class HunyuanVideoGenerator(VideoGenerator):
    card = cards()["hv"]
    sources = (START, SOURCE_VIDEO)
    spec = generator_spec(
        "HunyuanVideo",
        "HunyuanVideo",
        "Generate a video (or with one frame a picture) from text, from a first frame with an image-to-video model (SkyReels), or by "
        "changing a video, with LoRAs.",
        (
            Input("models", MODELS, "From HunyuanVideo Model Paths"),
            widget(_HV, "prompt", multiline=True),
            widget(_HV, "negative_prompt", multiline=True),
            *size_inputs(960, 544),
            widget(_HV, "video_length", 129, step=4),
            widget(_HV, "fps"),
            widget(_HV, "infer_steps"),
            widget(_HV, "embedded_cfg_scale"),
            widget(_HV, "guidance_scale"),
            widget(_HV, "flow_shift"),
            widget(_HV, "seed", 0, maximum=2**32 - 1),
            *loras.inputs(LORAS),
            widget(_HV, "strength"),
            widget(_HV, "split_attn"),
            widget(_HV, "exclude_single_blocks"),
            widget(_HV, "attn_mode", "sdpa", advanced=True),
            device_input(_HV),
            *pictures.sockets_and_paths(sources),
            widget(_HV, "fp8"),
            widget(_HV, "fp8_llm"),
            widget(_HV, "blocks_to_swap", off=0),
            widget(_HV, "vae_chunk_size", off=0),
            widget(_HV, "vae_spatial_tile_sample_min_size", off=0),
            *more_memory_inputs(_HV),
        ),
    )

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        have = pictures.given(self.sources, inputs)
        from_picture = models.get("dit_in_channels", 16) > TEXT_ONLY
        if from_picture and START.option not in have:
            raise UserError("this transformer is an image-to-video model: connect start_image, or fill in start_image_path")
        if START.option in have and not from_picture:
            raise UserError("start_image needs an image-to-video transformer (SkyReels, 32 input channels); this one takes text alone")
        if {START.option, SOURCE_VIDEO.option} <= have:
            raise UserError("start_image and source_video exclude each other: use one of them")


_FP = tool_names(cards()["fp"])[GENERATE]
_FP_START = dataclasses.replace(START, sections=True)


class FramePackVideoGenerator(VideoGenerator):
    card = cards()["fp"]
    sources = (_FP_START, END, CONTROL_IMAGES, CONTROL_MASKS)
    spec = generator_spec(
        "FramePackVideo",
        "FramePack Video",
        "Generate a video from a first frame, section by section, with prompts and pictures for single sections, an end picture and LoRAs; "
        "or a single frame from control pictures.",
        (
            Input("models", MODELS, "From FramePack Model Paths"),
            widget(
                _FP,
                "prompt",
                multiline=True,
                tooltip="What the video shows. For single sections: 0:text;;;2-3:text;;;-1:text, where 0 is the first and -1 the last.",
            ),
            widget(_FP, "negative_prompt", multiline=True),
            *size_inputs(640, 640),
            widget(_FP, "video_seconds"),
            widget(_FP, "video_sections", off=0),
            widget(_FP, "fps"),
            widget(_FP, "infer_steps"),
            widget(_FP, "embedded_cfg_scale"),
            widget(_FP, "guidance_scale"),
            widget(_FP, "guidance_rescale"),
            widget(_FP, "flow_shift", off=0.0),
            widget(_FP, "seed", 0, maximum=2**32 - 1),
            *loras.inputs(LORAS),
            widget(_FP, "latent_window_size"),
            widget(_FP, "latent_paddings"),
            widget(_FP, "custom_system_prompt", multiline=True),
            widget(_FP, "one_frame_inference", name="one_frame"),
            widget(_FP, "one_frame_auto_resize"),
            widget(_FP, "magcache_mag_ratios"),
            widget(_FP, "magcache_retention_ratio"),
            widget(_FP, "magcache_threshold"),
            widget(_FP, "magcache_k"),
            widget(_FP, "magcache_calibration"),
            widget(_FP, "rope_scaling_timestep_threshold", off=-1),
            widget(_FP, "rope_scaling_factor"),
            widget(_FP, "bulk_decode"),
            widget(_FP, "vae_tiling"),
            widget(_FP, "vae_chunk_size", off=0),
            widget(_FP, "vae_spatial_tile_sample_min_size", off=0),
            widget(_FP, "attn_mode", "sdpa", advanced=True),
            device_input(_FP),
            *pictures.sockets_and_paths(sources),
            Input(
                "section_numbers",
                "STRING",
                "Which sections the pictures of section_images are for, in their order, separated by commas: 0 is the first, -1 the last.",
                default="",
                advanced=True,
            ),
            widget(_FP, "fp8"),
            widget(_FP, "fp8_scaled"),
            widget(_FP, "fp8_llm"),
            widget(_FP, "blocks_to_swap", off=0),
            *more_memory_inputs(_FP),
            Input("section_images", "IMAGE", "Pictures that single sections start from, beside start_image", optional=True),
        ),
    )

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        yield from refused("section_numbers", _section_numbers, constants.get("section_numbers", ""))
        yield from super().validate(host, **constants)

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        have = pictures.given(self.sources, inputs)
        if START.option not in have:
            raise UserError("FramePack starts from a picture: connect start_image, or fill in start_image_path")
        if {CONTROL_IMAGES.option, CONTROL_MASKS.option} & have and not inputs["one_frame"].strip():
            raise UserError("control_images are for one-frame generation: set one_frame, such as default, or disconnect them")
        if END.option in have and (models.get("f1") or inputs["one_frame"].strip()):
            raise UserError("end_image: only the original FramePack ends with a picture, not F1 and not a single frame; disconnect it")

    def own_values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"video_sections": 1, **one_frame_output(inputs)} if inputs["one_frame"].strip() else {}

    def pictures(self, host: Host, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
        chosen = super().pictures(host, inputs, folder)
        numbers = _section_numbers(inputs["section_numbers"])
        if inputs["section_images"] is None and not numbers:
            return chosen
        files = [] if inputs["section_images"] is None else host.picture_files(inputs["section_images"], folder, "section_images")
        if len(files) != len(numbers):
            raise UserError(f"section_numbers names {len(numbers)} sections, section_images has {len(files)} pictures: give as many")
        if pictures.names_sections(chosen[START.option]):
            raise UserError("start_image_path names pictures of sections already: use that, or section_images")
        parts = [f"0:{chosen[START.option]}", *(f"{number}:{file}" for number, file in zip(numbers, files, strict=True))]
        return {**chosen, START.option: pictures.SECTIONS.join(parts)}


def _section_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"section_numbers: {text!r} is not a list of whole numbers such as 1, -1") from None
