"""Image-to-video training: the real loop follows the recorded steps of musubi-tuner.

The recordings do not hold the model and the caches, only the seeds they were made from; both are made again here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.weights.safetensors_file import load, save_atomic
from recorded_training import Replay
from torch import Tensor, nn

GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64, in_dim=36, image_dim=1280)


def recorded_model(monkeypatch: pytest.MonkeyPatch) -> WanTransformer:
    """The weights that musubi-tuner's model has after seed 0, its own initialisation and the one of the recording."""
    empty = torch.empty

    def with_drawn_tables(*shape: Any, **more: Any) -> Tensor:
        return torch.randn(shape) if shape in ((1, 6, GEOMETRY.dim), (1, 2, GEOMETRY.dim)) else empty(*shape, **more)

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", with_drawn_tables)  # musubi-tuner draws its modulation tables in passing
        model = WanTransformer(GEOMETRY).requires_grad_(False)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for weight in (*(linear.weight for linear in linears), model.patch_embedding.weight.flatten(1)):
        nn.init.xavier_uniform_(weight)
    for linear in linears:
        if any(linear is one for part in (model.text_embedding, model.time_embedding) for one in part):
            nn.init.normal_(linear.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02 if parameter.ndim == 2 else 0.1)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def write_caches(folder: Path) -> None:
    """The caches of the four items."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(4, 2, 4, 4)
    mask[:, 0] = 1
    for number in range(4):
        latents, start = (torch.randn(16, 2, 4, 4, generator=generator) for _ in range(2))
        clip = torch.randn(257, 1280, generator=generator).to(torch.float16)
        text = torch.randn(10 + number, 64, generator=generator).bfloat16()
        cached = {"latents": latents.bfloat16(), "latents_image": torch.cat([mask, start]).bfloat16(), "clip": clip}
        name = folder / f"vid{number}_00000-005_0032x0032_wan.safetensors"
        save_latents(name, cached, CARD, width=32, height=32, frame_count=5)
        save_text(folder / f"vid{number}_wan_te.safetensors", {"varlen_t5": text}, CARD, caption=f"clip {number}")


@pytest.mark.parametrize("name", ["i2v_gc", "i2v_no_gc"])
@pytest.mark.usefixtures("as_musubi_computes")
def test_steps_equal_the_recorded_ones(name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads((shared / "golden/train/index.json").read_text())[name]
    trace = load(shared / f"golden/train/{name}.trace.safetensors")
    dit, data = tmp_path / "dit.safetensors", tmp_path / "dataset.toml"
    save_atomic(recorded_model(monkeypatch).state_dict(), dit, {"musubi_geometry": GEOMETRY.to_json()})
    write_caches(tmp_path / "cache")
    data.write_text(
        f"[general]\nresolution = [32, 32]\n[[datasets]]\nvideo_directory = '{tmp_path.as_posix()}'\n"
        f"cache_directory = '{(tmp_path / 'cache').as_posix()}'\ntarget_frames = [5]\n",
        encoding="utf-8",
    )
    (tmp_path / "out").mkdir()
    places = ["--dit", dit, "--dataset_config", data, "--output_dir", tmp_path / "out"]
    assert Replay(case, trace, trace, places).run(rtol=1e-5) < 1e-3
