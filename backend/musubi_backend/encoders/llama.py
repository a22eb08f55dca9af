"""The Llama 3 text encoder of HunyuanVideo and FramePack (LLaVA-Llama3): transformers' LlamaModel without its last two layers.

The models were trained with the hidden states two layers before the end (github.com/Tencent-Hunyuan/HunyuanVideo,
`hyvideo/text_encoder`), of a caption inside a fixed instruction whose own tokens are cut off afterwards. Files: a Hugging Face folder,
ComfyUI's single file (names begin with `model.`), or a whole LLaVA (`language_model.model.`); vision and output layers are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counted import counted
from ..errors import UserError
from . import model_files
from .fp8_linears import hold_linears_in_fp8
from .lean_transformers import empty_weights, from_transformers
from .offloaded import Offload, chosen
from .token_files import LLAMA, TokenIds, find_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..weights.loader import Weights

KIND = "llama"
MAX_TOKENS = 256
"""Tokens of a caption that are kept."""
SKIPPED_LAYERS = 2
HEAD_DIM = 128
BEGIN = "<|begin_of_text|>"
VIDEO_INSTRUCTION = (
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:"
)
_NAME = re.compile(r"^(?:language_model\.model\.|model\.language_model\.|model\.)?((?:embed_tokens|layers)\..*)$")
_LAYER = re.compile(r"^layers\.(\d+)\.")


class LlamaEncoder:
    """Captions to token features."""

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
        fp8: bool = False,
        offload: bool = False,
        flag: str = "--text_encoder1",
    ) -> LlamaEncoder:
        """The encoder at `path`, computing in `dtype` and giving features in `kept` (see `model_files.dtypes_for`); fp8: with its
        matrices held in fp8; offload: see `offloaded`, which also happens where it does not fit on the GPU.

        UserError when it is something else or incomplete, and when no tokenizer can be found.
        """
        files = model_files.model_files(path, KIND, flag, subfolder="text_encoder", section="text_config")
        weights = files.open()
        with model_files.sized_by(files.source):
            vocabulary, _ = model_files.shape_of(weights, "embed_tokens.weight", files.source)
        tokenizer = find_tokenizer(LLAMA, weights, vocabulary)
        kept, computed = model_files.dtypes_for(weights, device, dtype, kept)
        model = _build(files, weights, device, computed, fp8, offload)
        return cls(model, tokenizer, device, kept)

    def encode(self, captions: Sequence[str], instruction: str | None = None) -> list[Tensor]:
        """Per caption its token features [L, dim], L <= 256 without padding and without the instruction's tokens, on the
        encoder's device. instruction: what the model is asked to do with the caption; None: what it was trained with."""
        import torch

        start = _head(VIDEO_INSTRUCTION if instruction is None else instruction)
        cut = len(self._ids(start, 2**20))
        rows = [self._ids(f"{start}{caption}<|eot_id|>", cut + MAX_TOKENS) for caption in captions]
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        with torch.no_grad():
            states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return [state[cut : len(row)] for state, row in zip(states.to(self.kept), rows, strict=True)]

    def cut(self, captions: Sequence[str], instruction: str | None = None) -> list[str]:
        """Per caption what `encode` leaves out of it, "" where that is nothing."""
        start = _head(VIDEO_INSTRUCTION if instruction is None else instruction)
        limit = len(self._ids(start, 2**20)) + MAX_TOKENS
        counts = [len(self._ids(f"{start}{caption}<|eot_id|>", 2**20)) for caption in captions]
        return [f"Llama reads its first {MAX_TOKENS} tokens only" if count > limit else "" for count in counts]

    def _ids(self, text: str, limit: int) -> list[int]:
        ids = self.tokenizer.encode(text, limit)
        begin = self.tokenizer.token(BEGIN)
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids][:limit]


def _head(instruction: str) -> str:
    """What stands before a caption."""
    return f"<|start_header_id|>system<|end_header_id|>\n\n{instruction}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"


def _build(files: model_files.ModelFiles, weights: Weights, device: torch.device, dtype: torch.dtype, fp8: bool, offload: bool) -> Any:
    import torch

    (LlamaModel,) = from_transformers("LlamaModel")

    with model_files.sized_by(files.source), empty_weights():
        config = _config(files, weights)
        model: Any = LlamaModel(config)
    model.norm = torch.nn.Identity()

    def bare(name: str) -> str | None:
        match = _NAME.match(name)
        layer = _LAYER.match(match[1]) if match else None
        return match[1] if match and (layer is None or int(layer[1]) < config.num_hidden_layers) else None

    if fp8:
        hold_linears_in_fp8(model)
    offloaded = Offload(model, model.embed_tokens, model.layers) if chosen(model, device, dtype, offload) else None
    model_files.fill(model, weights, device, dtype, bare, stay=offloaded.stay if offloaded else ())
    if offloaded is not None:
        offloaded.begin(device)
    model.rotary_emb = type(model.rotary_emb)(config).to(device)  # its frequencies are in no file
    return model


def _config(files: model_files.ModelFiles, weights: Weights) -> Any:
    (LlamaConfig,) = from_transformers("LlamaConfig")

    def shape(ending: str) -> tuple[int, ...]:
        return model_files.shape_of(weights, ending, files.source)

    vocabulary, width = shape("embed_tokens.weight")
    layers = model_files.count_layers(weights, r"(?:^|\.)layers\.(\d+)\.self_attn\.q_proj")
    if layers <= SKIPPED_LAYERS:
        raise UserError(
            f"{files.source}: this text encoder has {counted(layers, 'layer')}, and more than {SKIPPED_LAYERS} are needed; "
            "use llava_llama3_fp16.safetensors"
        )
    inner = shape("layers.0.self_attn.q_proj.weight")[0]
    head_dim = int(files.number("head_dim", min(HEAD_DIM, inner)))
    base = float((files.config.get("rope_parameters") or {}).get("rope_theta") or files.number("rope_theta", 500000.0))
    rotary: dict[str, Any] = {"rope_theta": base}  # versions of transformers declare it in different places; all take it
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("layers.0.mlp.gate_proj.weight")[0],
        num_hidden_layers=layers - SKIPPED_LAYERS,
        num_attention_heads=inner // head_dim,
        num_key_value_heads=shape("layers.0.self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rms_norm_eps=float(files.number("rms_norm_eps", 1e-5)),
        use_cache=False,
        **rotary,
    )
