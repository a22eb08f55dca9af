"""How weight files of Wan and its relatives are recognised: by the tensor names only they have."""

from __future__ import annotations

from ...weights.kinds import Rule, Shapes

_WAN = "blocks.0.self_attn.q.weight"


def _detail(shapes: Shapes) -> str:
    patch, dim = shapes.get("patch_embedding.weight"), shapes.get("blocks.0.modulation")
    if patch is None or dim is None:
        return ""
    inputs = patch.shape[1]
    task = {16: "t2v", 36: "i2v", 48: "t2v/ti2v 5B" if dim.shape[-1] == 3072 else "control (FC)"}.get(inputs, f"{inputs} input channels")
    if inputs == 36 and "img_emb.proj.0.weight" not in shapes:
        task = "Wan2.2 i2v"
    size = {1536: "1.3B", 3072: "5B", 5120: "14B"}.get(dim.shape[-1], f"dim {dim.shape[-1]}")
    return f"{task}, {size}"


# Relatives have all that Wan has, and more. The tensors are those by which ComfyUI tells them apart (comfy/model_detection.py).
RULES = (
    Rule("wan_vace_transformer", "Wan VACE transformer", (_WAN, "vace_patch_embedding.weight"), detail=_detail),
    Rule("wan_vace_transformer", "Wan VACE transformer", (_WAN, "vace_blocks.0.before_proj.weight"), detail=_detail),
    Rule("wan_vace_module", "VACE module without its Wan transformer", ("vace_blocks.0.before_proj.weight",)),
    Rule("wan_animate_transformer", "Wan2.2 Animate transformer", (_WAN, "face_adapter.fuser_blocks.0.k_norm.weight")),
    Rule(
        "wan_animate_transformer",
        "Wan2.2 Animate transformer",
        (_WAN, "pose_patch_embedding.weight", "motion_encoder.enc.fc.0.weight"),
    ),
    Rule("wan_s2v_transformer", "Wan2.2 S2V transformer", (_WAN, "casual_audio_encoder.encoder.final_linear.weight")),
    Rule("wan_humo_transformer", "HuMo (Wan2.1) transformer", (_WAN, "audio_proj.audio_proj_glob_1.layer.bias")),
    Rule("wan_camera_transformer", "Wan Fun-Camera transformer", (_WAN, "control_adapter.conv.weight"), detail=_detail),
    Rule("wan_reference_transformer", "Wan Fun-Control transformer with a reference image", (_WAN, "ref_conv.weight"), detail=_detail),
    Rule(
        "wan_transformer",
        "Wan transformer",
        ("blocks.0.self_attn.q.weight", "time_projection.1.weight", "patch_embedding.weight"),
        detail=_detail,
    ),
    Rule(
        "wan_transformer_diffusers",
        "Wan transformer in diffusers' layout",
        ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight"),
    ),
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
)
LORAS = (
    ("Wan", r"(?<!refiner[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    ("Wan (diffusers' layout)", r"blocks[._]\d+[._]attn[12][._]to_"),
)
