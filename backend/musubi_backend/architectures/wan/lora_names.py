"""The names of Wan's layers in LoRA files: its own, and diffusers'. Sources: the state dicts of github.com/Wan-Video/Wan2.1 and of
diffusers' version."""

from __future__ import annotations

from ...lora.naming import Naming, Row, Table


def _rows() -> tuple[Row, ...]:
    pairs = {
        "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "norm3": "norm2",
        "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj", "cross_attn.norm_k_img": "attn2.norm_added_k",
    }  # fmt: skip
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        pairs |= {f"{ours}.{x}": f"{theirs}.to_{x}" for x in "qkv"}
        pairs |= {f"{ours}.o": f"{theirs}.to_out.0", f"{ours}.norm_q": f"{theirs}.norm_q", f"{ours}.norm_k": f"{theirs}.norm_k"}
    outside = {
        "text_embedding.0": "text_embedder.linear_1", "text_embedding.2": "text_embedder.linear_2", "time_projection.1": "time_proj",
        "time_embedding.0": "time_embedder.linear_1", "time_embedding.2": "time_embedder.linear_2",
        "img_emb.proj.0": "image_embedder.norm1", "img_emb.proj.1": "image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "image_embedder.ff.net.2", "img_emb.proj.4": "image_embedder.norm2",
    }  # fmt: skip
    rows: list[Row] = [((f"blocks.{{}}.{ours}",), (f"blocks.{{}}.{theirs}",)) for ours, theirs in pairs.items()]
    rows += [((ours,), (f"condition_embedder.{theirs}",)) for ours, theirs in outside.items()]
    rows += [(("patch_embedding",), ("patch_embedding",)), (("head.head",), ("proj_out",))]
    # Not layers but tables, changed by full differences (lightx2v's `diff_m`).
    rows += [(("blocks.{}.modulation",), ("blocks.{}.scale_shift_table",)), (("head.modulation",), ("scale_shift_table",))]
    return tuple(rows)


TABLE = Table((Naming("wan", "Wan"), Naming("wan_diffusers", "Wan, diffusers' names", diffusers=True)), _rows())
