"""A tiny Qwen2.5-VL in ComfyUI's layout that tells bright pictures from dark and warm from cold ones, and its tokenizer.

Nothing was trained; the weights are written down. The vision tower passes on, per token, its brightness and its warmth (red against
blue). One attention layer looks at the picture's tokens only and adds their mean to whatever token comes last. The output layer is a
chain of words; where two words may follow, brightness or warmth decides. So captions depend on pixels, and the real code runs from end
to end.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import write_text
from ..encoders.qwen_vl_config import Geometry
from ..weights.geometry import GEOMETRY_KEY

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FOLDER = "qwen25_tokenizer"
WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER, LAYERS = 96, 6, 2, 16, 96, 2
VISION_WIDTH, VISION_DEPTH, VISION_INNER = 32, 2, 64
GEOMETRY = Geometry(HEAD_DIM, (2, 3, 3), vision_heads=2, full_attention=(1,))
BRIGHTNESS, WARMTH, IS_PICTURE = WIDTH - 1, WIDTH - 2, WIDTH - 3  # dimensions kept free of words
FAINT = 0.1  # features are small beside IS_PICTURE, so that all of a picture is looked at alike

_SPACE, _NEWLINE, _TURN_ENDS = "Ġ", "Ċ", "<|im_end|>"  # how byte-level BPE writes a blank and a line break
_SPECIAL = ("<|endoftext|>", "<|im_start|>", _TURN_ENDS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_WORDS = ("bright", "dark", "picture", "in", "warm", "cold", "colours", "user", "assistant", "system")
# token -> what may follow: one word, or (dimension, word where it is positive, word where it is negative)
_CHAIN: dict[str, str | tuple[int, str, str]] = {
    _NEWLINE: "a",
    "a": (BRIGHTNESS, "Ġbright", "Ġdark"),
    "Ġbright": "Ġpicture",
    "Ġdark": "Ġpicture",
    "Ġpicture": "Ġin",
    "Ġin": (WARMTH, "Ġwarm", "Ġcold"),
    "Ġwarm": "Ġcolours",
    "Ġcold": "Ġcolours",
    "Ġcolours": _TURN_ENDS,
}


def qwen_vl(seed: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of the model."""
    import torch

    vocabulary = _vocabulary()
    ids = {token: number for number, token in enumerate([*vocabulary, *_SPECIAL])}
    words = torch.randn((len(ids), WIDTH), generator=torch.Generator().manual_seed(seed))
    words[:, min(BRIGHTNESS, WARMTH, IS_PICTURE) :] = 0
    words /= words.norm(dim=1, keepdim=True)
    tensors = {
        "model.embed_tokens.weight": words,
        "model.norm.weight": torch.ones(WIDTH),
        "lm_head.weight": _output_layer(words, ids),
        **_vision(),
    }
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in _layer(looks=layer == 0).items()}
    return tensors, {GEOMETRY_KEY: json.dumps(asdict(GEOMETRY))}


def write_tokenizer(folder: Path) -> None:
    """The tokenizer's three files, as in ComfyUI's folder of the same name; left alone where they are right."""
    vocabulary = _vocabulary()
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {str(len(vocabulary) + number): {"content": token, **plain} for number, token in enumerate(_SPECIAL)}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": special,
        "eos_token": _TURN_ENDS,
        "pad_token": _SPECIAL[0],
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(vocabulary)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in _merges()),
        "tokenizer_config.json": json.dumps(settings, indent=1),
    }
    for name, text in files.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)


def _output_layer(words: Tensor, ids: dict[str, int]) -> Tensor:
    """Row of a word: the sum of the words it may follow, and the picture's share in the choice."""
    import torch

    rows = torch.zeros_like(words)
    for token, following in _CHAIN.items():
        if isinstance(following, str):
            rows[ids[following]] += words[ids[token]]
            continue
        dimension, positive, negative = following
        for word, sign in ((positive, 1.0), (negative, -1.0)):
            rows[ids[word]] += words[ids[token]]
            rows[ids[word], dimension] += sign
    return rows


