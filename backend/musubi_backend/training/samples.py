"""Sample videos during training: `--sample_prompts`, encoded before the transformer is loaded, made when they are due."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import events, exhausted, job
from ..console import Bar
from ..device import release
from ..inference.prompts import TrainingPrompt, training_prompts
from ..inference.video_file import to_images, write_mp4, write_pngs
from ..memory.estimate import DECODING, SAMPLING
from .settings import SampleSettings, SavingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..architectures.protocol import Architecture

logger = logging.getLogger(__name__)


class Samples:
    """The prompts of a run with their encoded texts."""

    def __init__(self, settings: SampleSettings, saving: SavingSettings, architecture: Architecture) -> None:
        """Reads and checks the prompt file; loads nothing. UserError for bad prompts."""
        self._settings = settings
        self._saving = saving
        self.architecture = architecture
        self._texts: dict[str, dict[str, Tensor]] = {}
        self._conditions: dict[int, dict[str, Tensor]] = {}
        self._prompts: list[TrainingPrompt] = []
        self.doing = ""
        """The phase (`memory.estimate`) it is in, or was in when it failed."""
        if settings.sample_prompts:
            self._prompts = training_prompts(settings.sample_prompts, architecture)

    def encode(self, device: torch.device) -> None:
        """Encode all prompts and free the text encoder."""
        if not self._prompts:
            return
        logger.info("cache Text Encoder outputs for sample prompt: %s", self._settings.sample_prompts)
        job.phase("encoding the sample prompts")
        encoder = self.architecture.text_encoder(device)
        logger.info("encoding with Text Encoder 1")
        for prompt in self._prompts:
            for text in self.architecture.texts(prompt.request):
                if text not in self._texts:
                    self._texts[text] = {name: tensor.cpu() for name, tensor in encoder.encode([text])[0].items()}
        del encoder
        release(device)
        images = self.architecture.condition_encoder(device)
        if images is not None:
            for prompt in self._prompts:
                self._conditions[prompt.index] = {name: tensor.cpu() for name, tensor in images.encode(prompt.request).items()}
            del images
            release(device)

    @property
    def any(self) -> bool:
        """Whether there are prompts."""
        return bool(self._prompts)

    def due(self, step: int, epoch: int | None = None) -> bool:
        """Whether samples are to be made after `step`, or after `epoch` (1-based) when that is given. Step 0 is before training."""
        if not self._prompts:
            return False
        settings = self._settings
        if step == 0:
            return bool(settings.sample_at_first)
        every, count = (settings.sample_every_n_steps, step) if epoch is None else (settings.sample_every_n_epochs, epoch)
        return every is not None and count % every == 0

    def come_late(self, steps: int, epochs: int) -> bool:
        """Whether a training of so many ends before the first are due."""
        settings = self._settings
        times = ((settings.sample_every_n_steps, steps), (settings.sample_every_n_epochs, epochs))
        return self.any and not settings.sample_at_first and not any(every is not None and every <= last for every, last in times)

    def sampled(self, transformer: nn.Module, step: int, device: torch.device, each: Callable[[], object] = lambda: None) -> list[Tensor]:
        """Sample every prompt. each: done after every denoising step. Raises StopRequested when the job is to stop meanwhile."""
        logger.info("generating sample images at step: %d", step)
        job.emit(events.Sampling(step, len(self._prompts)))
        self.doing = SAMPLING
        with exhausted.during("sampling"):
            return [self._sample(prompt, transformer, device, each) for prompt in self._prompts]

    def write(self, latents: Sequence[Tensor], step: int, epoch: int | None, device: torch.device) -> list[Path]:
        """Load the VAE, decode what was sampled and write it. Raises StopRequested when the job is to stop meanwhile."""
        self.doing = DECODING
        decoder = self.architecture.latent_decoder(device)
        written = []
        for prompt, one in zip(self._prompts, latents, strict=True):
            logger.info("Decoding video from latents: %s", one.shape)
            with exhausted.during("decoding samples"):
                video = decoder.decode(one.to(device))
            path = self._write(prompt, video, step, epoch)
            logger.info("Decoding complete")
            job.emit(events.Sample(str(path), step, prompt.request.prompt, prompt.index))
            written.append(path)
        del decoder
        release(device)
        return written

    def _sample(self, prompt: TrainingPrompt, transformer: nn.Module, device: torch.device, each: Callable[[], object]) -> Tensor:
        request = prompt.request
        for label, value in _described(prompt).items():
            logger.info("%s: %s", label, value)
        with Bar(self.architecture.steps(request), f"Sampling timesteps for prompt {prompt.index + 1}") as bar:

            def advance(count: int) -> None:
                bar.update(count)
                each()

            return self.architecture.sample(
                transformer, request, self._texts, self._conditions.get(prompt.index, {}),
                device=device, progress=advance,
            ).cpu()  # fmt: skip

    def _write(self, prompt: TrainingPrompt, video: Tensor, step: int, epoch: int | None) -> Path:
        folder = Path(self._saving.output_dir) / "sample"
        when = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
        seed = f"_{prompt.request.seed}" if prompt.seed_given else ""
        name = f"{self._saving.output_name}_{when}_{prompt.index:02d}_{time.strftime('%Y%m%d%H%M%S')}{seed}"
        images = to_images(video)
        if len(images) == 1:
            return write_pngs(folder, name, images)[0]
        return write_mp4(folder / f"{name}.mp4", images, self.architecture.card.fps)


def _described(prompt: TrainingPrompt) -> dict[str, object]:
    """What the log says about a sample, in musubi-tuner's words."""
    request = prompt.request
    lines: dict[str, object] = {
        "prompt": request.prompt,
        "height": request.height,
        "width": request.width,
        "frame count": request.frames,
        "sample steps": request.steps,
        "guidance scale": 1.0 if request.embedded_guidance is None else request.embedded_guidance,
        "discrete flow shift": request.flow_shift,
    }
    if prompt.seed_given:
        lines["seed"] = request.seed
    if request.needs_negative:
        lines |= {"negative prompt": request.negative_prompt, "cfg scale": request.guidance.scale}
    return lines
