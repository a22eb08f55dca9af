"""The data card of an architecture: facts that nodes and tools read without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


def letters(title: str) -> str:
    """A title in ids of nodes: its letters and digits."""
    return "".join(filter(str.isalnum, title))


LOW, HIGH = "low", "high"
"""The two transformers of a model that has two, by the noise they work on."""

TRANSFORMER, EXPERT, VAE, TEXT_ENCODER, IMAGE_ENCODER = "transformer", "expert", "vae", "text encoder", "image encoder"
"""What a file of a model is for. EXPERT: the transformer of high noise, where a model has two."""

VIDEO, IMAGE = "VIDEO", "IMAGE"
"""What an architecture generates."""


@dataclass(frozen=True)
class Part:
    """One file of a model.

    name        the option that gives it, and its key wherever files are named by part
    role        `TRANSFORMER`, ...
    what        what it is, for a person: "The Wan VAE"
    folder      ComfyUI's key of the model folder it lies in
    example     a file as ComfyUI's users have it; dtype: of that file
    kinds       what the file may be, as `weights.kinds` calls it; the first is what it is called when another is rejected
    published   patterns of the file in the folder the model is published as; the first that exists counts
    tasks       the tasks that use it; empty: all
    only_for    what it is needed for, in words, where that is not everything: then it may be left out
    differs     task -> the fields that are different for it, as another kind of file for the same option
    """

    name: str
    role: str
    what: str
    folder: str
    example: str
    dtype: str
    kinds: tuple[str, ...]
    published: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    only_for: str = ""
    differs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def at(self, task: str) -> Part:
        """This part as one task has it."""
        return replace(self, differs={}, **self.differs[task]) if task in self.differs else self


@dataclass(frozen=True)
class Task:
    """One variant of an architecture, chosen by `--task`.

    Sizes describe the transformer in musubi-tuner's terms. `steps`, `flow_shift`, `guidance_scale` and `frames` are the
    generation defaults of that task. Architectures without `--task` have one, called as the architecture.

    image_encoder   the transformer gets the first image through an image encoder
    start_image, last_frame, control   it starts from an image, ends with one, follows a control video
    boundary        sigma (timestep / 1000) from which the high-noise expert works, the low-noise one below; None for a single model
    guidance_scale_high_noise   of the high-noise expert
    flow_shift_480p   instead of `flow_shift` where the video is 832x480 or 480x832
    negative_prompt   instead of the card's
    differs         fields of the card that are different for this task: what its caches are called, what they hold, ...
    """

    name: str
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    image_encoder: bool = False
    start_image: bool = False
    last_frame: bool = False
    control: bool = False
    boundary: float | None = None
    guidance_scale_high_noise: float | None = None
    flow_shift_480p: float | None = None
    negative_prompt: str = ""
    steps: int = 50
    flow_shift: float = 5.0
    guidance_scale: float = 5.0
    frames: int = 81
    differs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def flow_shift_at(self, width: int, height: int) -> float:
        """The default shift for a size in pixels."""
        is_480p = {width, height} == {832, 480}
        return self.flow_shift_480p if is_480p and self.flow_shift_480p is not None else self.flow_shift


@dataclass(frozen=True)
class Card:
    """Facts about one architecture.

    id                 short name, by which code and settings call it ("wan")
    caches             short name in file names of caches, where that is not the id
    order              where the architecture stands in lists; the first one is the default
    name               name in cache metadata and `ss_base_model_version`
    title              what a person calls it
    family             what the nodes are called after; node ids keep its letters and digits ("HunyuanVideo 1.5": HunyuanVideo15)
    tool_prefix        prefix of the tool names: "wan_" gives `wan_train_network`
    cache_tools        (latent tool, text tool) names where they do not follow the prefix
    network_module     default `--network_module`
    modelspec          `modelspec.architecture` without "/lora"
    implementation     `modelspec.implementation`: where the model's original code is
    lora_blocks        class names of the blocks whose Linears get a LoRA
    block_lists        how the paths of those blocks begin in a weight file ("blocks.")
    comfy_lora         where ComfyUI does not know the names that musubi-tuner gives layers in LoRA files: the card by whose original
                       names it knows them
    layers_of          the architecture whose layers it has under other names: a LoRA for one can become one for the other
    lora_exclude       full-match pattern of module paths left out by default
    dtype_tensors      the tensor whose dtype is that of the whole transformer file, by the names that programs give it
    keeps_16_bits      a transformer file in 16 bits is computed with as it is: `--mixed_precision` must agree
    fp8_target/exclude substrings that decide which weights fp8_scaled quantises
    parts              the files of a model, in the order a node shows them
    task_option        the option that chooses the task
    two_experts        what its models with two experts are called ("Wan2.2"); empty where it has none
    text_keys          base names a complete text cache holds
    makes              `VIDEO` or `IMAGE`
    fps                frames per second of training clips and generated video
    frame_stride       a valid clip has `frame_stride * n + 1` frames
    length_in_seconds  a generation is asked for a length in seconds, not in frames
    latent_rank        dimensions of cached latents: 4 are [C, F, H, W], 3 are [C, H, W]
    named_with_frame   latents of rank 3 are called "1xHxW" in caches all the same
    latent_channels, spatial_compression   of the VAE
    embedded_guidance  default embedded guidance of a guidance-distilled model; None for other models
    bucket_step        sides of buckets are multiples of this many pixels
    controls_per_image control images per image; None = any number
    control_masks      the transparency of a control image says where it counts; its colours are kept under it
    noise_per_frame    noise is drawn frame by frame, so that a longer video begins with the noise of a shorter one
    result_index, result_suffix    generated files are called {time}_{result_index}{seed}{result_suffix}
    window_in_bucket   images are also grouped by `fp_latent_window_size` and the one-frame settings
    sections           windows of clips are cut into sections of `fp_latent_window_size` latent frames, each with a cache of its own
    """

    id: str
    name: str
    title: str
    family: str
    tool_prefix: str
    network_module: str
    modelspec: str
    implementation: str
    lora_blocks: tuple[str, ...]
    lora_exclude: str
    tasks: tuple[Task, ...]
    parts: tuple[Part, ...]
    task_option: str = "task"
    caches: str = ""
    order: int = 100
    two_experts: str = ""
    block_lists: tuple[str, ...] = ()
    dtype_tensors: tuple[str, ...] = ()
    keeps_16_bits: bool = False
    fp8_target: tuple[str, ...] = ()
    fp8_exclude: tuple[str, ...] = ()
    makes: str = VIDEO
    fps: int = 16
    frame_stride: int = 4
    length_in_seconds: bool = False
    latent_rank: int = 4
    named_with_frame: bool = False
    latent_channels: int = 16
    spatial_compression: int = 8
    bucket_step: int = 16
    controls_per_image: int | None = 1
    window_in_bucket: bool = False
    control_masks: bool = False
    sections: bool = False
    noise_per_frame: bool = False
    result_index: str = ""
    result_suffix: str = "_"
    latent_dtype: str = "bfloat16"
    text_keys: tuple[str, ...] = ()
    embedded_guidance: float | None = None
    negative_prompt: str = ""
    comfy_lora: str | None = None
    layers_of: str | None = None
    cache_tools: tuple[str, str] = field(default=("", ""))

    def task(self, name: str | None) -> Task:
        """The task called `name`, or where there is no choice (None) the only one; KeyError names the known ones."""
        if name is None:
            return self.tasks[0]
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"{self.title} has no task {name!r}; known: {', '.join(t.name for t in self.tasks)}")

    def at(self, name: str | None) -> Card:
        """This card as one of its tasks has it: with the text encoders of that task, all of which are needed. Itself where tasks do not
        differ or none is named. KeyError as `task`."""
        if name is None:
            return self
        mine = [part.at(name) for part in self.parts if part.role != TEXT_ENCODER or not part.tasks or name in part.tasks]
        needed = [replace(part, only_for="") if part.role == TEXT_ENCODER and part.tasks else part for part in mine]
        parts, differs = tuple(needed), self.task(name).differs
        return replace(self, parts=parts, **differs) if differs or parts != self.parts else self

    @property
    def cache_id(self) -> str:
        """The short name in file names of caches."""
        return self.caches or self.id

    @property
    def node_name(self) -> str:
        """The family in the ids of its nodes."""
        return letters(self.family)

    @property
    def generator_title(self) -> str:
        """What its generator is called after: "Wan Video"; families that say themselves what they make are not called so twice."""
        noun = self.makes.capitalize()
        return self.family if noun in self.family else f"{self.family} {noun}"

    def part(self, name: str) -> Part:
        """The part whose file the option `name` gives. KeyError for any other option."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f"{self.title} has no part {name!r}")

    @property
    def transformers(self) -> tuple[Part, ...]:
        """The files of its transformers, the low-noise one first."""
        return (*self._of(TRANSFORMER), *self._of(EXPERT))

    @property
    def expert(self) -> Part | None:
        """The file of the high-noise expert; None where no task has two."""
        return next(iter(self._of(EXPERT)), None)

    @property
    def expert_tasks(self) -> tuple[str, ...]:
        """The tasks whose models have two experts."""
        return tuple(task.name for task in self.tasks if task.boundary is not None)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that read captions, without those that may be left out."""
        return tuple(part.name for part in self._of(TEXT_ENCODER) if not part.only_for)

    @property
    def image_encoder(self) -> str | None:
        """The image encoder; not every task needs it."""
        return next((part.name for part in self._of(IMAGE_ENCODER)), None)

    def _of(self, role: str) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.role == role)
