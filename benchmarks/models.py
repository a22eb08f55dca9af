"""Random transformers of a chosen size, in files that both engines read, and what musubi-tuner must know of their sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.device import cpu_computes_in
from musubi_backend.weights.safetensors_file import save_atomic

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TRANSFORMERS: dict[type, Callable[[Any], torch.nn.Module]] = {
    WanGeometry: WanTransformer,
    HunyuanGeometry: HunyuanTransformer,
    FramePackGeometry: FramePackTransformer,
}


@dataclass(frozen=True)
class Measured:
    """A transformer and one clip's size: latent frames, height and width (tokens = f*h*w/4), and caption length in tokens.

    tool    of musubi-tuner's command line; flags: what it needs besides the common ones
    """

    name: str
    tool: str
    architecture: str
    flags: tuple[str, ...]
    geometry: WanGeometry | HunyuanGeometry | FramePackGeometry
    dtype: str
    frames: int
    height: int
    width: int
    text_tokens: int

    @property
    def musubi_geometry(self) -> dict[str, Any]:
        """The same sizes under musubi-tuner's names, for `timed_run.py`."""
        g = self.geometry
        if isinstance(g, WanGeometry):
            sizes = {"dim": g.dim, "ffn_dim": g.ffn_dim, "num_heads": g.num_heads, "num_layers": g.num_layers}
            return {**sizes, "freq_dim": g.freq_dim, "eps": g.eps}
        if isinstance(g, HunyuanGeometry):
            return {
                "hidden_size": g.dim,
                "heads_num": g.num_heads,
                "mlp_width_ratio": g.mlp_dim // g.dim,
                "mm_double_blocks_depth": g.num_double_layers,
                "mm_single_blocks_depth": g.num_single_layers,
                "rope_dim_list": list(g.rope_widths),
            }
        return {
            "num_attention_heads": g.num_heads,
            "attention_head_dim": g.dim // g.num_heads,
            "num_layers": g.num_double_layers,
            "num_single_layers": g.num_single_layers,
            "rope_axes_dim": list(g.rope_widths),
        }

    def write(self, path: Path, seed: int = 0) -> None:
        """The transformer with random weights (std 0.02, norms around 1) in the original key layout."""
        with torch.device("meta"):
            shapes = TRANSFORMERS[type(self.geometry)](self.geometry).state_dict()
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in shapes.items():
            values = torch.randn(shape.shape, generator=generator) * 0.02
            tensors[name] = (values + 1 if "norm" in name and name.endswith("weight") else values).to(DTYPES[self.dtype])
        save_atomic(tensors, path, {"musubi_geometry": self.geometry.to_json()})


_WAN = ("wan_train_network", "wan", ("--task", "t2v-1.3B", "--network_module", "networks.lora_wan"))
_HUNYUAN = ("hv_train_network", "hv", ("--network_module", "networks.lora"))
_FRAMEPACK = ("fpack_train_network", "fp", ("--network_module", "networks.lora_framepack"))
_FAST = "bf16" if torch.cuda.is_available() or cpu_computes_in(torch.bfloat16) else "fp32"  # never one that is imitated
_TINY, _MID = ("fp32", 3, 8, 8, 10), (_FAST, 5, 16, 16, 60)
_TINY_JOINT = {"dim": 64, "num_heads": 4, "mlp_dim": 256, "num_double_layers": 1, "num_single_layers": 2, "rope_widths": (4, 6, 6)}
_MID_JOINT = {"dim": 768, "num_heads": 6, "mlp_dim": 3072, "num_double_layers": 3, "num_single_layers": 6}

MODELS = (
    Measured("tiny Wan", *_WAN, WanGeometry(64, 128, 4, 2), *_TINY),
    Measured("mid Wan", *_WAN, WanGeometry(768, 4096, 6, 12), *_MID),
    Measured("tiny HunyuanVideo", *_HUNYUAN, HunyuanGeometry(**_TINY_JOINT), *_TINY),  # type: ignore[arg-type]
    Measured("mid HunyuanVideo", *_HUNYUAN, HunyuanGeometry(**_MID_JOINT), *_MID),
    Measured("tiny FramePack", *_FRAMEPACK, FramePackGeometry(**_TINY_JOINT), *_TINY),  # type: ignore[arg-type]
    Measured("mid FramePack", *_FRAMEPACK, FramePackGeometry(**_MID_JOINT), *_MID),
)
