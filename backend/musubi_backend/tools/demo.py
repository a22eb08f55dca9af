"""`demo_models`: tiny models, so that captioning, caching, training and generating can be tried in seconds without a download.

Nothing in them was trained. The transformer passes its input through and is easy to teach by LoRA (`demo_wan_transformer`); the
VAE really encodes and decodes, blurred (`demo_wan_vae`); the text encoder is random, with a tokenizer that was made from a few captions.
All files carry the layout of the real ones.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..weights.safetensors_file import read_header, save_atomic

if TYPE_CHECKING:
    from torch import Tensor

    Content = tuple[dict[str, Tensor], dict[str, str]]

logger = logging.getLogger(__name__)

DIT, VAE, T5 = "demo_wan_t2v.safetensors", "demo_wan_vae.safetensors", "demo_umt5.safetensors"
QWEN_VL = "demo_qwen_vl.safetensors"
TEXT_DIM = 64
_TAG = "musubi_demo"
_VERSION = "1"


def run(args: Namespace) -> None:
    """Write the files into `--output`; those already made with the same seed are left alone."""
    write_models(Path(args.output), args.seed)


def write_models(folder: Path, seed: int = 0) -> dict[str, Path]:
    """The demo models in `folder`: {"dit": ..., "vae": ..., "t5": ..., "qwen_vl": ...}. UserError when the folder cannot be written."""
    from .demo_qwen_vl import TOKENIZER_FOLDER, qwen_vl, write_tokenizer
    from .demo_umt5 import umt5
    from .demo_wan_transformer import wan_transformer
    from .demo_wan_vae import wan_vae

    makers: dict[str, tuple[str, Callable[[], Content]]] = {
        "dit": (DIT, lambda: wan_transformer(TEXT_DIM, seed)),
        "vae": (VAE, lambda: (wan_vae(), {})),
        "t5": (T5, lambda: (umt5(TEXT_DIM, seed), {})),
        "qwen_vl": (QWEN_VL, lambda: qwen_vl(seed)),
    }
    paths = {}
    for part, (name, make) in makers.items():
        paths[part] = folder / name
        _write(paths[part], make, f"{_VERSION}, seed {seed}")
    write_tokenizer(folder / TOKENIZER_FOLDER)
    return paths


def _write(path: Path, make: Callable[[], Content], tag: str) -> None:
    if path.is_file() and _tag_of(path) == tag:
        logger.info("Already there: %s", path)
        return
    tensors, metadata = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic(tensors, path, {**metadata, _TAG: tag})
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
    logger.info("Written: %s (%.1f MB)", path, path.stat().st_size / 1e6)


def _tag_of(path: Path) -> str | None:
    """The tag of a demo file; None for anything else, which is then replaced only if it is unreadable or a demo file."""
    try:
        header = read_header(path)
    except UserError:
        return None
    if _TAG not in header.metadata:
        raise UserError(f"{path} exists and is not a demo model; give another folder to --output")
    return header.metadata[_TAG]
