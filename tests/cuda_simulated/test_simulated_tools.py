"""From clips to a video with a LoRA on the simulated GPU: tasks and savers of memory that templates do not have. With `--full`: minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("not config.getoption('--full', False)", reason="six to ten tools each take minutes: with --full"),
]

Words = tuple[str, ...]
VIDEO, ONE_FRAME = "video", "one frame"
TRAINED: Words = ("--optimizer_type", "adamw", "--gradient_checkpointing")
SCALED: Words = ("--fp8_base", "--fp8_scaled")
SWAPPED: Words = ("--blocks_to_swap", "1", "--use_pinned_memory_for_block_swap")
OFFLOADED: Words = ("--gradient_checkpointing_cpu_offload", "--offload_attention_blocks", "1")
WAITING: Words = ("--offload_text_encoder",)
ASKED: Words = ("--sample_prompts", "{folder}/prompts.txt")
CLIP: Words = ("--video_length", "9")
IMAGE: Words = ("--image_path", "{folder}/media.png")
LAST: Words = ("--end_image_path", "{folder}/controls.png")
CONTROL: Words = ("--control_path", "{folder}/controls/a.mp4")
SECTION: Words = ("--video_sections", "1", "--latent_window_size", "2")
MERGED: Words = ("--fp8", "--fp8_scaled")
TILES: Words = ("--vae_chunk_size", "16", "--vae_spatial_tile_sample_min_size", "32")
ONE: Words = ("--one_frame_inference", "target_index=1,control_index=0", "--control_image_path", "{folder}/controls.png")

PATHS: dict[str, tuple[str, str, str, Words, Words, list[Words]]] = {
    "image to video, with all that saves memory": (
        "wan_i2v", "i2v-14B", VIDEO, ("--vae_cache_cpu",), (*TRAINED, *SCALED, *SWAPPED, *OFFLOADED, *ASKED),
        [(*CLIP, *IMAGE, *MERGED, *SWAPPED, "--vae_cache_cpu", "--fp8_t5"), (*CLIP, *IMAGE, *LAST)],
    ),
    "first and last frame": ("wan_flf2v", "flf2v-14B", VIDEO, ("--last_frame",), TRAINED, [(*CLIP, *IMAGE, *LAST)]),
    "control": ("wan_fc", "t2v-1.3B-FC", VIDEO, (), TRAINED, [(*CLIP, *CONTROL)]),
    "control and image": ("wan_fc", "i2v-14B-FC", VIDEO, (), TRAINED, [(*CLIP, *CONTROL, *IMAGE)]),
    "one frame of Wan": ("wan_i2v", "i2v-14B", ONE_FRAME, ("--one_frame",), (*TRAINED, "--one_frame"), [(*ONE, *IMAGE)]),
    "two experts": (
        "wan22_i2v", "i2v-A14B", VIDEO, ("--i2v",), (*TRAINED, *SCALED, "--offload_inactive_dit", "--lora_per_expert"),
        [(*CLIP, *IMAGE, *MERGED, "--offload_inactive_dit", "--vae_cache_cpu"), (*CLIP, *IMAGE, *MERGED, "--lazy_loading")],
    ),
    "HunyuanVideo": (
        "hv", "", VIDEO, TILES, (*TRAINED, "--fp8_base"),
        [(*CLIP, "--fp8", *TILES, "--fp8_llm", *WAITING, "--split_uncond", "--guidance_scale", "3",
          "--negative_prompt", "x"),
         (*CLIP, "--video_path", "{folder}/media/a.mp4", "--strength", "0.5")],
    ),
    "sections forward": (
        "fp", "", VIDEO, ("--f1", *TILES), (*TRAINED, "--f1", "--latent_window_size", "2", *ASKED),
        [(*SECTION, *IMAGE, "--f1", "--fp8_llm", *MERGED, *TILES, "--bulk_decode")],
    ),
    "one frame of FramePack": (
        "fp", "", ONE_FRAME, ("--one_frame", "--one_frame_no_4x"), (*TRAINED, "--one_frame", "--latent_window_size", "2"),
        [(*SECTION, *IMAGE, *WAITING, *ONE[:1], ONE[1] + ",no_4x", *ONE[2:])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_clips_become_a_video(path: tuple[str, str, str, Words, Words, list[Words]], gpu: Callable[..., Any]) -> None:
    _check(gpu("tools", "cuda", *path), path[4])


def test_everything_is_on_the_second_gpu(gpu: Callable[..., Any]) -> None:
    """PyTorch rejects an operation on two GPUs, or on one that is not the one asked for."""
    path = PATHS["image to video, with all that saves memory"]
    _check(gpu("tools", "cuda:1", *path), path[4])


def _check(report: dict[str, Any], training: Words) -> None:
    assert report["races"] == [] and set(report["codes"].values()) == {0}, report["codes"]
    if set(ASKED) <= set(training):
        assert any(name.startswith("sample/") for name in report["written"]) and any("-state" in name for name in report["written"])
