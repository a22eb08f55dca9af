"""How weight files of HunyuanVideo are recognised: by the tensor names only they have."""

from __future__ import annotations

from ...weights.kinds import Rule

RULES = (
    Rule(
        "hunyuan_video_transformer", "HunyuanVideo transformer", ("double_blocks.0.img_attn_qkv.weight", "txt_in.t_embedder.mlp.0.weight")
    ),
    Rule(
        "hunyuan_video_15_transformer", "HunyuanVideo 1.5 transformer", ("double_blocks.0.img_attn_q.weight", "cond_type_embedding.weight")
    ),
    Rule(
        "hunyuan_video_transformer",
        "HunyuanVideo transformer",
        ("double_blocks.0.img_attn.qkv.weight", "txt_in.t_embedder.in_layer.weight"),
    ),
    Rule(
        "hunyuan_video_vae",
        "HunyuanVideo VAE",
        ("encoder.conv_in.conv.weight", "decoder.mid_block.resnets.0.norm1.weight", "quant_conv.weight"),
    ),
    Rule(
        "hunyuan_video_vae",
        "HunyuanVideo VAE",
        ("encoder.conv_in.conv.weight", "decoder.mid.block_1.norm1.weight", "quant_conv.weight"),
    ),
)
LORAS = (("HunyuanVideo or FLUX", r"double_blocks[._]\d"),)
