"""The names of layers of models that are not trained here, but have names of ours or LoRA files in our layouts. Standard library only."""

from __future__ import annotations

from .naming import Naming, Row, Table


def _qwen_rows() -> tuple[Row, ...]:
    attention = ("norm_q", "norm_k", "to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out",
                 "norm_added_q", "norm_added_k")  # fmt: skip
    others = ("img_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mod.1", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    outside = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2", "txt_norm", "img_in", "txt_in",
               "norm_out.linear", "proj_out")  # fmt: skip
    names = [*outside, *(f"transformer_blocks.{{}}.attn.{name}" for name in attention), *(f"transformer_blocks.{{}}.{n}" for n in others)]
    return tuple(((name,),) for name in names)


QWEN_ROWS = _qwen_rows()
TABLES = (Table((Naming("qwen_image", "Qwen-Image"),), QWEN_ROWS),)
NAMINGS = frozenset(naming.id for table in TABLES for naming in table.namings)
