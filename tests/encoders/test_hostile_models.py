"""Files of VAEs and encoders that were cut, mixed up, or have the shapes of something else: loaded, or rejected in one sentence that names
the file. None gets as far as a traceback of a library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import damaged_headers, with_other_shapes
from musubi_backend.demo.models import write_models
from musubi_backend.encoders.clip_text import ClipText
from musubi_backend.encoders.clip_vision import ClipVision
from musubi_backend.encoders.hunyuan_vae import HunyuanVAE
from musubi_backend.encoders.llama import LlamaEncoder
from musubi_backend.encoders.siglip import Siglip
from musubi_backend.encoders.umt5 import UMT5
from musubi_backend.encoders.wan_vae import WanVAE
from musubi_backend.errors import UserError

CPU = torch.device("cpu")
LOADERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "Llama": ("fp", "text_encoder1", lambda path: LlamaEncoder.load(path, CPU)),
    "CLIP's text": ("fp", "text_encoder2", lambda path: ClipText.load(path, CPU)),
    "SigLIP": ("fp", "image_encoder", lambda path: Siglip.load(path, CPU)),
    "HunyuanVideo's VAE": ("fp", "vae", lambda path: HunyuanVAE.load(path, CPU, torch.float32)),
    "umt5": ("wan_i2v", "t5", lambda path: UMT5.load(path, CPU, torch.float32)),
    "CLIP's images": ("wan_i2v", "clip", lambda path: ClipVision.load(path, CPU)),
    "Wan's VAE": ("wan_i2v", "vae", lambda path: WanVAE.load(path, CPU, torch.float32)),
}

SOME = {"flat", "scalars", "no elements", "turned", "I32"}  # making a VAE takes half a second


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {kind: write_models(tmp_path_factory.mktemp(kind), kind=kind) for kind in ("fp", "wan_i2v")}


@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_rejected_by_name(name: str, demo: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    kind, part, load = LOADERS[name]
    good = demo[kind][part]
    path = tmp_path / f"damaged{good.suffix}"
    rejected = []
    content = good.read_bytes()
    ways = [*(damaged_headers(content) if name == "umt5" else ()), *with_other_shapes(content)]
    for what, data in ways if "VAE" not in name else [(what, data) for what, data in ways if what in SOME]:
        path.write_bytes(data)
        try:
            load(path)
        except UserError as error:
            rejected.append(what)
            assert path.name in str(error) and len(str(error)) < 1000, f"{what}: {error}"
    assert set(rejected) >= SOME
