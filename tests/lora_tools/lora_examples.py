"""LoRAs of known deltas, written in the layouts of other programs; and the deltas a file has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from musubi_backend.lora import layer_names
from musubi_backend.lora.delta import delta
from musubi_backend.lora.shapes import changes_weight
from musubi_backend.weights.safetensors_file import save_atomic
from torch import Tensor

WIDTH = 8
LAYOUTS = ("musubi", "comfy", "comfy lora_down", "diffusers", "peft", "lycoris", "onetrainer", "bare", "ai-toolkit", "comfy names")
_TITLES = {
    "musubi": "musubi-tuner", "comfy": "ComfyUI (diffusion-pipe, ai-toolkit)", "comfy lora_down": "ComfyUI (diffusion-pipe, ai-toolkit)",
    "diffusers": "diffusers", "peft": "PEFT", "lycoris": "LyCORIS", "onetrainer": "OneTrainer", "bare": "DiffSynth",
    "ai-toolkit": "ai-toolkit", "comfy names": "ComfyUI (diffusion-pipe, ai-toolkit)",
}  # fmt: skip
_SHAPES = {
    "wan": {"blocks.0.self_attn.q": (1, 1), "blocks.1.cross_attn.k_img": (1, 1), "blocks.11.ffn.0": (4, 1)},
    "hv": {"double_blocks.0.img_attn_qkv": (3, 1), "double_blocks.12.txt_mlp.fc2": (1, 4), "single_blocks.3.linear1": (7, 1),
           "single_blocks.3.linear2": (1, 5), "double_blocks.0.img_attn_proj": (1, 1)},
    "fp": {"transformer_blocks.0.attn.to_q": (1, 1), "transformer_blocks.0.attn.add_k_proj": (1, 1),
           "single_transformer_blocks.2.proj_mlp": (4, 1), "transformer_blocks.0.ff_context.net.0.proj": (4, 1),
           "single_transformer_blocks.2.attn.to_v": (1, 1)},
}  # fmt: skip


def layers_of(architecture: str) -> dict[str, Tensor]:
    """Path of a layer in the architecture's own naming -> the delta it is to have: of rank 2."""
    torch.manual_seed(0)
    return {path: torch.randn(rows * WIDTH, 2) @ torch.randn(2, columns * WIDTH) for path, (rows, columns) in _SHAPES[architecture].items()}


def write_layout(path: Path, layout: str, architecture: str, layers: Mapping[str, Tensor]) -> str:
    """Write `layers` as another program would; returns the beginning of its title. Layers that its naming keeps apart are split."""
    naming = {"wan": "wan_diffusers", "hv": "fp", "fp": "fp"}[architecture]
    if layout in ("musubi", "comfy", "comfy lora_down", "lycoris", "bare", "ai-toolkit"):
        naming = architecture
    if layout == "comfy names" and architecture == "hv":
        naming = "hv_comfy"
    state: dict[str, Tensor] = {}
    for own_path, matrix in layers.items():
        found = layer_names.find(own_path)
        assert found is not None
        names = layer_names.names_of(found.place, naming)
        width = matrix.shape[1]
        heights = [len(matrix)] if len(names) == 1 else [width] * 3 + ([4 * width] if len(names) == 4 else [])
        for name, block in zip(names, matrix.split(heights), strict=True):
            left, values, right = torch.linalg.svd(block, full_matrices=False)
            state |= _tensors(layout, name, left[:, :2] * values[:2], right[:2])
    metadata = {"software": '{"name": "ai-toolkit"}'} if layout == "ai-toolkit" else {}
    save_atomic({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return _TITLES[layout]


def deltas(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA weights -> its delta in float32, of a LoRA in musubi-tuner's layout."""
    several: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, part = key.partition(".")
        several.setdefault(name, {})[part] = tensor.float()
    return {name: delta(parts) for name, parts in several.items() if changes_weight(parts)}


def _tensors(layout: str, name: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    """The two factors of one layer in a layout; where it has an alpha, half the rank, with the factors to match."""
    underscored = {"musubi": "lora_unet_", "lycoris": "lycoris_", "onetrainer": "lora_transformer_"}.get(layout)
    if underscored:
        body = underscored + name.replace(".", "_")
        return {f"{body}.lora_up.weight": up * 2, f"{body}.lora_down.weight": down, f"{body}.alpha": torch.tensor(1.0)}
    prefix = {"diffusers": "transformer.", "peft": "base_model.model.", "bare": ""}.get(layout, "diffusion_model.")
    if layout == "comfy lora_down":
        body = f"{prefix}{name}"
        return {f"{body}.lora_up.weight": up * 2, f"{body}.lora_down.weight": down, f"{body}.alpha": torch.tensor(1.0)}
    default = ".default" if layout in ("peft", "bare") else ""
    return {f"{prefix}{name}.lora_B{default}.weight": up, f"{prefix}{name}.lora_A{default}.weight": down}
