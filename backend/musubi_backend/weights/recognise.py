"""What a weight file is, told from the names and shapes in its header, so that a wrong file is refused by name.

Standard library only: safetensors headers are JSON, and the names in a PyTorch file (.pt, .pth) are read from its pickle's
opcodes without executing it.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .safetensors_file import PathLike, TensorInfo, read_header, split_files

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "first_stage_model.", "transformer.", "vae.", "text_encoders.", "module.")
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")

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
class _Rule:
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
    if "vace_blocks.0.before_proj.weight" in shapes:
        task = "VACE"
    size = {1536: "1.3B", 3072: "5B", 5120: "14B"}.get(dim.shape[-1], f"dim {dim.shape[-1]}")
    return f"{task}, {size}"


_RULES = (
    _Rule("wan_transformer", "Wan transformer", ("blocks.0.self_attn.q.weight", "time_projection.1.weight", "patch_embedding.weight"), detail=_wan_detail),
    _Rule("wan_transformer_diffusers", "Wan transformer in diffusers' layout", ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight")),
    _Rule("hunyuan_video_transformer", "HunyuanVideo transformer", ("double_blocks.0.img_attn_qkv.weight", "txt_in.t_embedder.mlp.0.weight")),
    _Rule("hunyuan_video_15_transformer", "HunyuanVideo 1.5 transformer", ("double_blocks.0.img_attn_q.weight", "cond_type_embedding.weight")),
    _Rule("hunyuan_video_transformer", "HunyuanVideo transformer", ("double_blocks.0.img_attn.qkv.weight", "txt_in.t_embedder.in_layer.weight")),
    _Rule("flux2_transformer", "FLUX.2 transformer", ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight")),
    _Rule("flux_transformer", "FLUX.1 transformer", ("double_blocks.0.img_attn.qkv.weight", "txt_in.weight")),
    _Rule("framepack_transformer", "FramePack transformer", ("clean_x_embedder.proj.weight", "transformer_blocks.0.attn.to_q.weight")),
    _Rule("framepack_transformer", "FramePack transformer", ("context_embedder.time_text_embed.timestep_embedder.linear_1.weight", "single_transformer_blocks.0.proj_mlp.weight")),
    _Rule("qwen_image_transformer", "Qwen-Image transformer", ("transformer_blocks.0.img_mlp.net.0.proj.weight", "txt_norm.weight")),
    _Rule("flux_transformer", "FLUX.1 transformer in diffusers' layout", ("single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight")),
    _Rule("z_image_transformer", "Z-Image transformer", ("cap_embedder.0.weight", "context_refiner.0.attention.qkv.weight")),
    _Rule("z_image_transformer", "Z-Image transformer", ("cap_embedder.0.weight", "context_refiner.0.attention.to_q.weight")),
    _Rule("ltx_transformer", "LTX-Video transformer", ("transformer_blocks.0.scale_shift_table", "patchify_proj.weight")),
    _Rule("sd3_transformer", "Stable Diffusion 3 transformer", ("joint_blocks.0.x_block.attn.qkv.weight",)),
    _Rule("sdxl_model", "Stable Diffusion XL model", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    _Rule("sd_model", "Stable Diffusion model", ("input_blocks.0.0.weight", "time_embed.0.weight")),
    _Rule("wan_vae", "Wan VAE", ("encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight")),
    _Rule("wan_vae_diffusers", "Wan VAE in diffusers' layout", ("encoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.gamma")),
    _Rule("hunyuan_video_vae", "HunyuanVideo VAE", ("encoder.conv_in.conv.weight", "decoder.mid_block.resnets.0.norm1.weight", "quant_conv.weight")),
    _Rule("image_vae", "image VAE (Stable Diffusion, FLUX)", ("encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.conv1.weight")),
    _Rule("image_vae", "image VAE in diffusers' layout", ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight")),
    _Rule("umt5", "umt5-xxl text encoder", ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.attn.q.weight")),
    _Rule("umt5", "umt5-xxl text encoder", ("shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")),
    _Rule("t5", "T5 text encoder", ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    _Rule("t5", "T5 text encoder", ("encoder.embed_tokens.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),
    _Rule("clip_vision", "CLIP vision encoder", ("visual.transformer.0.attn.to_qkv.weight",)),
    _Rule("clip_vision", "CLIP vision encoder", ("visual.patch_embedding.weight", "visual.cls_embedding")),
    _Rule("siglip", "SigLIP vision encoder", ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.position_embedding.weight"), ("vision_model.embeddings.class_embedding",)),
    _Rule("clip_vision", "CLIP vision encoder", ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.class_embedding")),
    _Rule("clip_l", "CLIP-L text encoder", ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.embeddings.token_embedding.weight"), ("vision_model.embeddings.class_embedding",)),
    _Rule("qwen_vl", "Qwen2.5-VL text encoder", ("visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.q_proj.weight")),
    _Rule("llama", "Llama (LLaVA-Llama3) text encoder", ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight")),
    _Rule("llama", "LLaVA-Llama3 model", ("language_model.model.layers.0.self_attn.q_proj.weight",)),
)  # fmt: skip

_LORA_ARCHITECTURES = (
    ("HunyuanVideo or FLUX", r"double_blocks[._]\d"),
    ("FramePack or FLUX (diffusers' layout)", r"single_transformer_blocks[._]\d"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](attn[._]add_|img_mlp|txt_mlp)"),
    ("Wan", r"blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    ("Wan (diffusers' layout)", r"blocks[._]\d+[._]attn[12][._]to_"),
    ("Stable Diffusion", r"(input_blocks|down_blocks|lora_te)"),
)


def recognise(path: PathLike) -> Kind | None:
    """What `path` (a safetensors or PyTorch file, or any part of a split model) is; None when its keys are not known.

    UserError when it cannot be read at all.
    """
    file_path = Path(path)
    if file_path.suffix.lower() in PICKLE_SUFFIXES:
        return kind_of(dict.fromkeys(pickle_names(file_path)))
    shapes: dict[str, TensorInfo | None] = {}
    metadata: dict[str, str] = {}
    for part in split_files(file_path):
        header = read_header(part)
        shapes.update(header.tensors)
        metadata.update(header.metadata)
    return kind_of(shapes, metadata)


def kind_of(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Kind | None:
    """As `recognise`, from names (and shapes, where known)."""
    special = _cache(shapes, metadata or {}) or _lora(shapes)
    if special is not None:
        return special
    for names in (shapes, *(_stripped(shapes, prefix) for prefix in PREFIXES)):
        for rule in _RULES:
            if all(name in names for name in rule.has) and not any(name in names for name in rule.lacks):
                return Kind(rule.id, rule.name, rule.detail(names) if rule.detail else "")
    return None


def expect(path: PathLike, kind_id: str, flag: str) -> Kind:
    """The kind of `path` when its id is `kind_id`; else a UserError that says what the file is and what `flag` takes."""
    kind = recognise(path)
    if kind is not None and kind.id == kind_id:
        return kind
    wanted = next((rule.name for rule in _RULES if rule.id == kind_id), "LoRA" if kind_id == "lora" else kind_id)
    if kind is None:
        raise UserError(f"{path} is not a known kind of model file; {flag} expects a {wanted}. {_first_names(path)}")
    raise UserError(f"{path} is a {kind}; {flag} expects a {wanted}")


def pickle_names(path: PathLike) -> list[str]:
    """The strings in the pickle of a PyTorch file, among them all tensor names. Nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
            return [arg for op, arg, _ in pickletools.genops(archive.read(entry)) if isinstance(arg, str) and "UNICODE" in op.name]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (zipfile.BadZipFile, StopIteration, ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable PyTorch file ({error or 'no data.pkl'}); use a .safetensors file") from error


def _stripped(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): info for name, info in shapes.items() if name.startswith(prefix)}


