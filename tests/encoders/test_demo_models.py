"""The demo models and clips: real layouts, the same files for the same seed, a VAE that works and a transformer a LoRA can teach."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.architectures import cards
from musubi_backend.architectures.card import Card
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.geometry import GEOMETRY_KEY, WanGeometry, geometry_of
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.demo.clips import write_clips
from musubi_backend.demo.models import KINDS, write_models
from musubi_backend.encoders.umt5 import UMT5
from musubi_backend.encoders.wan_vae import WanVAE
from musubi_backend.errors import UserError
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.weights.recognise import recognise
from musubi_backend.weights.safetensors_file import read_header
from safetensors.torch import load_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Video [3, 5, 64, 64] in -1..1 of a demo clip."""
    from musubi_backend.dataset.decoding import read_clip

    path = write_clips(tmp_path_factory.mktemp("clips"), count=1, frames=5)[0]
    frames = read_clip(path, (64, 64), 5)
    assert len(frames) == 5
    return torch.stack([torch.from_numpy(frame) for frame in frames]).permute(3, 0, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_recognised_as_what_it_stands_for(kind: str, tmp_path: Path) -> None:
    found = {part: recognise(path) for part, path in write_models(tmp_path, kind=kind).items()}
    transformer, vae = {"hv": ("hunyuan_video_transformer", "hunyuan_video_vae"), "fp": ("framepack_transformer", "hunyuan_video_vae")}.get(
        kind.split("_")[0], ("wan_transformer", "wan_vae")
    )
    expected = {"dit": transformer, "dit_high_noise": transformer, "vae": vae, "t5": "umt5", "clip": "clip_vision", "qwen_vl": "qwen_vl"}
    expected |= {"text_encoder1": "llama", "text_encoder2": "clip_l", "image_encoder": "siglip"}
    assert {part: kind.id if kind else None for part, kind in found.items()} == {part: expected[part] for part in found}


NUMBER_FORMATS = {
    "wan_i2v": "F16", "wan_22_t2v_low": "F16", "wan_22_t2v_high": "F16", "wan_vae": "BF16", "umt5": "F16", "clip_vision": "F16",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["wan_i2v", "wan22"])
def test_files_have_the_number_formats_of_those_that_the_templates_name(kind: str, tmp_path: Path) -> None:
    for path in write_models(tmp_path, kind=kind).values():
        dtypes = {info.dtype for info in read_header(path).tensors.values()} - {"U8"}
        assert dtypes == {NUMBER_FORMATS[path.stem.removeprefix("demo_")]}, path.name


@pytest.mark.parametrize("card", cards().values(), ids=lambda card: card.id)
def test_files_have_the_dtypes_of_the_examples_that_the_card_names(card: Card, tmp_path: Path) -> None:
    written = write_models(tmp_path, kind=card.id)
    found = {part: {info.dtype for info in read_header(path).tensors.values()} - {"U8"} for part, path in written.items()}
    names = {"BF16": "bfloat16", "F16": "float16"}
    assert {part: [names[dtype] for dtype in dtypes] for part, dtypes in found.items()} == {
        part: [card.part(part).dtype] for part in written
    }


def test_there_is_a_demo_model_for_every_wan_task(tmp_path: Path) -> None:
    headers = [read_header(write_models(tmp_path, kind=kind)["dit"]) for kind in KINDS if kind.startswith("wan")]
    for task in CARD.tasks:
        fitting = 0
        for header in headers:
            with contextlib.suppress(UserError):
                fitting += bool(geometry_of(header, task.name))
        assert fitting, task.name


def test_a_seed_gives_the_same_weights_and_files_are_left_alone(models: dict[str, Path], tmp_path: Path) -> None:
    again = write_models(tmp_path)
    other = write_models(tmp_path / "other", seed=1)
    for part, path in again.items():
        first, second = load_file(models[part]), load_file(path)
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(load_file(other["dit"])["patch_embedding.weight"], load_file(again["dit"])["patch_embedding.weight"])
    times = [path.stat().st_mtime_ns for path in again.values()]
    assert main(["demo_models", "--output", str(tmp_path)]) == 0
    assert times == [path.stat().st_mtime_ns for path in again.values()]


def test_a_file_that_is_no_demo_model_is_never_overwritten(shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "demo_wan_vae.safetensors"
    content = (shared / "golden/vae_te/wan_vae.safetensors").read_bytes()
    mine.write_bytes(content)
    assert main(["demo_models", "--output", str(tmp_path)]) == 1
    assert "is not a demo model" in capfd.readouterr().err
    assert mine.read_bytes() == content


def test_the_vae_gives_latents_of_about_unit_size_and_a_blurred_image_back(models: dict[str, Path], clip: torch.Tensor) -> None:
    vae = WanVAE.load(models["vae"], CPU, torch.float32)
    latents = vae.encode(clip[None])
    assert latents.shape == (1, 16, 2, 8, 8)
    spread = latents.float().std(dim=(0, 2, 3, 4))
    assert spread.min() > 0.05
    assert spread.max() < 5
    back = vae.decode(latents)[0]
    flat = (clip - clip.mean()).abs().mean()
    assert (back - clip).abs().mean() < 0.65 * flat


def test_the_text_encoder_tells_captions_apart(models: dict[str, Path]) -> None:
    encoder = UMT5.load(models["t5"], CPU, torch.bfloat16)
    cat, dog = encoder.encode(["a cat", "a dog"])
    assert cat.shape[1] == dog.shape[1] == 64
    assert len(cat) != len(dog) or (cat - dog).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.full(reason="e2e/test_learning teaches the same model")
def test_a_lora_teaches_the_transformer_one_clip(models: dict[str, Path], clip: torch.Tensor) -> None:
    """300 steps of AdamW at 3e-3 with rank 16 and random noise and times bring the loss at fixed ones down by more than 80 %."""
    latents = WanVAE.load(models["vae"], CPU, torch.float32).encode(clip[None])[0]
    text = UMT5.load(models["t5"], CPU, torch.float32).encode(["a cat"])[0]
    model = WanTransformer(WanGeometry.from_json(read_header(models["dit"]).metadata[GEOMETRY_KEY]))
    model.load_state_dict(load_file(models["dit"]))
    model.float().eval().requires_grad_(False)
    network = LoRANetwork.create(model, CARD, rank=16, alpha=16)
    generator = torch.Generator().manual_seed(0)

    def loss(noise: torch.Tensor, time: float) -> torch.Tensor:
        velocity = model(((1 - time) * latents + time * noise)[None], torch.tensor([1000 * time]), [text])[0]
        return (velocity - (noise - latents)).square().mean()

    fixed = [(torch.randn(latents.shape, generator=generator), time) for time in (0.1, 0.3, 0.5, 0.7, 0.9)]

    def fixed_loss() -> float:
        with torch.no_grad():
            return sum(loss(noise, time).item() for noise, time in fixed)

    before = fixed_loss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(300):
        time = torch.sigmoid(torch.randn((), generator=generator)).item()
        optimizer.zero_grad()
        loss(torch.randn(latents.shape, generator=generator), 3 * time / (1 + 2 * time)).backward()
        optimizer.step()
    assert fixed_loss() < 0.2 * before


def test_clips_have_captions_and_the_wanted_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["demo_dataset", "--output", str(tmp_path / "clips"), "--clips", "5", "--size", "48", "32", "--frames", "13"]
    assert main(words) == 0
    names = {path.name for path in (tmp_path / "clips").iterdir()}
    assert names == {f"{stem}.{kind}" for stem in ("chelsea", "astronaut", "coffee", "rocket", "chelsea_2") for kind in ("mp4", "txt")}
    assert all(path.read_text(encoding="utf-8").strip() for path in (tmp_path / "clips").glob("*.txt"))
    capfd.readouterr()
    assert main(words) == 0
    assert capfd.readouterr().err.count("Already there") == 5


@pytest.mark.parametrize(("flags", "message"), [(["--size", "40", "32"], "multiples of 16"), (["--frames", "12"], "is not 4n.1")])
def test_sizes_that_do_not_fit_are_rejected(flags: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(["demo_dataset", "--output", str(tmp_path), *flags]) == 1
    assert re.search(message, capfd.readouterr().err)
