"""Where a tokenizer folder lies on this machine: given, beside the weights, or in a ComfyUI. Nothing is ever downloaded here.

ComfyUI brings the tokenizers of its text encoders along (`comfy/text_encoders/<name>`). One is found through $COMFYUI_PATH (our
nodes set it for the backend), and from weights that lie in ComfyUI's own `models` folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import UserError

COMFYUI_VARIABLE = "COMFYUI_PATH"
_FILES = ("tokenizer.json", "vocab.json")


def tokenizer_folder(
    weights: Path, names: Sequence[str], *, chosen: str | None = None, flag: str = "--tokenizer", source: str = ""
) -> Path:
    """The folder in Hugging Face's layout that holds the tokenizer for `weights` (a file, or a model folder).

    names: what the folder may be called; the first is ComfyUI's. chosen: the value of `flag`, which then must be right.
    source: where the files can be had, for the error. UserError says where it was looked for and where to put it.
    """
    if chosen:
        if _holds_tokenizer(Path(chosen)):
            return Path(chosen)
        raise UserError(f"{flag}: {chosen} holds no tokenizer (neither {' nor '.join(_FILES)})")
    for folder in _candidates(weights, names):
        if _holds_tokenizer(folder):
            return folder
    beside = (weights if weights.is_dir() else weights.parent) / names[0]
    raise UserError(
        f"no tokenizer for {weights}: there is none beside it, and no ComfyUI was found. Name its folder with {flag} (ComfyUI has it in "
        f"comfy/text_encoders/{names[0]}), set {COMFYUI_VARIABLE} to your ComfyUI, or put the tokenizer's files"
        f"{f' ({source})' if source else ''} into {beside}"
    )


def _candidates(weights: Path, names: Sequence[str]) -> Iterator[Path]:
    home = weights if weights.is_dir() else weights.parent
    if weights.is_dir():
        yield home
    for name in names:
        yield home / name
    roots = [Path(os.environ[COMFYUI_VARIABLE])] if os.environ.get(COMFYUI_VARIABLE) else []
    for root in (*roots, *weights.absolute().parents):
        yield root / "comfy" / "text_encoders" / names[0]


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)
