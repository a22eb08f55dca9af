"""A tiny random umt5 text encoder in ComfyUI's layout, with a SentencePiece tokenizer made from a few captions inside (`spiece_model`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, HEADS, HEAD_DIM, BUCKETS = 2, 4, 16, 32
VOCABULARY = 512

CORPUS = (
    "a photo of a cat looking at the camera",
    "a close-up of the face of a tabby cat, the camera moves slowly to the right",
    "a portrait of an astronaut in an orange suit in front of a flag",
    "a smiling woman in a space suit, the camera zooms in",
    "a cup of coffee on a wooden table, seen from above",
    "a rocket on the launch pad at night, the camera rises",
    "a motorcycle in a garage, the camera moves from left to right",
    "a colourful picture of a retina, the camera zooms out",
    "the video shows a small bird on a branch, slow motion, high quality",
    "an old stone building under a blue sky with white clouds",
    "people walking through a busy street in the rain, cinematic lighting",
    "a red car driving along the coast at sunset, aerial view",
    "waves breaking on a sandy beach, soft morning light",
    "a dog running through tall grass towards the viewer, shallow depth of field",
    "overexposed, static, blurry details, subtitles, low quality, deformed, extra fingers",
    "bright tones, worst quality, ugly, messy background, walking backwards",
)


def umt5(width: int, seed: int) -> dict[str, Tensor]:
    """Tensors of the encoder with features of `width`, and its tokenizer as uint8."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    inner = HEADS * HEAD_DIM
    tensors = {
        "shared.weight": normal(VOCABULARY, width, std=1.0),
        "encoder.final_layer_norm.weight": torch.ones(width),
    }
    for block in range(LAYERS):
        first, second = f"encoder.block.{block}.layer.0.", f"encoder.block.{block}.layer.1."
        attention, feed_forward = f"{first}SelfAttention.", f"{second}DenseReluDense."
        tensors |= {
            f"{attention}q.weight": normal(inner, width, std=(width * HEAD_DIM) ** -0.5),
            f"{attention}k.weight": normal(inner, width, std=width**-0.5),
            f"{attention}v.weight": normal(inner, width, std=width**-0.5),
            f"{attention}o.weight": normal(width, inner, std=inner**-0.5),
            f"{attention}relative_attention_bias.weight": normal(BUCKETS, HEADS, std=0.5),
            f"{first}layer_norm.weight": torch.ones(width),
            f"{feed_forward}wi_0.weight": normal(2 * width, width, std=width**-0.5),
            f"{feed_forward}wi_1.weight": normal(2 * width, width, std=width**-0.5),
            f"{feed_forward}wo.weight": normal(width, 2 * width, std=(2 * width) ** -0.5),
            f"{second}layer_norm.weight": torch.ones(width),
        }
    tensors["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    return tensors


def sentencepiece_model() -> bytes:
    """A SentencePiece model with umt5's special ids (0 padding, 1 end, 2 unknown) that spells unknown characters in bytes."""
    import sentencepiece

    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=target, vocab_size=VOCABULARY, hard_vocab_limit=False, byte_fallback=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return target.getvalue()
