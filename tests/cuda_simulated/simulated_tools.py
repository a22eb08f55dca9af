"""From clips to a video on the simulated GPU: the tools of a family one after the other, as a user starts them, with demo models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from musubi_backend import architectures, job
from musubi_backend.__main__ import main
from musubi_backend.demo.models import write_models
from musubi_backend.inference.video_file import write_mp4
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
    prefix: str

    def tool(self, name: str, parts: Sequence[str], *words: object) -> int:
        chosen = [word for part in parts if part in self.models for word in (f"--{part}", str(self.models[part]))]
        prefix = "" if self.prefix == "hv_" and name.startswith("cache") else self.prefix
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
        yield Folder(Path(root), write_models(Path(root) / "models", kind=kind), card.tool_prefix)


def tools(
    kind: str, task: str, data: str, caching: Sequence[str], training: Sequence[str], *generating: Sequence[str]
) -> dict[str, Any]:
    """Caches of latents and texts, two steps of training, and videos with the LoRA; each with further words, in which {folder} is the
    folder. caching: of latents. training: none where it is empty. Of each tool its exit code; and the races of all."""
    of_task = ("--task", task) if task else ()
    with _folder(kind) as folder, simulated_gpu() as gpu:
        data_words = ("--dataset_config", folder.write(data))
        codes: dict[str, int] = {}
        if training:
            codes["latents"] = folder.tool("cache_latents", _LATENTS, *data_words, "--device", "cuda", *folder.filled(caching))
            codes["texts"] = folder.tool("cache_text_encoder_outputs", _TEXTS, *data_words, "--device", "cuda")
            network = next(card for card in architectures.cards().values() if kind.startswith(card.id)).network_module
            words = [
                *of_task, "--sdpa", *data_words, "--output_dir", folder.path / "loras", "--output_name", "lora", "--network_module", network,
                "--network_dim", "4", "--max_train_steps", "2", "--seed", "1", "--vram", "off", *_FEW, *folder.filled(training),
            ]  # fmt: skip
            parts = (*_DIT, *(_LATENTS + _TEXTS if "--sample_prompts" in training else ()))
            codes["training"] = folder.tool("train_network", parts, *words)
        lora = ("--lora_weight", folder.path / "loras/lora.safetensors") if training else ()
        for number, more in enumerate(generating):
            job._stop.clear()
            size = ("--video_size", SIDE, SIDE, "--infer_steps", "2", "--seed", "1", "--prompt", "a clip")
            words = [*of_task, *size, "--save_path", folder.path / "made", *lora, *folder.filled(more)]
            codes[f"video {number}"] = folder.tool("generate_video", (*_DIT, *_LATENTS, *_TEXTS), *words)
        return {"codes": codes, "races": gpu.order.races}
