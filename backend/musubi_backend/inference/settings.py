"""The settings of the generate verb, by concern. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.settings import Settings


@dataclass(frozen=True)
class PromptSettings(Settings):
    """Where prompts come from, and what holds for those that say nothing else."""

    prompt: str | None = None
    negative_prompt: str | None = None
    from_file: str | None = None
    interactive: bool = False
    image_path: str | None = None


@dataclass(frozen=True)
class VideoSettings(Settings):
    """What is generated where its prompt does not say it; None for what the task is made for. video_size: height and width in pixels."""

    video_size: tuple[int, int] = (256, 256)
    video_length: int | None = None
    seed: int | None = None
    infer_steps: int | None = None
    flow_shift: float | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class OutputSettings(Settings):
    """What is written, and where; or what is decoded or merged instead of generating."""

    save_path: str = ""
    output_type: str = "video"
    fps: int = 16
    no_metadata: bool = False
    latent_path: tuple[str, ...] | None = None
    save_merged_model: str | None = None


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """Everything that the verb itself reads; what only an architecture knows stays with it."""

    prompts: PromptSettings = PromptSettings()
    video: VideoSettings = VideoSettings()
    output: OutputSettings = OutputSettings()
    device: str | None = None


@dataclass(frozen=True)
class RequestImageSettings(Settings):
    """Last frames, control images and one-frame generation, of the architectures that take them."""

    end_image_path: str | None = None
    one_frame_inference: str | None = None
    control_image_path: tuple[str, ...] | None = None
    control_image_mask_path: tuple[str, ...] | None = None
