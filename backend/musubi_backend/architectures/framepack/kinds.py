"""How weight files of FramePack are recognised: by the tensor names only they have."""

from __future__ import annotations

from ...weights.kinds import Rule

RULES = (
    Rule("framepack_transformer", "FramePack transformer", ("clean_x_embedder.proj.weight", "transformer_blocks.0.attn.to_q.weight")),
    Rule(
        "framepack_transformer",
        "FramePack transformer",
        ("context_embedder.time_text_embed.timestep_embedder.linear_1.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    ),
)
LORAS = (("FramePack or FLUX (diffusers' layout)", r"single_transformer_blocks[._]\d"),)
