"""Both transformers against diffusers' classes, with small random weights. Importing diffusers takes seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import Clean, FramePackTransformer
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from torch import Tensor

FP32 = 1e-5  # the order of sums differs
SIZES: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1,
    "mlp_ratio": 4.0, "text_embed_dim": 20, "pooled_projection_dim": 12, "rope_axes_dim": (4, 6, 6), "guidance_embeds": True,
}  # fmt: skip
OURS: dict[str, Any] = {
    "dim": 32, "num_heads": 2, "mlp_dim": 128, "num_double_layers": 2, "num_single_layers": 2, "text_dim": 20, "pooled_dim": 12,
    "num_refiner_layers": 1, "rope_widths": (4, 6, 6),
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(5)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def filled(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(randn(*parameter.shape) * (0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))
    return model.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def original_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names and split linears -> HunyuanVideo's own, fused."""
    names = (
        ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
        ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
        ("context_embedder.time_text_embed.text_embedder", "txt_in.c_embedder"), ("context_embedder.proj_in", "txt_in.input_embedder"),
        ("context_embedder.token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks"),
        ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"), ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"), ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("x_embedder", "img_in"), ("single_transformer_blocks", "single_blocks"), ("transformer_blocks", "double_blocks"),
        ("norm1_context.linear", "txt_mod.linear"), ("norm1.linear", "img_mod.linear"), (".norm.linear", ".modulation.linear"),
        ("attn.to_out.0", "img_attn_proj"), ("attn.to_add_out", "txt_attn_proj"), ("attn.norm_added_q", "txt_attn_q_norm"),
        ("attn.norm_added_k", "txt_attn_k_norm"), ("ff_context.net.0.proj", "txt_mlp.fc1"), ("ff_context.net.2", "txt_mlp.fc2"),
        ("ff.net.0.proj", "img_mlp.fc1"), ("ff.net.2", "img_mlp.fc2"), ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    )  # fmt: skip
    single = (("attn.norm_q", "q_norm"), ("attn.norm_k", "k_norm"), ("proj_out", "linear2"))
    double = (("attn.norm_q", "img_attn_q_norm"), ("attn.norm_k", "img_attn_k_norm"))
    refiner = (("img_attn_proj", "self_attn_proj"), ("img_mlp", "mlp"), ("norm_out.linear", "adaLN_modulation.1"))
    fused = {"attn.to_q": ["attn.to_k", "attn.to_v"], "attn.add_q_proj": ["attn.add_k_proj", "attn.add_v_proj"]}
    result = {}
    for name, tensor in state.items():
        if any(part in name for parts in fused.values() for part in parts) or "proj_mlp" in name:
            continue
        for first, others in fused.items():
            if first in name:
                tensor = torch.cat([tensor, *(state[name.replace(first, other)] for other in others)])
                name = name.replace(first, {"attn.to_q": "img_attn_qkv", "attn.add_q_proj": "txt_attn_qkv"}[first])
                if "single" in name:
                    tensor = torch.cat([tensor, state[name.replace("img_attn_qkv", "proj_mlp")]])
                    name = name.replace("img_attn_qkv", "linear1")
        if "refiner" in name:
            name = name.replace("img_attn_qkv", "self_attn_qkv").replace("norm_out.linear", "adaLN_modulation.1")
        elif name.startswith("norm_out"):
            scale, shift = tensor.chunk(2)
            tensor = torch.cat([shift, scale])
        elif name.startswith("proj_out"):
            name = name.replace("proj_out", "final_layer.linear")
        for ours in (names, single if "single" in name else double, refiner if "refiner" in name else ()):
            for old, new in ours:
                name = name.replace(old, new)
        result[name] = tensor
    return result


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[9], [9, 4]])
def test_hunyuan_video_equals_diffusers(lengths: list[int]) -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    theirs = filled(HunyuanVideoTransformer3DModel(in_channels=16, out_channels=16, patch_size=2, patch_size_t=1, **SIZES))
    ours = HunyuanTransformer(HunyuanGeometry(**OURS)).eval()
    ours.load_state_dict(original_layout(theirs.state_dict()))
    count = len(lengths)
    latents, times = randn(count, 16, 3, 4, 6), torch.linspace(900, 200, count)
    text, pooled, guidance = randn(count, 12, 20), randn(count, 12), torch.full((count,), 6000.0)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        expected = theirs(latents, times, text, mask, pooled, guidance, return_dict=False)[0]
        assert difference(ours(latents, times, text, mask, pooled, guidance), expected) < FP32


@pytest.mark.slow
def test_framepack_equals_diffusers() -> None:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    theirs = filled(
        HunyuanVideoFramepackTransformer3DModel(
            in_channels=16, out_channels=16, patch_size=2, patch_size_t=1, has_image_proj=True, image_proj_dim=40,
            has_clean_x_embedder=True, **SIZES,
        )
    )  # fmt: skip
    ours = FramePackTransformer(FramePackGeometry(**OURS, image_dim=40)).eval()
    ours.load_state_dict(theirs.state_dict())
    latents, times, text, pooled = randn(1, 16, 3, 8, 8), torch.tensor([700.0]), randn(1, 12, 20), randn(1, 12)
    mask, guidance, image = (torch.arange(12) < 7)[None], torch.tensor([10000.0]), randn(1, 5, 40)
    indices = torch.tensor([[0, 1, 2]]) + 4
    history = [
        Clean(randn(1, 16, 2, 8, 8), torch.tensor([[0, 9]])), Clean(randn(1, 16, 2, 8, 8), torch.tensor([[10, 11]])),
        Clean(randn(1, 16, 16, 8, 8), torch.arange(16)[None] + 12),
    ]  # fmt: skip
    with torch.no_grad():
        past = [part for clean in history for part in (clean.latents, clean.indices[0])]  # diffusers has one list of positions for a batch
        expected = theirs(latents, times, text, mask, pooled, image, indices[0], guidance, *past, return_dict=False)[0]
        assert difference(ours(latents, times, text, mask, pooled, guidance, image, indices, *history), expected) < FP32
