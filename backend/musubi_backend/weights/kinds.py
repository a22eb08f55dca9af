"""The kinds of weight files by the tensor names only they have. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .safetensors_file import TensorInfo

Shapes = Mapping[str, TensorInfo | None]


@dataclass(frozen=True)
class Kind:
    """What a file is: an id for code, a name for people, and how it was recognised (e.g. "t2v, 14B")."""

    id: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


@dataclass(frozen=True)
class Rule:
    """A file is of this kind when it has all of `has` and none of `lacks` (exact names, after stripping a known prefix)."""

    id: str
    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    detail: Callable[[Shapes], str] | None = None


RULES = (
    Rule("flux2_transformer", "FLUX.2 transformer", ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight")),
    Rule("flux_transformer", "FLUX.1 transformer", ("double_blocks.0.img_attn.qkv.weight", "txt_in.weight")),
    Rule("qwen_image_transformer", "Qwen-Image transformer", ("transformer_blocks.0.img_mlp.net.0.proj.weight", "txt_norm.weight")),
    Rule(
        "flux_transformer", "FLUX.1 transformer in diffusers' layout", ("single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight")
    ),
    Rule("z_image_transformer", "Z-Image transformer", ("cap_embedder.0.weight", "context_refiner.0.attention.qkv.weight")),
    Rule("z_image_transformer", "Z-Image transformer", ("cap_embedder.0.weight", "context_refiner.0.attention.to_q.weight")),
    Rule("ltx_transformer", "LTX-Video transformer", ("transformer_blocks.0.scale_shift_table", "patchify_proj.weight")),
    Rule("sd3_transformer", "Stable Diffusion 3 transformer", ("joint_blocks.0.x_block.attn.qkv.weight",)),
    Rule("sdxl_model", "Stable Diffusion XL model", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    Rule("sd_model", "Stable Diffusion model", ("input_blocks.0.0.weight", "time_embed.0.weight")),
    Rule("image_vae", "image VAE (Stable Diffusion, FLUX)", ("encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.conv1.weight")),
    Rule(
        "image_vae",
        "image VAE in diffusers' layout",
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight"),
    ),
    Rule("umt5", "umt5-xxl text encoder", ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.attn.q.weight")),
    Rule("umt5", "umt5-xxl text encoder", ("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")),
    Rule("t5", "T5 text encoder", ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    Rule("t5", "T5 text encoder", ("encoder.embed_tokens.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    Rule("clip_vision", "CLIP vision encoder", ("visual.transformer.0.attn.to_qkv.weight",)),
    Rule("clip_vision", "CLIP vision encoder", ("visual.patch_embedding.weight", "visual.cls_embedding")),
    Rule(
        "siglip",
        "SigLIP vision encoder",
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.position_embedding.weight"),
        ("vision_model.embeddings.class_embedding",),
    ),
    Rule(
        "clip_vision",
        "CLIP vision encoder",
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.class_embedding"),
    ),
    Rule(
        "clip_l",
        "CLIP-L text encoder",
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.embeddings.token_embedding.weight"),
        ("vision_model.embeddings.class_embedding",),
    ),
    Rule("clip_l", "CLIP-L text encoder", ("encoder.layers.0.self_attn.q_proj.weight", "embeddings.token_embedding.weight")),
    Rule(
        "siglip",
        "SigLIP vision encoder",
        ("encoder.layers.0.self_attn.q_proj.weight", "embeddings.patch_embedding.weight", "post_layernorm.weight"),
        ("embeddings.class_embedding",),
    ),
    Rule("qwen_vl", "Qwen2.5-VL text encoder", ("visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.q_proj.weight")),
    Rule("qwen_vl", "Qwen2.5-VL", ("model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.self_attn.q_proj.weight")),
    Rule("llama", "Llama (LLaVA-Llama3) text encoder", ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight")),
    Rule("llama", "Llama (LLaVA-Llama3) text encoder", ("layers.0.self_attn.q_proj.weight", "embed_tokens.weight")),
    Rule("llama", "LLaVA-Llama3 model", ("language_model.model.layers.0.self_attn.q_proj.weight",)),
    Rule("llama", "LLaVA-Llama3 model", ("model.language_model.layers.0.self_attn.q_proj.weight",)),
)
"""Files of models that are not trained here, and of encoders. Those of an architecture are in its folder (`kinds.py`) and come first."""

LORAS = (
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](attn[._]add_|img_mlp|txt_mlp)"),
    ("Stable Diffusion", r"(input_blocks|down_blocks|lora_te)"),
)
"""Whose layers a LoRA file names: a title, and a pattern that finds such a name."""
