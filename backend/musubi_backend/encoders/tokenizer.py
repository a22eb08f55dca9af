"""umt5's tokenizer, looked for in this order: a folder next to the weight file, the `spiece_model` inside it, what another program has
fetched from the Hugging Face hub before. Nothing is fetched.

Captions are cleaned as Wan does it (github.com/Wan-Video/Wan2.1, `wan/modules/tokenizers.py`): broken Unicode and HTML entities
repaired, runs of white space made one blank. A SentencePiece model gives the same ids as the Hugging Face tokenizer built from it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .lean_transformers import from_transformers

SPIECE_TENSOR = "spiece_model"
SPIECE_FILE = "spiece.model"
HUB_REPOSITORY, HUB_FOLDER = "Wan-AI/Wan2.1-T2V-14B", "google/umt5-xxl"
FOLDERS = ("google/umt5-xxl", "umt5-xxl", "tokenizer", "umt5_tokenizer")
_FOLDER_FILES = ("tokenizer.json", "tokenizer_config.json", SPIECE_FILE)


class Tokenizer:
    """Captions to ids, each row ending in the end-of-sequence id.

    source   where it came from, for log and error messages
    rows     how many different ids it can give
    """

    def __init__(self, encode: Callable[[str, int], list[int]], source: str, rows: int) -> None:
        self._encode, self.source, self.rows = encode, source, rows

    def encode_batch(self, captions: Sequence[str], limit: int) -> list[list[int]]:
        """Ids of every caption, cleaned, at most `limit` with the last one always the end of sequence."""
        return [self._encode(clean(caption), limit) for caption in captions]


def clean(caption: str) -> str:
    """The caption as Wan tokenizes it."""
    import ftfy

    repaired = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return re.sub(r"\s+", " ", repaired).strip()


def find_tokenizer(weights: Path, spiece: bytes | None, vocabulary: int) -> Tokenizer:
    """The tokenizer for the encoder in `weights`, whose embedding has `vocabulary` rows (0: unknown).

    spiece: the SentencePiece model found inside the weight file. UserError when there is none anywhere, or when it gives ids
    the encoder has no embedding for.
    """
    tokenizer = (
        _beside(weights) or (from_sentencepiece(spiece, f"{weights} ({SPIECE_TENSOR})") if spiece else None) or _from_hub_cache(weights)
    )
    if vocabulary and tokenizer.rows > vocabulary:
        raise UserError(
            f"the tokenizer in {tokenizer.source} has {tokenizer.rows} tokens, but the text encoder {weights} knows {vocabulary}; "
            "they do not belong together"
        )
    return tokenizer


def from_sentencepiece(model: bytes, source: str) -> Tokenizer:
    """A tokenizer from the bytes of a SentencePiece model. UserError when they are not one."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise UserError(f"{source} does not hold a SentencePiece model ({error})") from error
    end = processor.eos_id() if processor.eos_id() >= 0 else 1

    def encode(caption: str, limit: int) -> list[int]:
        ids: list[int] = processor.EncodeAsIds(caption)
        return [*ids[: limit - 1], end]

    return Tokenizer(encode, source, processor.GetPieceSize())


def from_folder(folder: Path) -> Tokenizer:
    """A tokenizer from a local folder in Hugging Face's layout, or holding just a SentencePiece model."""
    if not any((folder / name).is_file() for name in _FOLDER_FILES[:2]):
        return from_sentencepiece((folder / SPIECE_FILE).read_bytes(), str(folder / SPIECE_FILE))
    (AutoTokenizer,) = from_transformers("AutoTokenizer")

    try:
        return _from_transformers(AutoTokenizer.from_pretrained(folder, local_files_only=True), str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read ({str(error).splitlines()[0]}); repair or remove that folder") from error


def _beside(weights: Path) -> Tokenizer | None:
    parent = weights.parent
    for folder in (parent / name for name in FOLDERS):
        if any((folder / name).is_file() for name in _FOLDER_FILES):
            return from_folder(folder)
    file = parent / SPIECE_FILE
    return from_sentencepiece(file.read_bytes(), str(file)) if file.is_file() else None


def _from_hub_cache(weights: Path) -> Tokenizer:
    (AutoTokenizer,) = from_transformers("AutoTokenizer")

    try:
        tokenizer = AutoTokenizer.from_pretrained(HUB_REPOSITORY, subfolder=HUB_FOLDER, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer for {weights}: the file holds none, there is none next to it, and {HUB_REPOSITORY} of huggingface.co was not "
            "fetched to this machine by another program. Either use ComfyUI's text encoder file (umt5_xxl_fp16.safetensors), which holds "
            f"its tokenizer, or put the files of https://huggingface.co/{HUB_REPOSITORY}/tree/main/{HUB_FOLDER} into "
            f"{weights.parent / FOLDERS[0]}"
        ) from error
    return _from_transformers(tokenizer, f"huggingface.co/{HUB_REPOSITORY}")


def _from_transformers(tokenizer: Any, source: str) -> Tokenizer:
    def encode(caption: str, limit: int) -> list[int]:
        ids: list[int] = tokenizer(caption, truncation=True, max_length=limit, add_special_tokens=True)["input_ids"]
        return ids

    return Tokenizer(encode, source, len(tokenizer))
