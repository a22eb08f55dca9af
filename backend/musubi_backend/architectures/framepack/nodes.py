"""What FramePack's nodes show and check."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..hunyuan_video.nodes import TRAINER
from ..widgets import CONTROL_IMAGES, CONTROL_MASKS, END, START, FamilyNodes, Own, Shared, Size, Widget

_F1 = "FramePack-F1"


def _facts_of(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    return {"f1": inputs["variant"] == _F1}


def _check(models: Mapping[str, Any], inputs: Mapping[str, Any], have: Collection[str]) -> None:
    if START.option not in have:
        raise UserError("FramePack starts from an image: connect start_image, or fill in start_image_path")
    if {CONTROL_IMAGES.option, CONTROL_MASKS.option} & set(have) and not inputs["one_frame"].strip():
        raise UserError("control_images are for one-frame generation: set one_frame, such as default, or disconnect them")
    if END.option in have and (models.get("f1") or inputs["one_frame"].strip()):
        raise UserError("end_image: only the original FramePack ends with an image, not F1 and not a single frame; disconnect it")


def _values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"video_sections": 1} if inputs["one_frame"].strip() else {}


NODES = FamilyNodes(
    generates="Generate a video from a first frame, section by section, with prompts and images for single sections, an end image and "
    "LoRAs; or a single frame from control images.",
    variant=Own(
        "variant",
        "COMBO",
        "Which FramePack the transformer file is: the original makes a video from its end backwards, F1 forwards.",
        default="FramePack",
        choices=("FramePack", _F1),
    ),
    facts=("f1",),
    facts_of=_facts_of,
    trainer=(*TRAINER, Widget("bulk_decode")),
    sources=(replace(START, sections=True), END, CONTROL_IMAGES, CONTROL_MASKS),
    generator=(
        Widget(
            "prompt",
            multiline=True,
            tooltip="What the video shows. For single sections: 0:text;;;2-3:text;;;-1:text, where 0 is the first and -1 the last.",
        ),
        Widget("negative_prompt", multiline=True),
        Size(640, 640),
        Widget("video_seconds"),
        Widget("video_sections", off=0),
        Widget("fps"),
        Widget("infer_steps"),
        Widget("embedded_cfg_scale"),
        Widget("guidance_scale"),
        Widget("guidance_rescale"),
        Widget("flow_shift", off=0.0),
        Widget("seed", 0, maximum=2**32 - 1),
        Shared.LORAS,
        Widget("latent_window_size"),
        Widget("latent_paddings"),
        Widget("custom_system_prompt", multiline=True),
        Widget("one_frame_inference", name="one_frame"),
        Widget("one_frame_auto_resize"),
        Widget("magcache_mag_ratios"),
        Widget("magcache_retention_ratio"),
        Widget("magcache_threshold"),
        Widget("magcache_k"),
        Widget("magcache_calibration"),
        Widget("rope_scaling_timestep_threshold", off=-1),
        Widget("rope_scaling_factor"),
        Widget("bulk_decode"),
        Widget("vae_tiling"),
        Widget("vae_chunk_size", off=0),
        Widget("vae_spatial_tile_sample_min_size", off=0),
        Widget("attn_mode", "sdpa", advanced=True),
        Shared.DEVICE,
        Shared.IMAGES,
        Shared.SECTION_NUMBERS,
        Widget("fp8"),
        Widget("fp8_scaled"),
        Widget("fp8_llm"),
        Widget("blocks_to_swap", off=0),
        Widget("use_pinned_memory_for_block_swap"),
        Widget("compile"),
        Shared.SECTION_IMAGES,
        Widget("skip_mismatched"),
    ),
    check=_check,
    values=_values,
)
