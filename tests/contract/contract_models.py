"""Tiny transformers of every family in the dtype of the real files, and caches to train them on, written as the backend writes its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from musubi_backend import architectures
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.framepack.sections import History, Section
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.names import LatentName, latent_name, text_name
from musubi_backend.demo.models import KINDS
from musubi_backend.weights.geometry import GEOMETRY_KEY
from musubi_backend.weights.safetensors_file import save_atomic
from torch import Tensor, nn

SIDE, WINDOW, CLIPS, BATCH = 32, 2, 4, 2
TEXT, POOLED, IMAGE = 64, 32, 48
"""Widths of text, pooled text and image features."""
_JOINT = {"dim": 64, "num_heads": 2, "mlp_dim": 128, "num_double_layers": 2, "num_single_layers": 4, "text_dim": TEXT, "pooled_dim": POOLED}
_JOINT |= {"num_refiner_layers": 1, "rope_widths": (4, 14, 14)}  # type: ignore[dict-item]


def _wan() -> tuple[nn.Module, str]:
    geometry = WanGeometry(dim=64, ffn_dim=128, num_heads=2, num_layers=3, text_dim=TEXT, text_len=16, freq_dim=32)
    return WanTransformer(geometry), geometry.to_json()


def _hunyuan() -> tuple[nn.Module, str]:
    geometry = HunyuanGeometry(**_JOINT)
    return HunyuanTransformer(geometry), geometry.to_json()


def _framepack() -> tuple[nn.Module, str]:
    geometry = FramePackGeometry(**_JOINT, image_dim=IMAGE)
    return FramePackTransformer(geometry), geometry.to_json()


def _masked(name: str, mask: str, pooled: str) -> Callable[[int], dict[str, Tensor]]:
    """Text caches of the families with Llama and CLIP-L: 8 tokens, the last ones padding."""

    def text(item: int) -> dict[str, Tensor]:
        tokens = torch.arange(8) < 4 + item % 4
        return {name: _normal(8, TEXT, seed=200 + item), mask: tokens, pooled: _normal(POOLED, seed=300 + item)}

    return text


def _sections(latents: Tensor) -> dict[str, Tensor]:
    start = latents[:, :1]
    return {**History(start, WINDOW, f1=False).conditions(Section(0)), "image_embeddings": _normal(9, IMAGE, seed=400)}


@dataclass(frozen=True)
class Family:
    """kind: of the demo models, which know the dtype of the real files. make: the transformer and its sizes. text: the cached text of an
    item. beside: what latent caches hold beside their latents. flags: of trainer and generator. encoders: the files that a generator asks
    for beside the transformer; here they are never read. swap: a possible `--blocks_to_swap`."""

    card_id: str
    kind: str
    make: Callable[[], tuple[nn.Module, str]]
    text: Callable[[int], dict[str, Tensor]]
    swap: int
    encoders: tuple[str, ...]
    flags: tuple[str, ...] = ()
    generator: tuple[str, ...] = ("--video_size", str(SIDE), str(SIDE), "--video_length", "5", "--flow_shift", "3")
    beside: Callable[[Tensor], Mapping[str, Tensor]] = field(default=lambda latents: {})
    experts: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the real file that the transformer stands for."""
        dtype: torch.dtype = getattr(torch, KINDS[self.kind]["dit"].dtype)
        return dtype

    def tool(self, name: str) -> str:
        return f"{architectures.cards()[self.card_id].tool_prefix}{name}"


def _wan_text(item: int) -> dict[str, Tensor]:
    return {"varlen_t5": _normal(4 + item, TEXT, seed=200 + item)}


_ENCODERS = ("text_encoder1", "text_encoder2", "vae")
FAMILIES = {
    "wan": Family("wan", "wan", _wan, _wan_text, swap=1, encoders=("t5", "vae"), flags=("--task", "t2v-1.3B")),
    "wan22": Family("wan", "wan22", _wan, _wan_text, swap=1, encoders=("t5", "vae"), flags=("--task", "t2v-A14B"), experts=True),
    "hv": Family("hv", "hv", _hunyuan, _masked("llm", "llm_mask", "clipL"), swap=2, encoders=_ENCODERS),
    "fp": Family(
        "fp", "fp", _framepack, _masked("llama_vec", "llama_attention_mask", "clip_l_pooler"), swap=2, beside=_sections,
        encoders=(*_ENCODERS, "image_encoder"),
        generator=("--video_size", str(SIDE), str(SIDE), "--latent_window_size", str(WINDOW), "--video_sections", "1"),
    ),
}  # fmt: skip


def write_transformers(family: Family, folder: Path) -> list[str]:
    """Words of the command line that name the family's transformer, or its two experts."""
    words = []
    for number, option in enumerate(("dit", "dit_high_noise") if family.experts else ("dit",)):
        model, sizes = family.make()
        generator = torch.Generator().manual_seed(5 + number)
        for name, parameter in sorted(model.named_parameters()):
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1, generator=generator)
            if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
                parameter.data += 1
        path = folder / f"{option}.safetensors"
        save_atomic({name: tensor.to(family.dtype) for name, tensor in model.state_dict().items()}, path, {GEOMETRY_KEY: sizes})
        words += [f"--{option}", str(path)]
    return words


def write_caches(family: Family, folder: Path) -> Path:
    """Latent and text caches of a few clips, two of which make a batch. Returns the dataset file."""
    card = architectures.cards()[family.card_id]
    frames = 4 * WINDOW + 1 if card.sections else 5
    for item in range(CLIPS):
        latents = _normal(16, WINDOW, SIDE // 8, SIDE // 8, seed=100 + item)
        name = LatentName(f"clip{item}", SIDE, SIDE, 0, frames, 0 if card.sections else None)
        tensors = {"latents": latents, **family.beside(latents)}
        save_latents(folder / "cache" / latent_name(name, card.id), tensors, card, width=SIDE, height=SIDE, frame_count=frames)
        save_text(folder / "cache" / text_name(f"clip{item}", card.id), family.text(item), card, caption=f"clip {item}")
    (folder / "clips").mkdir()
    config = folder / "dataset.toml"
    lines = [
        "[general]", f"resolution = [{SIDE}, {SIDE}]", f"batch_size = {BATCH}", "caption_extension = '.txt'", "[[datasets]]",
        f"video_directory = '{(folder / 'clips').as_posix()}'", f"cache_directory = '{(folder / 'cache').as_posix()}'",
        f"target_frames = [{frames}]", *([f"fp_latent_window_size = {WINDOW}"] if card.sections else []),
    ]  # fmt: skip
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def conditions(family: Family) -> dict[str, Tensor]:
    """What the family's condition encoder would have made of a request."""
    if family.card_id != "fp":
        return {}
    return {"start 0": _normal(16, 1, SIDE // 8, SIDE // 8, seed=500).float(), "image 0": _normal(9, IMAGE, seed=400)}


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
