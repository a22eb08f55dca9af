"""Tokenizers of Llama, CLIP and Qwen2.5-VL from local files: inside the weight file, next to it, or the ones ComfyUI brings along.

Llama's is a `tokenizer.json` (Hugging Face tokenizers). CLIP's is `vocab.json` and `merges.txt`, or a `tokenizer.json` too. Inside a
weight file the bytes of a `tokenizer.json` are the tensor `tokenizer_json`, as in ComfyUI's files of other encoders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .lean_transformers import from_transformers

if TYPE_CHECKING:
    from ..weights.loader import Weights

INSIDE = "tokenizer_json"
COMFYUI_VARIABLE = "COMFYUI_PATH"
_JSON = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerPlaces:
    """Where the tokenizer of one encoder is looked for.

    beside    folder names next to the weights, or next to their folder
    comfyui   folder of a ComfyUI checkout
    files     what a folder must hold, any of these sets
    advice    what to fetch when there is none
    """

    name: str
    beside: tuple[str, ...]
    comfyui: str
    files: tuple[tuple[str, ...], ...]
    advice: str


LLAMA = TokenizerPlaces(
    "Llama 3",
    ("llama_tokenizer", "llava-llama-3-8b-v1_1-transformers", "tokenizer"),
    "comfy/text_encoders/llama_tokenizer",
    ((_JSON,),),
    "tokenizer.json of https://huggingface.co/xtuner/llava-llama-3-8b-v1_1-transformers",
)
CLIP_L = TokenizerPlaces(
    "CLIP-L",
    ("sd1_tokenizer", "clip-vit-large-patch14", "tokenizer_2"),
    "comfy/sd1_tokenizer",
    ((_JSON,), ("vocab.json", "merges.txt")),
    "vocab.json and merges.txt of https://huggingface.co/openai/clip-vit-large-patch14",
)


QWEN_VL = TokenizerPlaces(
    "Qwen2.5-VL",
    ("qwen25_tokenizer", "Qwen2.5-VL-7B-Instruct", "tokenizer"),
    "comfy/text_encoders/qwen25_tokenizer",
    ((_JSON, "tokenizer_config.json"), ("vocab.json", "merges.txt", "tokenizer_config.json")),
    "vocab.json, merges.txt and tokenizer_config.json of https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct",
)


class TokenIds:
    """Text to ids, with the special tokens the model was trained with.

    source: where it came from; rows: how many different ids it can give; token: the id of a token, None if it has none such.
    """

    def __init__(self, encode: Callable[[str, int], list[int]], token: Callable[[str], int | None], source: str, rows: int) -> None:
        self._encode, self.token, self.source, self.rows = encode, token, source, rows

    def encode(self, text: str, limit: int) -> list[int]:
        """At most `limit` ids."""
        return self._encode(text, limit)


def find_tokenizer(places: TokenizerPlaces, weights: Weights, vocabulary: int) -> TokenIds:
    """The tokenizer for the encoder in `weights`, whose embedding has `vocabulary` rows. UserError when there is none anywhere,
    naming where to put it, or when it gives ids the encoder has no embedding for."""
    found = _inside(weights) or _in_folders(places, weights.path)
    if found.rows > vocabulary:
        raise UserError(
            f"the tokenizer in {found.source} has {found.rows} tokens, but the text encoder {weights.path} knows {vocabulary}; "
            "they do not belong together"
        )
    return found


def from_json(content: bytes, source: str) -> TokenIds:
    """From the bytes of a `tokenizer.json`. UserError when they are not one."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{source} is not a tokenizer.json ({str(error)[:200]}); fetch it again or remove it") from error

    def encode(text: str, limit: int) -> list[int]:
        tokenizer.enable_truncation(limit)
        return list(tokenizer.encode(text).ids)

    tokenizer.no_padding()
    return TokenIds(encode, tokenizer.token_to_id, source, tokenizer.get_vocab_size())


def comfyui_folders(weights: Path) -> Iterator[Path]:
    """ComfyUI checkouts this process can know of: $COMFYUI_PATH, then the one the weights or this package lie in."""
    named = os.environ.get(COMFYUI_VARIABLE)
    if named:
        yield Path(named)
    for start in (weights.absolute(), Path(__file__).resolve()):
        yield from (parent for parent in start.parents if (parent / "comfy").is_dir())


def _inside(weights: Weights) -> TokenIds | None:
    info = weights.header.tensors.get(INSIDE)
    if info is None or info.dtype != "U8":
        return None
    return from_json(weights.read(INSIDE).numpy().tobytes(), f"{weights.path} ({INSIDE})")


def _in_folders(places: TokenizerPlaces, weights: Path) -> TokenIds:
    return _from_folder(*find_folder(places, weights))


def find_folder(places: TokenizerPlaces, weights: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds the tokenizer for the file `weights`, and which of the sets of files it has. UserError when there is none
    anywhere, naming where to put it."""
    parent = weights.absolute().parent
    candidates = [parent, *(base / name for base in (parent, parent.parent) for name in places.beside)]
    candidates += [folder / places.comfyui for folder in comfyui_folders(weights)]
    for folder in candidates:
        for files in places.files:
            if all((folder / name).is_file() for name in files):
                return folder, files
    raise UserError(
        f"no {places.name} tokenizer for {weights}: the file holds none, and there is none in {', '.join(map(str, candidates))}. "
        f"Put {places.advice} into {parent / places.beside[0]}, or name a ComfyUI folder with {COMFYUI_VARIABLE}"
    )


def _from_folder(folder: Path, files: Sequence[str]) -> TokenIds:
    if files[0] == _JSON:
        return from_json((folder / _JSON).read_bytes(), str(folder / _JSON))
    (CLIPTokenizer,) = from_transformers("CLIPTokenizer")

    try:
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read ({str(error).splitlines()[0]}); repair or remove that folder") from error

    def encode(text: str, limit: int) -> list[int]:
        ids: list[int] = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return ids

    return TokenIds(encode, tokenizer.convert_tokens_to_ids, str(folder), len(tokenizer))
