"""The kinds of weight files by the tensor names only they have. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .safetensors_file import TensorInfo

Shapes = Mapping[str, TensorInfo | None]


@dataclass(frozen=True)
class Kind:
    """What a file is: an id for code, a name for people, and how it was told apart (e.g. "t2v, 14B")."""

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


def _wan_detail(shapes: Shapes) -> str:
    patch, dim = shapes.get("patch_embedding.weight"), shapes.get("blocks.0.modulation")
    if patch is None or dim is None:
        return ""
    inputs = patch.shape[1]
    task = {16: "t2v", 36: "i2v", 48: "t2v/ti2v 5B" if dim.shape[-1] == 3072 else "control (FC)"}.get(inputs, f"{inputs} input channels")
    if inputs == 36 and "img_emb.proj.0.weight" not in shapes:
        task = "Wan2.2 i2v"
    size = {1536: "1.3B", 3072: "5B", 5120: "14B"}.get(dim.shape[-1], f"dim {dim.shape[-1]}")
    return f"{task}, {size}"


_WAN = "blocks.0.self_attn.q.weight"

RULES = (
    # Wan's relatives have all that Wan has, and more. The tensors are those by which ComfyUI tells them apart
    # (comfy/model_detection.py).
    Rule("wan_vace_transformer", "Wan VACE transformer", (_WAN, "vace_patch_embedding.weight"), detail=_wan_detail),
    Rule("wan_vace_transformer", "Wan VACE transformer", (_WAN, "vace_blocks.0.before_proj.weight"), detail=_wan_detail),
    Rule("wan_vace_module", "VACE module without its Wan transformer", ("vace_blocks.0.before_proj.weight",)),
    Rule("wan_animate_transformer", "Wan2.2 Animate transformer", (_WAN, "face_adapter.fuser_blocks.0.k_norm.weight")),
    Rule("wan_animate_transformer", "Wan2.2 Animate transformer", (_WAN, "pose_patch_embedding.weight", "motion_encoder.enc.fc.0.weight")),
    Rule("wan_s2v_transformer", "Wan2.2 S2V transformer", (_WAN, "casual_audio_encoder.encoder.final_linear.weight")),
    Rule("wan_humo_transformer", "HuMo (Wan2.1) transformer", (_WAN, "audio_proj.audio_proj_glob_1.layer.bias")),
    Rule("wan_camera_transformer", "Wan Fun-Camera transformer", (_WAN, "control_adapter.conv.weight"), detail=_wan_detail),
    Rule("wan_reference_transformer", "Wan Fun-Control transformer with a reference image", (_WAN, "ref_conv.weight"), detail=_wan_detail),
    Rule(
        "wan_transformer",
        "Wan transformer",
        ("blocks.0.self_attn.q.weight", "time_projection.1.weight", "patch_embedding.weight"),
        detail=_wan_detail,
    ),
    Rule(
        "wan_transformer_diffusers",
        "Wan transformer in diffusers' layout",
        ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight"),
    ),
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
    Rule("flux2_transformer", "FLUX.2 transformer", ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight")),
    Rule("flux_transformer", "FLUX.1 transformer", ("double_blocks.0.img_attn.qkv.weight", "txt_in.weight")),
    Rule("framepack_transformer", "FramePack transformer", ("clean_x_embedder.proj.weight", "transformer_blocks.0.attn.to_q.weight")),
    Rule(
        "framepack_transformer",
        "FramePack transformer",
        ("context_embedder.time_text_embed.timestep_embedder.linear_1.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    ),
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
    Rule(
        "wan22_vae",
        "Wan2.2 VAE (48 channels, of the 5B model only)",
        ("encoder.conv1.weight", "decoder.upsamples.0.upsamples.0.residual.2.weight"),
    ),
    Rule("wan_vae", "Wan VAE", ("encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight")),
    Rule(
        "wan22_vae_diffusers",
        "Wan2.2 VAE (48 channels, of the 5B model only) in diffusers' layout",
        ("encoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.gamma", "decoder.up_blocks.0.upsampler.resample.1.weight"),
    ),
    Rule("wan_vae_diffusers", "Wan VAE in diffusers' layout", ("encoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.gamma")),
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


LORA_ARCHITECTURES = (
    ("HunyuanVideo or FLUX", r"double_blocks[._]\d"),
    ("FramePack or FLUX (diffusers' layout)", r"single_transformer_blocks[._]\d"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](attn[._]add_|img_mlp|txt_mlp)"),
    ("Wan", r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    ("Wan (diffusers' layout)", r"blocks[._]\d+[._]attn[12][._]to_"),
    ("Stable Diffusion", r"(input_blocks|down_blocks|lora_te)"),
)
