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
from ..weights.recognise import PREFIXES, expect
from .lean_transformers import empty_weights, from_transformers
from .model_files import sized_by
from .offloaded import Offload, chosen
from .stoppable import stop_between_layers
from .tokenizer import SPIECE_TENSOR, Tokenizer, find_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..weights.loader import Weights
    from ..weights.safetensors_file import TensorInfo

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
_EMBEDDING, _EMBEDDING_AGAIN = "shared.weight", "encoder.embed_tokens.weight"
_IGNORED = re.compile(r"^(decoder\.|lm_head\.)|^(spiece_model|logit_scale)$")
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


class UMT5:
    """Captions to token features."""

    def __init__(self, model: Any, tokenizer: Tokenizer, device: torch.device, kept: torch.dtype) -> None:
        self.model, self.tokenizer, self.device, self.kept = model, tokenizer, device, kept

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        *,
        kept: torch.dtype | None = None,
        fp8: bool = False,
        offload: bool = False,
        flag: str = "--t5",
    ) -> UMT5:
        """The encoder in `path` (.safetensors, or .pth read with weights_only), computing in `dtype`, with the tokenizer that belongs
        to it.

        kept: what features are given in, if that is another dtype. fp8: hold its matrices in fp8; those of an fp8 file stay as
        they are. offload: see `offloaded`, which also happens where it does not fit on the GPU.
        UserError when the file is something else or incomplete, and when no tokenizer can be found.
        """
        from ..weights.loader import open_weights

        expect(path, KIND, flag)
        weights = open_weights(path, PREFIXES)
        source = f"{flag} {path}"
        names = _names(weights)
        embedding = next((info for name, info in weights.header.tensors.items() if names[name] == _EMBEDDING), None)
        spiece = weights.read(SPIECE_TENSOR) if SPIECE_TENSOR in weights.header.tensors else None
        vocabulary = embedding.shape[0] if embedding and embedding.shape else 0
        tokenizer = find_tokenizer(Path(path), spiece.numpy().tobytes() if spiece is not None else None, vocabulary)
        return cls(_build(weights, names, device, dtype, fp8, offload, source), tokenizer, device, kept or dtype)

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Per caption its token features [L, dim] in the dtype `kept`, L <= 512 without padding, on the encoder's device."""
        import torch

        ids, mask = padded(self.tokenizer.encode_batch(captions, MAX_TOKENS))
        return self.features(torch.tensor(ids), torch.tensor(mask))

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Per caption what `encode` leaves out of it, "" where that is nothing."""
        counts = [len(row) for row in self.tokenizer.encode_batch(captions, 2**20)]
        return [f"umt5 reads its first {MAX_TOKENS} tokens only" if count > MAX_TOKENS else "" for count in counts]

    def features(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """As `encode` for token ids and mask [B, L] (1 for tokens, 0 for padding at the end)."""
        import torch

        with torch.no_grad():
            states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return [state[: int(length)] for state, length in zip(states.to(self.kept), mask.sum(dim=1), strict=True)]


def padded(rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask) of equal length: the longest row's. Padding to 512, as musubi-tuner does, gives the same features slower."""
    length = max(len(row) for row in rows)
    return [[*row, *[0] * (length - len(row))] for row in rows], [[1] * len(row) + [0] * (length - len(row)) for row in rows]


def _names(weights: Weights) -> dict[str, str | None]:
    """A file's names -> transformers' names, whatever the file's naming; None for decoder parts, the tokenizer, and the second of two
    embeddings, which are one."""
    names: dict[str, str | None] = {}
    for name in weights.header.tensors:
        renamed: str | None = None if _IGNORED.search(name) else name
        for pattern, replacement in _ORIGINAL:
            renamed = pattern.sub(replacement, renamed) if renamed else None
        if renamed == _EMBEDDING_AGAIN:
            renamed = _EMBEDDING
        names[name] = None if renamed == _EMBEDDING and _EMBEDDING in names.values() else renamed
    return names


def _build(
    weights: Weights, names: Mapping[str, str | None], device: torch.device, dtype: torch.dtype, fp8: bool, offload: bool, source: str
) -> Any:
    """The module, filled from the file tensor by tensor."""

    UMT5Config, UMT5EncoderModel = from_transformers("UMT5Config", "UMT5EncoderModel")

    from ..weights.loader import load_into
    from .fp8_linears import hold_linears_in_fp8

    with sized_by(source), empty_weights():
        try:
            config = UMT5Config(**sizes({own: weights.header.tensors[name] for name, own in names.items() if own}))
        except KeyError as error:
            raise UserError(f"{source}: not a complete umt5 encoder ({error.args[0]} is missing)") from None
        model: Any = UMT5EncoderModel(config)
    model.encoder.embed_tokens = model.shared
    if fp8:
        for block in model.encoder.block:
            block.layer[1].DenseReluDense = _feed_forward(block.layer[1].DenseReluDense)
        hold_linears_in_fp8(model)
    offloaded = Offload(model, model.shared, model.encoder.block) if chosen(model, device, dtype, offload) else None
    stay = offloaded.stay if offloaded else ()
    load_into(model, weights, device, dtype, rename=names.get, optional=(_EMBEDDING_AGAIN,), stay=stay)
    if offloaded is not None:
        offloaded.begin(device)
    stop_between_layers(model)
    return model.eval().requires_grad_(False)


def _feed_forward(theirs: Any) -> Any:
    """transformers' gated feed-forward without its cast to the dtype of the last weight, which is an fp8 one here."""
    from torch import nn

    class FeedForward(nn.Module):
        def __init__(self, theirs: Any) -> None:
            super().__init__()
            self.wi_0, self.wi_1, self.wo, self.act = theirs.wi_0, theirs.wi_1, theirs.wo, theirs.act

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.wo(self.act(self.wi_0(x)) * self.wi_1(x))
            return result

    return FeedForward(theirs)


def sizes(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """UMT5Config's arguments from the tensors' shapes. KeyError names a missing tensor."""
    buckets, heads = tensors[_BIAS.format(0)].shape
    vocabulary, width = tensors[_EMBEDDING].shape
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
