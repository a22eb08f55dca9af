"""A tiny HunyuanVideo transformer that a LoRA can teach (see `demo.teachable`), and how its relatives are filled.

The patch embedding is an isometry and the head its inverse; blocks add little to the stream; gates are open; the time acts through
shifts and scales.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...demo.teachable import ANCHOR, BLOCK_GAIN, HEAD_GAIN, basis
from ...weights.geometry import GEOMETRY_KEY

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...demo.parts import Content

DIM, MLP_DIM, HEADS, DOUBLE_LAYERS, SINGLE_LAYERS = 128, 256, 4, 2, 2
ROPE_WIDTHS = (4, 14, 14)
CONDITION_GAIN = 0.2
"""Size of time and text features in the condition. The guidance's is a hundredth: training tells another number than sampling."""
MODULATION_GAIN = 2.0

_OUTPUTS = ("attn_proj.weight", "mlp.fc2.weight", "linear2.weight", "to_out.0.weight", "to_add_out.weight", "net.2.weight")
_CONDITIONS = ("_in.mlp.2.weight", "_in.out_layer.weight", "embedder.mlp.2.weight", "embedder.linear_2.weight")
_MODULATIONS = ("_mod.linear", ".modulation.linear", ".norm1.linear", ".norm1_context.linear", ".norm.linear")
_REFINER_GATES = (".blocks.0.adaLN_modulation.1.bias", ".norm_out.linear.bias")


def hunyuan_transformer(text_dim: int, pooled_dim: int, seed: int, in_dim: int = 16) -> Content:
    """(tensors in the original layout, float32; metadata with the sizes). in_dim 32: of the image-to-video kind."""
    from .geometry import HunyuanGeometry
    from .model import HunyuanTransformer

    geometry = HunyuanGeometry(
        dim=DIM, num_heads=HEADS, mlp_dim=MLP_DIM, num_double_layers=DOUBLE_LAYERS, num_single_layers=SINGLE_LAYERS, in_dim=in_dim,
        text_dim=text_dim, pooled_dim=pooled_dim, num_refiner_layers=1, rope_widths=ROPE_WIDTHS,
    )  # fmt: skip
    return filled(HunyuanTransformer, geometry, "img_in.proj", "final_layer.linear", seed), {GEOMETRY_KEY: geometry.to_json()}


def filled(model: type, geometry: object, embedding: str, head: str, seed: int) -> dict[str, Tensor]:
    """Tensors of a transformer of this family. embedding, head: module paths of what takes in and gives out latents."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model(geometry).state_dict().items()}
    tensors = {name: _initial(name, shape, generator) for name, shape in shapes.items()}
    directions = basis(DIM, generator)
    patch = shapes[f"{head}.weight"][0]
    inner = directions[:, :patch]
    weight = torch.zeros(shapes[f"{embedding}.weight"])  # channels of a first frame add nothing until a LoRA makes use of them
    weight[:, : patch // 4] = inner.view(DIM, patch // 4, 1, 2, 2)
    norm = math.sqrt(patch * (1 + ANCHOR**2)) / math.sqrt(DIM)
    tensors[f"{embedding}.weight"] = weight
    tensors[f"{embedding}.bias"] = directions[:, patch] * ANCHOR * math.sqrt(patch)
    tensors[f"{head}.weight"] = (inner.t() * (norm * HEAD_GAIN)).contiguous()
    return tensors


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    import torch

    if len(shape) == 1:
        return _vector(name, shape)
    if name.startswith(("final_layer.adaLN", "norm_out.")):
        return torch.zeros(shape)
    gain = 1.0
    if name.endswith(_OUTPUTS) or (name.startswith("single_") and name.endswith("proj_out.weight")):
        gain = BLOCK_GAIN
    elif "guidance" in name and name.endswith(_CONDITIONS):
        gain = CONDITION_GAIN / 100
    elif name.endswith(_CONDITIONS):
        gain = CONDITION_GAIN
    elif name.endswith(tuple(f"{modulation}.weight" for modulation in _MODULATIONS)):
        gain = MODULATION_GAIN
    matrix = torch.empty(shape[0], math.prod(shape[1:]), dtype=torch.float64)
    return torch.nn.init.orthogonal_(matrix, gain, generator=generator).view(shape).float()


def _vector(name: str, shape: torch.Size) -> Tensor:
    """Norms are 1, biases 0, but for the gates, which are open."""
    import torch

    if "norm" in name and name.endswith(".weight"):
        return torch.ones(shape)
    value = torch.zeros(shape)
    if name.endswith(tuple(f"{modulation}.bias" for modulation in _MODULATIONS)):
        value.view(-1, 3, DIM)[:, 2] = 1
    elif "refiner" in name and name.endswith(_REFINER_GATES):
        value += 1
    return value
