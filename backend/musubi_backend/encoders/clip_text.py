"""The CLIP-L text encoder: transformers' CLIPTextModel, of which the pooled feature (at the end-of-text token) is used.

Files: a Hugging Face folder, of this model or a whole CLIP, or a single file such as ComfyUI's clip_l.safetensors. Versions of
transformers differ in a prefix `text_model.` of their names, so names are compared without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import model_files
from .lean_transformers import empty_weights, from_transformers
from .token_files import CLIP_L, TokenIds, find_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..weights.loader import Weights

KIND = "clip_l"
MAX_TOKENS = 77
HEAD_DIM = 64


class ClipText:
    """Captions to one feature each."""

    def __init__(self, model: Any, tokenizer: TokenIds, device: torch.device, kept: torch.dtype) -> None:
        self.model, self.tokenizer, self.device, self.kept = model, tokenizer, device, kept

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        kept: torch.dtype | None = None,
        flag: str = "--text_encoder2",
    ) -> ClipText:
        """The encoder at `path`, computing in `dtype` and giving features in `kept` (see `model_files.dtypes_for`). UserError when it
        is something else or incomplete, and when no tokenizer can be found."""

        (CLIPTextModel,) = from_transformers("CLIPTextModel")

        files = model_files.model_files(
            path, KIND, flag, subfolder="text_encoder_2", section="text_config", within=("clip_vision", "text_model.")
        )
        weights = files.open()
        with model_files.sized_by(files.source), empty_weights():
            config = _config(files, weights)
            model = CLIPTextModel(config)
        tokenizer = find_tokenizer(CLIP_L, weights, config.vocab_size)
        kept, computed = model_files.dtypes_for(weights, device, dtype, kept)
        model = model_files.fill(model, weights, device, computed, model_files.without_prefix)
        return cls(model, tokenizer, device, kept)

    def encode(self, captions: Sequence[str]) -> list[tuple[Tensor, int]]:
        """Per caption its pooled feature [dim] on the encoder's device, and how many tokens it has (at most 77)."""
        import torch

        rows = [self.tokenizer.encode(caption, MAX_TOKENS) for caption in captions]
        length = max(map(len, rows))
        # attention is causal, so what follows the end of a row changes nothing
        ids = torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows], device=self.device)
        with torch.no_grad():
            states = self.model(input_ids=ids).last_hidden_state
        return [(state[len(row) - 1], len(row)) for state, row in zip(states.to(self.kept), rows, strict=True)]

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Per caption what `encode` leaves out of it, "" where that is nothing."""
        counts = [len(self.tokenizer.encode(caption, 2**20)) for caption in captions]
        return [f"CLIP-L reads its first {MAX_TOKENS} tokens only" if count > MAX_TOKENS else "" for count in counts]


def _config(files: model_files.ModelFiles, weights: Weights) -> Any:
    (CLIPTextConfig,) = from_transformers("CLIPTextConfig")

    vocabulary, width = model_files.shape_of(weights, "token_embedding.weight", files.source)
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=model_files.shape_of(weights, "layers.0.mlp.fc1.weight", files.source)[0],
        num_hidden_layers=model_files.count_layers(weights, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=files.size("num_attention_heads", width, HEAD_DIM),
        max_position_embeddings=model_files.shape_of(weights, "position_embedding.weight", files.source)[0],
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
