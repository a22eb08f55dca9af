"""From clips to a video on the simulated GPU: the tools of a family one after the other, as a user starts them, with demo models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from musubi_backend import architectures, events, job
from musubi_backend.__main__ import main
from musubi_backend.architectures.card import Card
from musubi_backend.demo.models import write_models
from musubi_backend.inference.video_file import write_mp4
from musubi_backend.training import distributed
from PIL import Image
from simulated_gpu import simulated_gpu

SIDE, FRAMES, WINDOW = 32, 9, 2
_VIDEO, _IMAGES, _ONE_FRAME = "video", "image", "one frame"
_LATENTS, _TEXTS, _DIT = ("vae", "clip", "image_encoder"), ("t5", "text_encoder1", "text_encoder2"), ("dit", "dit_high_noise")
_FEW = ("--network_args", "exclude_patterns=['.*']", "include_patterns=['.*blocks.0.*']")


@dataclass
class Folder:
    """Clips with control clips and images of the same names, and demo models of a kind."""

    path: Path
    models: dict[str, Path]
    card: Card

    def tool(self, name: str, parts: Sequence[str], *words: object) -> int:
        chosen = [word for part in parts if part in self.models for word in (f"--{part}", str(self.models[part]))]
        prefix = "" if self.card.id == "hv" and name.startswith("cache") else self.card.tool_prefix
        return main([prefix + name, *chosen, *map(str, words)])

    def write(self, data: str) -> Path:
        """The dataset file."""
        colours = np.random.default_rng(1).integers(0, 255, (2, FRAMES, SIDE, SIDE, 3), np.uint8)
        for folder, pixels in zip(("media", "controls"), colours, strict=True):
            (self.path / folder).mkdir()
            Image.fromarray(pixels[0]).save(self.path / f"{folder}.png")
            if data == _VIDEO:
                write_mp4(self.path / folder / "a.mp4", pixels, fps=16)
            else:
                Image.fromarray(pixels[0]).save(self.path / folder / "a.png")
        (self.path / "media/a.txt").write_text("a clip", encoding="utf-8")
        (self.path / "prompts.txt").write_text(
            f"a clip --w {SIDE} --h {SIDE} --f {FRAMES} --s 1 --i {self.path}/media.png", encoding="utf-8"
        )
        kind = _VIDEO if data == _VIDEO else _IMAGES
        lines = [
            "[general]", f"resolution = [{SIDE}, {SIDE}]", "caption_extension = '.txt'", "[[datasets]]",
            f"{kind}_directory = '{self.path / 'media'}'", f"cache_directory = '{self.path / 'cache'}'",
            f"control_directory = '{self.path / 'controls'}'", f"fp_latent_window_size = {WINDOW}",
            *([f"target_frames = [{FRAMES}]"] if data == _VIDEO else []),
            *(["fp_1f_clean_indices = [0]", "fp_1f_target_index = 1"] if data == _ONE_FRAME else []),
        ]  # fmt: skip
        path = self.path / "dataset.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def filled(self, words: Sequence[str]) -> list[str]:
        """With the paths of the folder."""
        return [word.format(folder=self.path) for word in words]


@contextmanager
def _folder(kind: str) -> Iterator[Folder]:
    card = next(card for card in architectures.cards().values() if kind.startswith(card.id))
    with tempfile.TemporaryDirectory() as root:
        yield Folder(Path(root), write_models(Path(root) / "models", kind=kind), card)


@contextmanager
def _training_on(device: str) -> Iterator[None]:
    """As accelerate sets a process of several up; alone, a trainer takes the GPU that it sees."""
    if device == "cuda":
        yield
        return
    torch.cuda.set_device(device)
    with patch.object(distributed, "start", lambda _: distributed.OneProcess(torch.device(device))):
        yield


def tools(
    device: str, kind: str, task: str, data: str, caching: Sequence[str], training: Sequence[str], generating: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Caches of latents and texts, two steps of training, and videos with the LoRA; each with further words, in which {folder} is the
    folder. caching: of latents. training: with prompts for samples it is asked for all it can be asked after its first step. Of each tool
    its exit code; what the training wrote; and the races of all."""
    of_task = ("--task", task) if task else ()
    with _folder(kind) as folder, simulated_gpu(count=2) as gpu, _training_on(device):
        data_words = ("--dataset_config", folder.write(data))
        codes = {
            "latents": folder.tool("cache_latents", _LATENTS, *data_words, "--device", device, *folder.filled(caching)),
            "texts": folder.tool("cache_text_encoder_outputs", _TEXTS, *data_words, "--device", device),
        }
        words = [
            *of_task, "--sdpa", *data_words, "--output_dir", folder.path / "loras", "--output_name", "lora",
            "--network_module", folder.card.network_module, "--network_dim", "4", "--max_train_steps", "2", "--seed", "1", "--vram", "off",
            *_FEW, *folder.filled(training),
        ]  # fmt: skip
        asked = "--sample_prompts" in training
        for request in (events.SAVE, events.PAUSE, events.SAMPLE, events.RESUME) if asked else ():
            job._hear(request)
        codes["training"] = folder.tool("train_network", (*_DIT, *(_LATENTS + _TEXTS if asked else ())), *words)
        for number, more in enumerate(generating):
            size = ("--device", device, "--video_size", SIDE, SIDE, "--infer_steps", "2", "--seed", "1", "--prompt", "a clip")
            loras = sorted((folder.path / "loras").glob("lora*.safetensors"))[-1:]
            words = [*of_task, *size, "--save_path", folder.path / "made", "--lora_weight", *loras, *folder.filled(more)]
            codes[f"video {number}"] = folder.tool("generate_video", (*_DIT, *_LATENTS, *_TEXTS), *words)
        written = sorted(str(path.relative_to(folder.path / "loras")) for path in folder.path.glob("loras/**/*"))
        return {"codes": codes, "races": gpu.order.races, "written": written}
