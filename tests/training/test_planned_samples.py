"""What a plan says of samples, against the live bytes of real ones on the CPU."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures import protocol
from musubi_backend.demo.models import write_models
from musubi_backend.memory.equal_tiles import counted_once, seams_of_a_line
from musubi_backend.memory.live_bytes import LiveBytes
from musubi_backend.training import planned_samples
from PIL import Image

pytest.importorskip("diffusers")
CPU = torch.device("cpu")


def prompts(folder: Path, *lines: str) -> str:
    file = folder / "prompts.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


CASES: list[tuple[str, dict[str, Any]]] = [("wan", {"task": "t2v-1.3B"}), ("hv", {}), ("hv", {"vae_spatial_tile_sample_min_size": 32})]
"""The first, or with `--full` all of them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize(("family", "options"), CASES if metafunc.config.getoption("--full", False) else CASES[:1])


def test_decoding_is_planned_within_ten_percent(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """Of the largest sample, whose six frames of latents are more than are looked at."""
    models = write_models(tmp_path / "models", kind=family)
    values = {"vae": str(models["vae"]), "vae_dtype": "float32", "dit": str(models["dit"]), **options}
    architecture = protocol.load(family).configured(values)
    request = planned_samples.largest_request(prompts(tmp_path, "a cat --w 32 --h 32 --f 1", "a dog --w 48 --h 32 --f 21"), architecture)
    shape = architecture.noise_shape(request)
    assert shape == (16, 6, 4, 6)
    count = LiveBytes(CPU)
    with count:
        architecture.latent_decoder(CPU).decode(torch.zeros(shape))
    planned = planned_samples.decoded(architecture, request, torch.empty(1, 16, 2, 4, 4, device="meta"))
    assert planned == pytest.approx(count.peak, rel=0.1), f"{planned / count.peak - 1:+.1%}"


def test_encoders_are_planned_within_ten_percent(tmp_path: Path) -> None:
    """Of the text, by the weights that it holds in 8 bits; of an image to start from, for more frames than are looked at."""
    models = write_models(tmp_path / "models", kind="wan")
    Image.new("RGB", (48, 32)).save(tmp_path / "one.png")
    values = {"vae": str(models["vae"]), "vae_dtype": "float32", "task": "i2v-A14B", "t5": str(models["t5"]), "fp8_t5": True}
    architecture = protocol.load("wan").configured(values)
    request = planned_samples.largest_request(prompts(tmp_path, f"a cat --w 48 --h 32 --f 33 --i {tmp_path / 'one.png'}"), architecture)
    encoder: Any = architecture.text_encoder(planned_samples.META)
    held = sum(one.nbytes for one in encoder.encoder.model.parameters())
    assert planned_samples.text_encoders(architecture) == pytest.approx(held, rel=0.1)
    count = LiveBytes(CPU)
    with count:
        images = architecture.condition_encoder(CPU)
        assert images is not None and images.encode(request)
    planned = planned_samples.images(architecture, request)
    assert planned == pytest.approx(count.peak, rel=0.1), f"{planned / count.peak - 1:+.1%}"


def test_tiles_that_are_counted_once_take_what_they_take_one_by_one() -> None:
    """The largest tile runs; a smaller one at the edge, and later ones beside results that are kept, are reckoned from it."""
    tile = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 1), torch.nn.Upsample(scale_factor=(1.0, 8.0, 8.0)), torch.nn.Conv3d(8, 3, 1)).to(
        "meta"
    )
    peaks, runs = [], []
    tile[0].register_forward_hook(lambda *_: runs.append(1))
    for once in (False, True):
        count = LiveBytes(torch.device("meta"), [*tile.parameters()])
        with torch.no_grad(), counted_once(tile, count) if once else contextlib.nullcontext(), count:
            made = [tile(torch.empty(1, 4, 2, *size, device="meta")) for size in ((8, 8), (8, 8), (8, 4), (4, 4))]
        peaks.append((count.peak, [one.shape for one in made]))
    assert peaks[0] == peaks[1]
    assert len(runs) == 5


class Seams:
    """Blends like diffusers' tiled models."""

    def blend_v(self, a: Any, b: Any, extent: int) -> Any:
        for y in range(extent):
            b[..., y, :] = a[..., -extent + y, :] * (1 - y / extent) + b[..., y, :] * (y / extent)
        return b

    def blend_h(self, a: Any, b: Any, extent: int) -> Any:
        return self.blend_v(a.mT, b.mT, extent).mT


def test_one_line_of_a_seam_takes_what_all_of_them_take() -> None:
    found = []
    for quick in (False, True):
        model, count = Seams(), LiveBytes(torch.device("meta"))
        with seams_of_a_line(model) if quick else contextlib.nullcontext(), count:
            a, b = (torch.empty(2, 3, 16, 24, device="meta") for _ in range(2))
            count.mark()
            shape = model.blend_h(a, model.blend_v(a, b, 6), 6).shape
        found.append((count.peak, shape, len(vars(model))))
    assert found[0] == found[1]
