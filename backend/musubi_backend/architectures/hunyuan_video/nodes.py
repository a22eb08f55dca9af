"""What HunyuanVideo's nodes show and check."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...weights.recognise import PICKLE_SUFFIXES
from ...weights.safetensors_file import read_model_header
from ..widgets import SOURCE_VIDEO, START, FamilyNodes, Shared, Size, Widget
from .card import CARD

TRAINER = (
    Widget("guidance_scale"),
    Widget("vae_chunk_size", off=0),
    Widget("vae_spatial_tile_sample_min_size", off=0),
    Widget("fp8_llm"),
)
"""The embedded guidance, and the memory of samples."""


def _facts_of(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """SkyReels' image-to-video models have more input channels, which musubi-tuner needs as a flag."""
    channels = _input_channels(files["dit"])
    return {} if channels in (None, CARD.latent_channels) else {"dit_in_channels": channels}


def _input_channels(dit: Path) -> int | None:
    """Input channels of a transformer by its file; None for a PyTorch file, whose shapes are not looked at."""
    if dit.suffix.lower() in PICKLE_SUFFIXES:
        return None
    tensors = read_model_header(dit).tensors
    return next((int(info.shape[1]) for name, info in tensors.items() if name.endswith("img_in.proj.weight")), None)


def _check(models: Mapping[str, Any], inputs: Mapping[str, Any], have: Collection[str]) -> None:
    from_image = models.get("dit_in_channels", CARD.latent_channels) > CARD.latent_channels
    if from_image and START.option not in have:
        raise UserError("this transformer is an image-to-video model: connect start_image, or fill in start_image_path")
    if START.option in have and not from_image:
        raise UserError("start_image needs an image-to-video transformer (SkyReels, 32 input channels); this one takes text alone")
    if START.option in have and SOURCE_VIDEO.option in have:
        raise UserError("start_image and source_video exclude each other: use one of them")


NODES = FamilyNodes(
    generates="Generate a video (or with one frame an image) from text, from a first frame with an image-to-video model (SkyReels), or by "
    "changing a video, with LoRAs.",
    facts=("dit_in_channels",),
    facts_of=_facts_of,
    trainer=TRAINER,
    sources=(START, SOURCE_VIDEO),
    generator=(
        Widget("prompt", multiline=True),
        Widget("negative_prompt", multiline=True),
        Size(960, 544),
        Widget("video_length", 129, step=4),
        Widget("fps"),
        Widget("infer_steps"),
        Widget("embedded_cfg_scale"),
        Widget("guidance_scale"),
        Widget("flow_shift"),
        Widget("seed", 0, maximum=2**32 - 1),
        Shared.LORAS,
        Widget("strength"),
        Widget("split_attn"),
        Widget("exclude_single_blocks"),
        Widget("attn_mode", "sdpa", advanced=True),
        Shared.DEVICE,
        Shared.IMAGES,
        Widget("fp8"),
        Widget("fp8_llm"),
        Widget("blocks_to_swap", off=0),
        Widget("vae_chunk_size", off=0),
        Widget("vae_spatial_tile_sample_min_size", off=0),
        Widget("use_pinned_memory_for_block_swap"),
        Widget("compile"),
        Widget("skip_mismatched"),
    ),
    check=_check,
)
