"""What a Qwen2.5-VL file is: transformers' configuration from the tensors' shapes, and its names in transformers' order.

A model folder in Hugging Face's layout says it in config.json; ComfyUI's single files say nothing. All published sizes (3B, 7B, 32B, 72B)
have heads of 128 dimensions, rotary sections of 16, 24 and 24, and 16 heads in the vision tower
(huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, config.json); the demo model says otherwise in the metadata key `musubi_geometry`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

_RENAMED = (
    (re.compile(r"^(?:model\.)?visual\."), "model.visual."),
    (re.compile(r"^(?:model\.)?language_model\.(?:model\.)?"), "model.language_model."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\."), r"model.language_model.\1."),
)
_IGNORED = ("tokenizer_json",)
_LANGUAGE, _VISION = "model.language_model.", "model.visual."
_TIED_WIDTHS = (2048,)  # of the published sizes, only 3B uses its embedding as output layer


@dataclass(frozen=True)
class Geometry:
    """What shapes do not tell."""

    head_dim: int = 128
    rotary_sections: tuple[int, ...] = (16, 24, 24)
    vision_heads: int = 16
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    tied: bool = False

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Geometry:
        """From what a file's metadata says; the published models' where it is silent."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        return cls(**values)


def own_name(name: str) -> str | None:
    """A tensor's name in transformers' Qwen2_5_VLForConditionalGeneration; None for what belongs to no weight."""
    if name in _IGNORED:
        return None
    for pattern, replacement in _RENAMED:
        name, found = pattern.subn(replacement, name)
        if found:
            break
    return name


def config_arguments(shapes: Mapping[str, tuple[int, ...]], geometry: Geometry, source: str) -> dict[str, Any]:
    """Arguments of Qwen2_5_VLConfig from shapes by transformers' names. UserError names what is missing."""
    try:
        tied = "lm_head.weight" not in shapes
        vocabulary, width = shapes[f"{_LANGUAGE}embed_tokens.weight"]
        if tied and not geometry.tied and width not in _TIED_WIDTHS:
            raise UserError(
                f"{source} holds no output layer (lm_head.weight): it was cut down to a text encoder and cannot write. "
                "Use the whole Qwen2.5-VL file, such as qwen_2.5_vl_7b_fp8_scaled.safetensors"
            )
        text, vision = _text(shapes, geometry, vocabulary, width), _vision(shapes, geometry)
        return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}
    except KeyError as error:
        raise UserError(f"{source} is not a whole Qwen2.5-VL model: {error.args[0]} is missing") from None


def _text(shapes: Mapping[str, tuple[int, ...]], geometry: Geometry, vocabulary: int, width: int) -> dict[str, Any]:
    first = f"{_LANGUAGE}layers.0."
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{first}mlp.up_proj.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(_LANGUAGE)}layers\.(\d+)\."),
        "num_attention_heads": shapes[f"{first}self_attn.q_proj.weight"][0] // geometry.head_dim,
        "num_key_value_heads": shapes[f"{first}self_attn.k_proj.weight"][0] // geometry.head_dim,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "default", "mrope_section": list(geometry.rotary_sections)},
    }


def _vision(shapes: Mapping[str, tuple[int, ...]], geometry: Geometry) -> dict[str, Any]:
    embedding = shapes[f"{_VISION}patch_embed.proj.weight"]
    return {
        "depth": _count(shapes, rf"{re.escape(_VISION)}blocks\.(\d+)\."),
        "hidden_size": embedding[0],
        "intermediate_size": shapes[f"{_VISION}blocks.0.mlp.up_proj.weight"][0],
        "num_heads": geometry.vision_heads,
        "out_hidden_size": shapes[f"{_VISION}merger.mlp.2.weight"][0],
        "in_channels": embedding[1],
        "temporal_patch_size": embedding[2],
        "patch_size": embedding[3],
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(geometry.full_attention),
        "tokens_per_second": 2,
    }


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
