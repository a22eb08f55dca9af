"""First-and-last-frame models against diffusers: musubi-tuner, which cuts the image tokens after the first image, is no reference."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from musubi_backend.architectures.wan.model import IMAGE_TOKENS, WanGeometry, WanTransformer
from musubi_backend.errors import UserError

GEOMETRY = WanGeometry(
    dim=32, ffn_dim=48, num_heads=2, num_layers=2, in_dim=36, text_dim=20, text_len=512, freq_dim=16, image_dim=24,
    image_positions=2 * IMAGE_TOKENS,
)  # fmt: skip
NAMES = (
    (r"^text_embedder\.linear_1", "text_embedding.0"), (r"^text_embedder\.linear_2", "text_embedding.2"),
    (r"^time_embedder\.linear_1", "time_embedding.0"), (r"^time_embedder\.linear_2", "time_embedding.2"),
    (r"^time_proj", "time_projection.1"), (r"^image_embedder\.pos_embed", "img_emb.emb_pos"),
    (r"^image_embedder\.norm1", "img_emb.proj.0"), (r"^image_embedder\.norm2", "img_emb.proj.4"),
    (r"^image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^scale_shift_table", "head.modulation"), (r"^proj_out", "head.head"), (r"scale_shift_table", "modulation"),
    (r"\.attn1\.", ".self_attn."), (r"\.attn2\.", ".cross_attn."), (r"\.to_(q|k|v)\.", r".\1."), (r"\.to_out\.0\.", ".o."),
    (r"\.add_(k|v)_proj\.", r".\1_img."), (r"\.norm_added_k\.", ".norm_k_img."), (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."), (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
)  # fmt: skip


def ours(name: str) -> str:
    name = name.removeprefix("condition_embedder.")
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.slow
def test_output_equals_diffusers() -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=36, out_channels=16, text_dim=20, freq_dim=16, ffn_dim=48, num_layers=2,
        image_dim=24, added_kv_proj_dim=32, pos_embed_seq_len=2 * IMAGE_TOKENS,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))
    model = WanTransformer(GEOMETRY).eval()
    model.load_state_dict({ours(name): tensor for name, tensor in theirs.state_dict().items()})
    video, text, image = torch.randn(1, 36, 2, 4, 6), torch.randn(7, 20), torch.randn(1, 2 * IMAGE_TOKENS, 24)
    padded = torch.cat([text, torch.zeros(512 - 7, 20)])[None]
    times = torch.tensor([321.0])
    with torch.no_grad():
        expected = theirs(video, times, padded, image.view(2, IMAGE_TOKENS, 24), return_dict=False)[0]
        found = model(video[:, :16], times, [text], video[:, 16:], image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_image_for_a_model_of_two_is_rejected() -> None:
    model = WanTransformer(replace(GEOMETRY, num_layers=1))
    latents, extra = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 20, 1, 2, 2)
    with pytest.raises(UserError, match="takes a first and a last frame"):
        model(latents, torch.tensor([1.0]), [torch.zeros(1, 20)], extra, torch.zeros(1, IMAGE_TOKENS, 24))
