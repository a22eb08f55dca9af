"""Tiny random encoders of HunyuanVideo and FramePack in the layouts of ComfyUI's files: LLaVA-Llama3, CLIP-L and SigLIP.

The text encoders hold their tokenizers (`tokenizer_json`): byte-level BPE made from a few captions, with the real special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..encoders.token_files import INSIDE
from ..weights.geometry import GEOMETRY_KEY
from .umt5 import CORPUS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Content = tuple[dict[str, Tensor], dict[str, str]]

LLM_WIDTH, CLIP_WIDTH, IMAGE_WIDTH = 64, 32, 48
"""Widths of the features; the demo transformers take these."""
LLM_LAYERS, LAYERS = 4, 2
LLM_HEAD_DIM, LLM_KEY_HEADS = 16, 2
IMAGE_TOKENS, PATCH = 9, 14
VOCABULARY = 512
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def llama(seed: int) -> Content:
    """Its last two layers are never used, as in the real one."""
    weights = _Weights(seed)
    prefix, inner, keys = "model.", LLM_WIDTH, LLM_KEY_HEADS * LLM_HEAD_DIM
    weights.normal(f"{prefix}embed_tokens.weight", VOCABULARY, LLM_WIDTH, std=1.0)
    for layer in range(LLM_LAYERS):
        attention, mlp = f"{prefix}layers.{layer}.self_attn.", f"{prefix}layers.{layer}.mlp."
        for name, out in (("q", inner), ("k", keys), ("v", keys)):
            weights.normal(f"{attention}{name}_proj.weight", out, LLM_WIDTH)
        weights.normal(f"{attention}o_proj.weight", LLM_WIDTH, inner)
        for name in ("gate", "up"):
            weights.normal(f"{mlp}{name}_proj.weight", 2 * LLM_WIDTH, LLM_WIDTH)
        weights.normal(f"{mlp}down_proj.weight", LLM_WIDTH, 2 * LLM_WIDTH)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights.ones(f"{prefix}layers.{layer}.{name}.weight", LLM_WIDTH)
    weights.ones(f"{prefix}norm.weight", LLM_WIDTH)
    weights.tensors[INSIDE] = _bytes(tokenizer_json(LLAMA_SPECIAL, ("<|begin_of_text|> $A", "<|begin_of_text|>"), lower=False))
    return weights.tensors, {GEOMETRY_KEY: json.dumps({"head_dim": LLM_HEAD_DIM})}


def clip_l(seed: int) -> Content:
    weights = _Weights(seed)
    prefix = "text_model."
    weights.normal(f"{prefix}embeddings.token_embedding.weight", VOCABULARY, CLIP_WIDTH, std=1.0)
    weights.normal(f"{prefix}embeddings.position_embedding.weight", 77, CLIP_WIDTH, std=0.1)
    weights.transformer(f"{prefix}encoder.", CLIP_WIDTH)
    weights.norm(f"{prefix}final_layer_norm", CLIP_WIDTH)
    template = ("<|startoftext|> $A <|endoftext|>", *CLIP_SPECIAL)
    weights.tensors[INSIDE] = _bytes(tokenizer_json(CLIP_SPECIAL, template, lower=True))
    return weights.tensors, {GEOMETRY_KEY: json.dumps({"num_attention_heads": 4})}


def siglip(seed: int) -> Content:
    """Looks at squares of 42 pixels."""
    weights = _Weights(seed)
    prefix = "vision_model."
    weights.normal(f"{prefix}embeddings.patch_embedding.weight", IMAGE_WIDTH, 3, PATCH, PATCH)
    weights.zeros(f"{prefix}embeddings.patch_embedding.bias", IMAGE_WIDTH)
    weights.normal(f"{prefix}embeddings.position_embedding.weight", IMAGE_TOKENS, IMAGE_WIDTH, std=0.1)
    weights.transformer(f"{prefix}encoder.", IMAGE_WIDTH)
    weights.norm(f"{prefix}post_layernorm", IMAGE_WIDTH)
    return weights.tensors, {GEOMETRY_KEY: json.dumps({"num_attention_heads": 4})}


def tokenizer_json(special: Sequence[str], template: tuple[str, ...], *, lower: bool) -> bytes:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, the special ones last. template: the sequence with special tokens around $A,
    then the special tokens it uses."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = VOCABULARY - len(special)
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    )
    tokenizer.add_special_tokens(list(special))
    ids = [(token, tokenizer.token_to_id(token)) for token in template[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=ids)
    return str(tokenizer.to_str()).encode()


class _Weights:
    """Tensors of a model in the making, drawn one after the other from one seed."""

    def __init__(self, seed: int) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def normal(self, name: str, *shape: int, std: float | None = None) -> None:
        """Without `std`, outputs are about as large as inputs."""
        import torch

        fan_in = 1
        for side in shape[1:]:
            fan_in *= side
        self.tensors[name] = torch.randn(shape, generator=self.generator) * (std or fan_in**-0.5)

    def ones(self, name: str, *shape: int) -> None:
        import torch

        self.tensors[name] = torch.ones(shape)

    def zeros(self, name: str, *shape: int) -> None:
        import torch

        self.tensors[name] = torch.zeros(shape)

    def norm(self, name: str, width: int) -> None:
        self.ones(f"{name}.weight", width)
        self.zeros(f"{name}.bias", width)

    def linear(self, name: str, out: int, into: int) -> None:
        self.normal(f"{name}.weight", out, into)
        self.zeros(f"{name}.bias", out)

    def transformer(self, prefix: str, width: int) -> None:
        """The layers of CLIP and SigLIP."""
        for layer in self._layers(prefix):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.linear(f"{layer}self_attn.{name}", width, width)
            self.linear(f"{layer}mlp.fc1", 2 * width, width)
            self.linear(f"{layer}mlp.fc2", width, 2 * width)
            for name in ("layer_norm1", "layer_norm2"):
                self.norm(f"{layer}{name}", width)

    def _layers(self, prefix: str) -> Iterator[str]:
        return (f"{prefix}layers.{layer}." for layer in range(LAYERS))


def _bytes(content: bytes) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
