"""The umt5 text encoder of Wan: transformers' UMT5EncoderModel filled from a file in any of its three known namings.

Original (github.com/Wan-Video/Wan2.1, `wan/modules/t5.py`): `blocks.0.attn.q.weight`, also with the prefix `encoder.`.
Hugging Face and ComfyUI: `encoder.block.0.layer.0.SelfAttention.q.weight`; ComfyUI's files also hold the tokenizer (`spiece_model`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .tokenizer import SPIECE_TENSOR, Tokenizer, find_tokenizer
from .weight_files import read_state_dict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KIND = "umt5"
MAX_TOKENS = 512

_ORIGINAL = (
    (re.compile(r"^(?:encoder\.)?token_embedding\."), "shared."),
    (re.compile(r"^(?:encoder\.)?norm\."), "encoder.final_layer_norm."),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.norm1\."), r"encoder.block.\1.layer.0.layer_norm."),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.attn\.([qkvo])\."), r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (
        re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.pos_embedding\.embedding\."),
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.norm2\."), r"encoder.block.\1.layer.1.layer_norm."),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.ffn\.gate\.0\."), r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.ffn\.fc1\."), r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.ffn\.fc2\."), r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")
_IGNORED = re.compile(r"^(decoder\.|lm_head\.)|^(spiece_model|logit_scale)$")
_SCALED = re.compile(r"(^|\.)(scaled_fp8|scale_weight|weight_scale|scale_input|comfy_quant)$")
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


class UMT5:
    """Captions to token features."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: torch.device) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device

    @classmethod
    def load(cls, path: str | Path, device: torch.device, dtype: torch.dtype, *, flag: str = "--t5") -> UMT5:
        """The encoder in `path` (.safetensors, or .pth read with weights_only) with the tokenizer that belongs to it.

        UserError when the file is something else, incomplete or scaled fp8, and when no tokenizer can be found.
        """
        tensors = read_state_dict(path, KIND, flag)
        spiece = tensors.pop(SPIECE_TENSOR, None)
        renamed = transformers_names(tensors, f"{flag} {path}")
        del tensors
        vocabulary = renamed[_EMBEDDING[0]].shape[0] if _EMBEDDING[0] in renamed else 0
        tokenizer = find_tokenizer(Path(path), spiece.numpy().tobytes() if spiece is not None else None, vocabulary)
        return cls(_build(renamed, device, dtype, f"{flag} {path}"), tokenizer, device)

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Per caption its token features [L, dim] in the encoder's dtype, L <= 512 without padding, on the encoder's device."""
        import torch

        ids, mask = padded(self.tokenizer.encode_batch(captions, MAX_TOKENS))
        return self.features(torch.tensor(ids), torch.tensor(mask))

    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """As `encode` for token ids and mask [B, L] (1 for tokens, 0 for padding at the end)."""
        import torch

        with torch.no_grad():
            states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [state[: int(length)] for state, length in zip(states, mask.sum(dim=1), strict=True)]


def padded(rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask) of equal length: the longest row's. Padding to 512, as musubi-tuner does, gives the same features slower."""
    length = max(len(row) for row in rows)
    return [[*row, *[0] * (length - len(row))] for row in rows], [[1] * len(row) + [0] * (length - len(row)) for row in rows]


def transformers_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`tensors` under transformers' names, whatever their naming; decoder parts left out. UserError for scaled fp8 files."""
    scaled = next((name for name in tensors if _SCALED.search(name)), None)
    if scaled is not None:
        raise UserError(
            f"{source} is a scaled fp8 file (it holds {scaled}), which is not supported; "
            "use the bf16 or fp16 file, e.g. umt5_xxl_fp16.safetensors"
        )
    renamed = {}
    for name, tensor in tensors.items():
        if _IGNORED.search(name):
            continue
        for pattern, replacement in _ORIGINAL:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    embedding = next((renamed[name] for name in _EMBEDDING if name in renamed), None)
    if embedding is not None:
        renamed.update(dict.fromkeys(_EMBEDDING, embedding))
    return renamed


def _build(tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype, source: str) -> Any:
    """The module around the given tensors, which are taken out of the dictionary one by one: what is cast or moved is in memory
    once, not twice."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    try:
        config = UMT5Config(**sizes(tensors))
    except KeyError as error:
        raise UserError(f"{source}: not a complete umt5 encoder ({error.args[0]} is missing)") from None
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    wanted = model.state_dict()
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        kind, name, count = ("missing", missing[0], len(missing)) if missing else ("unknown", unknown[0], len(unknown))
        raise UserError(f"{source}: {count} tensors are {kind}, first {name}; this is not an umt5 encoder this program knows")
    embedding = tensors.pop(_EMBEDDING[0]).to(device, dtype)
    del tensors[_EMBEDDING[1]]
    ready = {name: embedding if name in _EMBEDDING else tensors.pop(name).to(device, dtype) for name in wanted}
    model.load_state_dict(ready, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """UMT5Config's arguments from the tensors' shapes. KeyError names a missing tensor."""
    buckets, heads = tensors[_BIAS.format(0)].shape
    vocabulary, width = tensors[_EMBEDDING[0]].shape
    layers = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"encoder\.block\.(\d+)\.", name)))
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "attn_implementation": "eager",
        "use_cache": False,
    }
