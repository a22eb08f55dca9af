"""A training small enough for tests: a Wan transformer of two narrow blocks and four cached clips, run through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import __main__ as command_line
from musubi_backend import job
from musubi_backend.architectures.wan import model as wan_model
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.weights.safetensors_file import load, save_atomic

GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=16, freq_dim=32)
BACKEND = Path(__file__).resolve().parents[2] / "backend"


def write_transformer(path: Path, geometry: WanGeometry = GEOMETRY) -> Path:
    """A transformer with weights of sensible size, saying its geometry."""
    model = WanTransformer(geometry)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(model.named_parameters()):
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
        if "norm" in name:
            parameter.data += 1
    save_atomic(model.state_dict(), path, {"musubi_geometry": geometry.to_json()})
    return path


def write_caches(folder: Path, clips: int = 4, frames: int = 9, side: int = 64, text_dim: int = GEOMETRY.text_dim) -> Path:
    """Latent and text caches of `clips` clips and the dataset file that names them. Returns the dataset file."""
    generator = torch.Generator().manual_seed(11)
    cache = folder / "cache"
    for index in range(clips):
        latents = torch.randn(16, (frames - 1) // 4 + 1, side // 8, side // 8, generator=generator)
        name = cache / f"clip{index}_00000-{frames:03d}_{side:04d}x{side:04d}_wan.safetensors"
        save_latents(name, {"latents": latents.bfloat16()}, CARD, width=side, height=side, frame_count=frames)
        text = torch.randn(5 + index, text_dim, generator=generator).bfloat16()
        save_text(cache / f"clip{index}_wan_te.safetensors", {"varlen_t5": text}, CARD, caption=f"clip {index}")
    (folder / "clips").mkdir(exist_ok=True)
    config = folder / "dataset.toml"
    config.write_text(
        f"[general]\nresolution = [{side}, {side}]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"video_directory = '{(folder / 'clips').as_posix()}'\ncache_directory = '{cache.as_posix()}'\ntarget_frames = [{frames}]\n",
        encoding="utf-8",
    )
    return config


class Project:
    """A folder with model and caches; trainings in it end in `out/NAME`."""

    def __init__(self, folder: Path, dit: Path, config: Path) -> None:
        self.folder = folder
        self.dit = dit
        self.config = config

    def argv(self, out: str, *flags: str, **values: Any) -> list[str]:
        """A command line: flags as they are, values as `--key value`; a value of None leaves a default setting out."""
        settings: dict[str, Any] = {
            "task": "t2v-1.3B", "dit": self.dit, "dataset_config": self.config,
            "output_dir": self.folder / "out" / out, "output_name": "cat",
            "network_module": "networks.lora_wan", "network_dim": 4, "network_alpha": 2, "optimizer_type": "adamw", "learning_rate": "1e-2",
            "timestep_sampling": "shift", "discrete_flow_shift": 3, "max_train_steps": 10, "seed": 7, "mixed_precision": "no",
        }  # fmt: skip
        settings |= values
        words = ["wan_train_network", "--sdpa", *flags]
        for key, value in settings.items():
            if value is not None:
                words += [f"--{key}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
        return words

    def train(self, out: str, *flags: str, **values: Any) -> Path:
        """Train in this process; fails the test unless it ends well. Returns the output folder."""
        code = command_line.main(self.argv(out, *flags, **values))
        assert code == 0, f"training ended with exit code {code}"
        return self.folder / "out" / out

    def refused(self, out: str, *flags: str, **values: Any) -> int:
        """Train in this process; returns the exit code."""
        return command_line.main(self.argv(out, *flags, **values))

    def start(self, out: str, *flags: str, environment: dict[str, str] | None = None, **values: Any) -> subprocess.Popen[str]:
        """Train in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}
        return subprocess.Popen(
            [sys.executable, "-m", "musubi_backend", *self.argv(out, *flags, **values)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )  # fmt: skip

    def lora(self, out: str, name: str = "cat") -> dict[str, torch.Tensor]:
        return load(self.folder / "out" / out / f"{name}.safetensors")


@pytest.fixture(scope="session")
def model_and_caches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("model and caches 日本")
    return write_transformer(folder / "dit.safetensors"), write_caches(folder)


@pytest.fixture
def project(model_and_caches: tuple[Path, Path], tmp_path: Path) -> Project:
    return Project(tmp_path, *model_and_caches)


@pytest.fixture(autouse=True)
def no_stop_request_left() -> Iterator[None]:
    """A stop asked for in one test must not stop the next."""
    job._stop.clear()
    yield
    job._stop.clear()


@pytest.fixture
def same() -> SimpleNamespace:
    """Comparisons of LoRAs: `same.bits(a, b)` and `same.difference(a, b)`."""

    def bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[key] - b[key]).abs().max()) for key in a)

    return SimpleNamespace(bits=bits, difference=difference)


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The builders of this file."""
    return SimpleNamespace(transformer=write_transformer, caches=write_caches, geometry=GEOMETRY, project=Project)


@pytest.fixture
def as_musubi_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bf16 and text padded with zeros, as in the recordings."""
    attention = wan_model.attention

    def in_bf16(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), *args, **kwargs).to(q.dtype)

    def padded(text: Sequence[torch.Tensor], length: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, None]:
        tokens = torch.zeros(len(text), length, text[0].shape[-1], dtype=dtype, device=device)
        for row, embedding in zip(tokens, text, strict=True):
            row[: len(embedding)] = embedding
        return tokens, None

    monkeypatch.setattr(wan_model, "attention", in_bf16)
    monkeypatch.setattr(wan_model, "collapse_padding", padded)
