"""Messages of tools for people who see widgets: every flag as the name of the widget that sets it."""

from __future__ import annotations

import re

from ...backend.musubi_backend.architectures import part_of
from ...backend.musubi_backend.options.option import (
    CAPTION,
    GENERATE,
    LORA_COMBINE,
    LORA_CONVERT,
    LORA_EMA,
    LORA_EXTRACT,
    LORA_MERGE,
    TRAIN,
    VIDEO_CONVERT,
)
from ...backend.musubi_backend.options.registry import tool as find_tool

_LORAS = {"lora_weight": "lora_1", "lora_multiplier": "multiplier_1"}
_ATTENTION = dict.fromkeys(("sdpa", "flash_attn", "flash3", "xformers"), "attention")
_BELOW = {"base_weights": "base_lora_1", "base_weights_multiplier": "base_multiplier_1"}
_OTHER_NAMES: dict[str, dict[str, str]] = {  # widgets that are not called like their option
    TRAIN: {"seed": "training_seed", "network_module": "network", "resume": "continue_state", **_ATTENTION, **_BELOW},
    GENERATE: {
        "one_frame_inference": "one_frame",
        "image_path": "start_image",
        "end_image_path": "end_image",
        "control_path": "control_video",
        "video_path": "source_video",
        "control_image_path": "control_images",
        "control_image_mask_path": "control_masks",
        "video_size": "width and height",
        "from_file": "prompts",
        "lora_weight_high_noise": "high_lora_1",
        "lora_multiplier_high_noise": "high_multiplier_1",
        **_LORAS,
    },
    LORA_EMA: {"path": "checkpoints", "sigma_rels": "more_sigma_rel", "output_file": "output_name"},
    LORA_CONVERT: {"input": "lora", "output": "output_name"},
    LORA_COMBINE: {"output": "output_name", **_LORAS},
    LORA_MERGE: {"dit": "model", "save_merged_model": "output_name", **_LORAS},
    LORA_EXTRACT: {"output": "output_name"},
    CAPTION: {"image_dir": "path", "model_path": "model", "output_file": "file_name"},
    VIDEO_CONVERT: {"input": "video", "output": "filename_prefix"},
}
_OF_ALL = {"dataset_config": "Dataset Config"}
_ARGUMENTS = {"network_args"}  # each has a widget of its own, named after it
_FLAG = re.compile(r"(?<![\w-])--(\w+)( ?)")


def in_widgets(tool: str, message: str) -> str:
    """`message` of `tool` with the names of widgets in place of flags. What is no flag of the tool stays."""
    known = find_tool(tool)
    names = {option.name: option.name for option in known.options} | _OF_ALL | _OTHER_NAMES.get(known.verb, {})
    names |= _of_variant(known.architecture)

    def named(flag: re.Match[str]) -> str:
        if flag[1] in _ARGUMENTS and flag[1] in names and flag[2]:
            return ""
        return names[flag[1]] + flag[2] if flag[1] in names else flag[0]

    return _FLAG.sub(named, message)


def _of_variant(architecture: str | None) -> dict[str, str]:
    """The options that follow from the variant of a model, as the widget that chooses it."""
    module = part_of(architecture, "nodes") if architecture else None
    variant = module.NODES.variant if module else None
    return dict.fromkeys(module.NODES.facts, variant.name) if module and variant else {}