def _layer(*, looks: bool) -> dict[str, Tensor]:
    """One transformer block that does nothing, or adds 0.05 times the mean of the picture's features to each token."""
    import torch

    slow = HEAD_DIM // 2 - 1  # the rotary dimension that turns least: there a constant query meets a constant key
    tensors = {
        "input_layernorm.weight": torch.ones(WIDTH),
        "post_attention_layernorm.weight": torch.ones(WIDTH),
        "self_attn.q_proj.weight": torch.zeros(HEADS * HEAD_DIM, WIDTH),
        "self_attn.q_proj.bias": torch.zeros(HEADS * HEAD_DIM),
        "self_attn.k_proj.weight": torch.zeros(KV_HEADS * HEAD_DIM, WIDTH),
        "self_attn.k_proj.bias": torch.zeros(KV_HEADS * HEAD_DIM),
        "self_attn.v_proj.weight": torch.zeros(KV_HEADS * HEAD_DIM, WIDTH),
        "self_attn.v_proj.bias": torch.zeros(KV_HEADS * HEAD_DIM),
        "self_attn.o_proj.weight": torch.zeros(WIDTH, HEADS * HEAD_DIM),
        "mlp.gate_proj.weight": torch.zeros(INNER, WIDTH),
        "mlp.up_proj.weight": torch.zeros(INNER, WIDTH),
        "mlp.down_proj.weight": torch.zeros(WIDTH, INNER),
    }
    if looks:
        tensors["self_attn.q_proj.bias"][slow] = 4.0
        tensors["self_attn.k_proj.weight"][slow, IS_PICTURE] = 4.0
        for number, dimension in enumerate((BRIGHTNESS, WARMTH)):
            tensors["self_attn.v_proj.weight"][number, dimension] = 1 / FAINT
            tensors["self_attn.o_proj.weight"][dimension, number] = 0.05
    return tensors


def _vision() -> dict[str, Tensor]:
    """Patches to (brightness, warmth), blocks that do nothing, and a merger that gives their mean over 2 x 2 patches."""
    import torch

    patch = torch.zeros(VISION_WIDTH, 3, 2, 14, 14)
    patch[0] = 1 / patch[0].numel()
    patch[1, 0], patch[1, 2] = 1 / patch[0, 0].numel(), -1 / patch[0, 0].numel()
    gather, give = torch.zeros(4 * VISION_WIDTH, 4 * VISION_WIDTH), torch.zeros(WIDTH, 4 * VISION_WIDTH)
    for number in range(4):
        for feature, dimension in enumerate((BRIGHTNESS, WARMTH)):
            for half, sign in enumerate((1.0, -1.0)):  # gelu(x) - gelu(-x) = x
                row = 4 * number + 2 * feature + half
                gather[row, number * VISION_WIDTH + feature] = sign
                give[dimension, row] = FAINT * sign / (4 * VISION_WIDTH**0.5)
    is_picture = torch.zeros(WIDTH)
    is_picture[IS_PICTURE] = 1.0
    tensors: dict[str, Any] = {
        "visual.patch_embed.proj.weight": patch,
        "visual.merger.ln_q.weight": torch.ones(VISION_WIDTH),
        "visual.merger.mlp.0.weight": gather,
        "visual.merger.mlp.0.bias": torch.zeros(4 * VISION_WIDTH),
        "visual.merger.mlp.2.weight": give,
        "visual.merger.mlp.2.bias": is_picture,
    }
    for block in range(VISION_DEPTH):
        tensors |= {f"visual.blocks.{block}.norm{number}.weight": torch.ones(VISION_WIDTH) for number in (1, 2)}
        for name, (rows, columns) in {
            "attn.qkv": (3 * VISION_WIDTH, VISION_WIDTH),
            "attn.proj": (VISION_WIDTH, VISION_WIDTH),
            "mlp.gate_proj": (VISION_INNER, VISION_WIDTH),
            "mlp.up_proj": (VISION_INNER, VISION_WIDTH),
            "mlp.down_proj": (VISION_WIDTH, VISION_INNER),
        }.items():
            tensors[f"visual.blocks.{block}.{name}.weight"] = torch.zeros(rows, columns)
            tensors[f"visual.blocks.{block}.{name}.bias"] = torch.zeros(rows)
    return tensors


def _vocabulary() -> list[str]:
    """The 256 bytes, then what the merges make."""
    return list(dict.fromkeys([*_byte_letters(), *(left + right for left, right in _merges())]))


def _merges() -> list[tuple[str, str]]:
    """Each word grows letter by letter from its beginning, which is a blank."""
    merges = []
    for word in _WORDS:
        for length in range(len(word)):
            merges.append((_SPACE + word[:length], word[length]))
    return list(dict.fromkeys(merges))


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: printable ones for themselves, the others from U+0100 on (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]
