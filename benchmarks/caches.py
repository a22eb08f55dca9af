"""Random caches of a few clips, in files that both engines read, with the dataset file that names them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from musubi_backend.architectures import cards
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.names import LatentName, latent_name, text_name
from torch import Tensor

from .models import DTYPES, Measured

CHANNELS, TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH, IMAGE_TOKENS = 16, 4096, 768, 1152, 729


def write_dataset(model: Measured, folder: Path, clips: int = 4, seed: int = 1) -> Path:
    """Latent and text caches of `clips` random clips. Returns the path of their dataset file."""
    card = cards()[model.architecture]
    cache, videos = folder / "cache", folder / "videos"
    cache.mkdir(parents=True, exist_ok=True)
    videos.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = (model.frames - 1) * 4 + 1, model.height * 8, model.width * 8
    section = 0 if card.id == "fp" else None
    for number in range(clips):
        stem = f"clip{number}"
        path = cache / latent_name(LatentName(stem, width, height, 0, frames, section), card.id)
        save_latents(path, _latents(model, generator), card, width=width, height=height, frame_count=frames)
        save_text(cache / text_name(stem, card.id), _text(model, generator), card, caption=f"clip {number}")
    config = folder / "dataset.toml"
    config.write_text(
        f'[general]\nresolution = [{width}, {height}]\ncaption_extension = ".txt"\nbatch_size = 1\nenable_bucket = true\n\n'
        f"[[datasets]]\nvideo_directory = {json.dumps(str(videos))}\ncache_directory = {json.dumps(str(cache))}\n"
        f'target_frames = [{frames}]\nframe_extraction = "head"\n',
        encoding="utf-8",
    )
    return config


def _latents(model: Measured, generator: torch.Generator) -> dict[str, Tensor]:
    def random(frames: int) -> Tensor:
        return torch.randn(CHANNELS, frames, model.height, model.width, generator=generator)

    if model.architecture == "wan":
        return {"latents": random(model.frames).bfloat16()}
    if model.architecture == "hv":
        return {"latents": random(model.frames).to(DTYPES[model.dtype])}
    # the last section of a clip: the frames before it do not exist yet, so their latents are the history's
    window = model.frames
    tensors = {"latents": random(window), "latents_clean": random(2), "latents_clean_2x": random(2), "latents_clean_4x": random(16)}
    start, indices = 1, {}
    for name, length in (("latent_indices", window), ("clean", 1), ("clean_latent_2x_indices", 2), ("clean_latent_4x_indices", 16)):
        indices[name] = torch.arange(start, start + length)
        start += length
    indices["clean_latent_indices"] = torch.cat([torch.zeros(1, dtype=torch.int64), indices.pop("clean")])
    image = torch.randn(IMAGE_TOKENS, IMAGE_WIDTH, generator=generator)
    return {name: tensor.to(DTYPES[model.dtype]) for name, tensor in {**tensors, "image_embeddings": image}.items()} | indices


def _text(model: Measured, generator: torch.Generator) -> dict[str, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPES[model.dtype])  # musubi-tuner casts no text where nothing is mixed

    def mask(length: int) -> Tensor:
        return (torch.arange(length) < model.text_tokens).long()

    if model.architecture == "wan":
        return {"varlen_t5": random(model.text_tokens, TEXT_WIDTH).bfloat16()}
    if model.architecture == "hv":
        return {"llm": random(256, TEXT_WIDTH), "llm_mask": mask(256), "clipL": random(POOLED_WIDTH), "clipL_mask": mask(77)}
    vectors = {"llama_vec": random(512, TEXT_WIDTH), "clip_l_pooler": random(POOLED_WIDTH)}
    return {**vectors, "llama_attention_mask": mask(512).bool()}
