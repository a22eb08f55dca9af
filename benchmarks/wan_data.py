"""Random Wan models and caches of a chosen size, in files that both engines read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

LATENT_CHANNELS, TEXT_DIM, FREQ_DIM = 16, 4096, 256
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Size:
    """Transformer sizes, latent frames/height/width (tokens = f*h*w/4) and caption length in tokens."""

    name: str
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    dtype: str
    frames: int
    height: int
    width: int
    text_tokens: int

    @property
    def geometry(self) -> dict[str, int | float]:
        sizes = {"dim": self.dim, "ffn_dim": self.ffn_dim, "num_heads": self.num_heads, "num_layers": self.num_layers}
        return {**sizes, "freq_dim": FREQ_DIM, "eps": 1e-6}


TINY = Size("tiny", 64, 128, 4, 2, "fp32", 3, 8, 8, 10)
MID = Size("mid", 768, 4096, 6, 12, "bf16", 5, 16, 16, 60)


def write_model(size: Size, path: Path, seed: int = 0) -> None:
    """A Wan text-to-video transformer in the original key layout, std 0.02, in the size's dtype."""
    generator = torch.Generator().manual_seed(seed)
    dim, ffn = size.dim, size.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, LATENT_CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
        **_linear("text_embedding.0", dim, TEXT_DIM),
        **_linear("text_embedding.2", dim, dim),
        **_linear("time_embedding.0", dim, FREQ_DIM),
        **_linear("time_embedding.2", dim, dim),
        **_linear("time_projection.1", 6 * dim, dim),
        **_linear("head.head", LATENT_CHANNELS * 4, dim),
    }
    for i in range(size.num_layers):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            for linear in "qkvo":
                shapes |= _linear(f"{block}.{attention}.{linear}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{x}.weight": (dim,) for x in "qk"}
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,), f"{block}.modulation": (1, 6, dim)}
        shapes |= {**_linear(f"{block}.ffn.0", ffn, dim), **_linear(f"{block}.ffn.2", dim, ffn)}
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * 0.02
        if "norm" in name and name.endswith("weight"):
            values += 1
        tensors[name] = values.to(DTYPES[size.dtype])
    geometry = {**size.geometry, "in_dim": LATENT_CHANNELS, "text_dim": TEXT_DIM}
    save_file(tensors, path, metadata={"musubi_geometry": json.dumps(geometry)})


def _linear(name: str, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def write_dataset(size: Size, folder: Path, clips: int = 4, seed: int = 1) -> Path:
    """Latent and text caches of `clips` random clips, with the dataset file that names them. Returns the file's path."""
    cache, videos = folder / "cache", folder / "videos"
    cache.mkdir(parents=True, exist_ok=True)
    videos.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = (size.frames - 1) * 4 + 1, size.height * 8, size.width * 8
    for i in range(clips):
        latents = torch.randn(LATENT_CHANNELS, size.frames, size.height, size.width, generator=generator).bfloat16()
        shape = f"{size.frames}x{size.height}x{size.width}"
        common = {"architecture": "wan", "format_version": "1.0.1"}
        save_file(
            {f"latents_{shape}_bfloat16": latents},
            cache / f"clip{i}_00000-{frames:03d}_{width:04d}x{height:04d}_wan.safetensors",
            metadata={**common, "width": str(width), "height": str(height), "frame_count": str(frames)},
        )
        text = torch.randn(size.text_tokens, TEXT_DIM, generator=generator).bfloat16()
        save_file({"varlen_t5_bfloat16": text}, cache / f"clip{i}_wan_te.safetensors", metadata={**common, "caption1": f"clip {i}"})
    config = folder / "dataset.toml"
    config.write_text(
        f'[general]\nresolution = [{width}, {height}]\ncaption_extension = ".txt"\nbatch_size = 1\nenable_bucket = true\n\n'
        f"[[datasets]]\nvideo_directory = {json.dumps(str(videos))}\ncache_directory = {json.dumps(str(cache))}\n"
        f'target_frames = [{frames}]\nframe_extraction = "head"\n',
        encoding="utf-8",
    )
    return config
