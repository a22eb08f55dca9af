"""What is asked of a generation, as data. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LineOption:
    """One option of a prompt line. key: its long name; several: it may come more than once and makes a tuple; rejected: why it
    cannot be used here."""

    key: str
    kind: type = str
    minimum: float | None = None
    maximum: float | None = None
    several: bool = False
    unsupported: str = ""


@dataclass(frozen=True)
class Guidance:
    """How the predictions with the prompt and with the negative prompt are mixed.

    skip_mode, apply_ratio   which steps go without guidance, and the share of steps that keep it (None: all of them)
    slg_mode        None: no SLG; "original": added to guidance, by `slg_scale`; "uncond": takes the negative prediction's place
    slg_layers      indices of the blocks left out
    slg_start/end   share of the run where SLG acts
    """

    scale: float = 1.0
    skip_mode: str = "none"
    apply_ratio: float | None = None
    slg_mode: str | None = None
    slg_layers: tuple[int, ...] = ()
    slg_scale: float = 3.0
    slg_start: float = 0.0
    slg_end: float = 0.3

    @property
    def needs_negative(self) -> bool:
        """False where the negative prompt cannot change the result, so that it need not be encoded."""
        return self.scale != 1.0 or self.slg_mode == "original"


@dataclass(frozen=True)
class Images:
    """Files that a request starts from or is steered by, as paths; what a task does not take stays empty.

    start, end       first and last frame
    control_video    video file or folder of images of Fun-Control models
    controls, masks  control images of one-frame generation, and their masks
    source_video     the video that is changed (video-to-video)
    """

    start: str | None = None
    end: str | None = None
    control_video: str | None = None
    controls: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    source_video: str | None = None

    def given(self) -> dict[str, str | tuple[str, ...]]:
        """The images there are, by name."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class AddedLoRA:
    """A LoRA of one request alone. path: of its file; high_noise: that of the high-noise expert, of models of two; strength of both."""

    path: str | None = None
    high_noise: str | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class SampleRequest:
    """Everything that decides what is generated. width, height in pixels.

    guidance_high_noise   of the steps above `Architecture.boundary`, where that differs
    embedded_guidance   embedded guidance of a guidance-distilled model; None for other models
    strength            share of the steps that change `images.source_video`
    one_frame           settings of one-frame generation ("target_index=1,control_index=0;10"), None for video
    fixed_size          the size stays and images are cut to it; else it may be taken from the start image, keeping its area
    lora                added to the loaded model for this request, next to what is merged into it
    own                 settings that only this architecture has, by option name
    """

    prompt: str
    seed: int
    width: int
    height: int
    frames: int
    steps: int
    flow_shift: float
    guidance: Guidance
    negative_prompt: str = ""
    sampler: str = "unipc"
    cpu_noise: bool = False
    images: Images = Images()
    guidance_high_noise: Guidance | None = None
    embedded_guidance: float | None = None
    strength: float | None = None
    one_frame: str | None = None
    fixed_size: bool = False
    lora: AddedLoRA | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_negative(self) -> bool:
        """False where the negative prompt cannot change the result, so that it need not be encoded."""
        return any(guidance is not None and guidance.needs_negative for guidance in (self.guidance, self.guidance_high_noise))

    def guidance_of(self, high_noise: bool) -> Guidance:
        """What holds above or below the boundary."""
        return self.guidance_high_noise if high_noise and self.guidance_high_noise is not None else self.guidance