def _cache(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    architecture = metadata.get("architecture", "")
    if any(re.fullmatch(r"latents_\d+x\d+x\d+_\w+", name) for name in shapes):
        return Kind("latent_cache", "latent cache", architecture)
    if architecture and "caption1" in metadata or any(name.startswith(("varlen_", "llama_vec_", "llm_", "t5_vec_")) for name in shapes):
        return Kind("text_cache", "text encoder cache", architecture)
    return None


def _lora(shapes: Shapes) -> Kind | None:
    layouts = (
        ("musubi-tuner's layout", r"lora_unet_.*\.lora_down\.weight"),
        ("LoHa", r".*\.hada_w1_a"),
        ("LoKr", r".*\.lokr_w[12].*"),
        ("ComfyUI's layout", r"diffusion_model\..*\.(lora_A|lora_down)(\.default)?\.weight"),
        ("diffusers' layout", r".*\.(lora_A|lora_down|lora\.down)(\.default)?\.weight"),
    )
    for layout, pattern in layouts:
        if any(re.fullmatch(pattern, name) for name in shapes):
            for architecture, part in _LORA_ARCHITECTURES:
                if any(re.search(part, name) for name in shapes):
                    return Kind("lora", "LoRA", f"{architecture}, {layout}")
            return Kind("lora", "LoRA", layout)
    return None


def _first_names(path: PathLike) -> str:
    file_path = Path(path)
    names = pickle_names(file_path) if file_path.suffix.lower() in PICKLE_SUFFIXES else list(read_header(file_path).tensors)
    return f"It holds {len(names)} tensors, such as {', '.join(names[:3])}." if names else "It holds no tensors."
