"""Which tiny files make up a model that writes captions. No torch: makers are imported when a file is to be written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..options.tables.tools import CAPTIONER
from .parts import Part

if TYPE_CHECKING:
    from .parts import Content


def _qwen_vl(seed: int) -> Content:
    from .qwen_vl import qwen_vl

    return qwen_vl(seed)


def _tokenizer(folder: Path) -> None:
    from .qwen_vl import TOKENIZER_FOLDER, write_tokenizer

    write_tokenizer(folder / TOKENIZER_FOLDER)


KINDS = {CAPTIONER: {"qwen_vl": Part("demo_qwen_vl.safetensors", _qwen_vl, "bfloat16", _tokenizer)}}
