"""The settings of our own tools, a class for each. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..architectures import default_card
from ..options.settings import Settings


@dataclass(frozen=True)
class AverageSettings(Settings):
    """`lora_post_hoc_ema`: the checkpoints, the decay or the widths, and the file to write."""

    path: tuple[str, ...] = ()
    no_sort: bool = False
    beta: float = 0.95
    beta2: float | None = None
    sigma_rel: float | None = None
    sigma_rels: tuple[float, ...] | None = None
    output_file: str = ""
    cpu_threads: int | None = None


@dataclass(frozen=True)
class ConvertSettings(Settings):
    """`convert_lora`: one file in another layout."""

    input: str = ""
    output: str = ""
    target: str = ""
    diffusers_prefix: str | None = None
    architecture: str | None = None
    names: str = "original"
    expert: str | None = None
    musubi_names: bool = False
    keep_unknown: bool = False
    cpu_threads: int | None = None


@dataclass(frozen=True)
class MergeSettings(Settings):
    """`merge_lora`: LoRAs with strengths (1 where none is given) into a transformer."""

    dit: str = ""
    lora_weight: tuple[str, ...] | None = None
    lora_multiplier: tuple[float, ...] = (1.0,)
    skip_mismatched: bool = False
    save_merged_model: str = ""
    device: str = "cpu"
    cpu_threads: int | None = None


@dataclass(frozen=True)
class CombineSettings(Settings):
    """`combine_lora`: LoRAs with strengths (1 where none is given) into one. rank: None for an exact result."""

    lora_weight: tuple[str, ...] = ()
    lora_multiplier: tuple[float, ...] | None = None
    rank: int | None = None
    architecture: str | None = None
    output: str = ""
    save_precision: str | None = None


@dataclass(frozen=True)
class ExtractSettings(Settings):
    """`extract_lora`: the difference of two checkpoints."""

    base: str = ""
    tuned: str = ""
    rank: int = 32
    biases: bool = False
    device: str = "cpu"
    output: str = ""
    save_precision: str = "bf16"


@dataclass(frozen=True)
class ListSettings(Settings):
    """What is described, and where the captions go."""

    image_dir: str = ""
    media: str = "all"
    output_format: str = "jsonl"
    output_file: str = ""
    caption_extension: str = ".txt"
    overwrite: bool = False


@dataclass(frozen=True)
class DescriberSettings(Settings):
    """The model, what it is asked, and what it sees. max_size: pixels, of a square of the same area; max_new_tokens: of a caption."""

    model_path: str = ""
    tokenizer: str | None = None
    fp8_vl: bool = False
    device: str | None = None
    prompt: str | None = None
    max_new_tokens: int = 1024
    max_size: int = 1280
    video_frames: int = 8
    batch_size: int = 1


@dataclass(frozen=True)
class CaptionSettings(Settings):
    """`caption_images_by_qwen_vl`."""

    listing: ListSettings = ListSettings()
    describer: DescriberSettings = DescriberSettings()


@dataclass(frozen=True)
class InspectSettings(Settings):
    """`inspect_dataset`: which dataset file, for which architecture, and where the report goes (None: printed)."""

    dataset_config: str = ""
    architecture: str = default_card().id
    output: str | None = None
    places_only: bool = False


@dataclass(frozen=True)
class ViewSettings(Settings):
    """`view_dataset`: one page of a dataset. tile_size: pixels."""

    dataset_config: str = ""
    architecture: str = default_card().id
    page: int = 1
    items_per_page: int = 12
    tile_size: int = 320
    output: str = ""
    report: str = ""


@dataclass(frozen=True)
class VideoConvertSettings(Settings):
    """`video_convert`. format, fps: None for what the output's name and the input say."""

    input: str = ""
    output: str = ""
    format: str | None = None
    fps: int | None = None


@dataclass(frozen=True)
class TensorBoardSettings(Settings):
    """`tensorboard`: the folder of logs."""

    logging_dir: str = ""


@dataclass(frozen=True)
class ResourceSettings(Settings):
    """`resources`: how long to look, at which processes, and where the report goes (None: printed)."""

    seconds: float = 0.0
    processes: tuple[int, ...] | None = None
    output: str | None = None


@dataclass(frozen=True)
class PlanSettings(Settings):
    """`plan_memory`: a training's command, the GPU it is timed on, and the file to write (None: standard output)."""

    training: tuple[str, ...] = ()
    gpu: str | None = None
    output: str | None = None
