"""Latents and texts are cached as the table promises: with less memory as without, on the device as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from contract_bench import assert_kept
from contract_table import BITS, EIGHT_BITS, SAME_MATHS, SIXTEEN_BITS, Promise
from musubi_backend.__main__ import main
from musubi_backend.demo.models import write_models
from musubi_backend.weights.safetensors_file import load
from torch import Tensor

SIDE, FRAMES = 64, 9
SEAMS = Promise(5e-3, "tiles do not see each other; the demo VAE looks only a few pixels far", least=1e-6)


@dataclass(frozen=True)
class Verb:
    """A caching tool, the kind of its demo models, and the parts it reads."""

    tool: str
    kind: str
    parts: tuple[str, ...]


WAN = Verb("wan_cache_latents", "wan", ("vae",))
HUNYUAN = Verb("cache_latents", "hv", ("vae",))
FRAMEPACK = Verb("fpack_cache_latents", "fp", ("vae", "image_encoder"))
WAN_TEXT = Verb("wan_cache_text_encoder_outputs", "wan", ("t5",))
HUNYUAN_TEXT = Verb("cache_text_encoder_outputs", "hv", ("text_encoder1", "text_encoder2"))
FRAMEPACK_TEXT = Verb("fpack_cache_text_encoder_outputs", "fp", ("text_encoder1", "text_encoder2"))
TILES = ("--vae_spatial_tile_sample_min_size", "32")

SLOW = pytest.mark.slow  # imports transformers
ROWS = [
    (WAN, ("--vae_cache_cpu",), BITS),
    (HUNYUAN, ("--vae_chunk_size", "16"), SAME_MATHS),
    (HUNYUAN, TILES, SEAMS),
    (FRAMEPACK, ("--vae_chunk_size", "16"), SAME_MATHS),
    (FRAMEPACK, TILES, SEAMS),
    pytest.param(WAN_TEXT, ("--fp8_t5",), EIGHT_BITS, marks=SLOW),
    pytest.param(HUNYUAN_TEXT, ("--fp8_llm",), EIGHT_BITS, marks=SLOW),
    pytest.param(FRAMEPACK_TEXT, ("--fp8_llm",), EIGHT_BITS, marks=SLOW),
]
Caches = dict[str, Tensor]
Cached = Callable[[Verb, str, tuple[str, ...]], Caches]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, device: str) -> Cached:
    """cached(verb, device, flags) -> all floats of the caches that the tool writes. Skips where a package of the tools is missing."""
    pytest.importorskip("av")
    pytest.importorskip("diffusers")
    pytest.importorskip("sentencepiece")
    from musubi_backend.inference.video_file import write_mp4

    root = tmp_path_factory.mktemp("caching")
    models = {kind: write_models(root / kind, kind=kind) for kind in ("wan", "hv", "fp")}
    slope = torch.linspace(0, 255, SIDE).expand(FRAMES, SIDE, SIDE) * torch.linspace(0.4, 1, FRAMES).view(-1, 1, 1)
    write_mp4(root / "clips" / "slope.mp4", slope.byte()[..., None].expand(-1, -1, -1, 3).contiguous().numpy(), fps=16)
    (root / "clips" / "slope.txt").write_text("a slope of light", encoding="utf-8")
    done: dict[object, Caches] = {}

    def run(verb: Verb, where: str, flags: tuple[str, ...]) -> Caches:
        key = verb, where, flags
        if key not in done:
            folder = root / f"{len(done)}"
            done[key] = _cached(verb, models[verb.kind], root / "clips", folder, ["--device", where, *flags])
        return done[key]

    return run


def _cached(verb: Verb, models: dict[str, Path], clips: Path, folder: Path, flags: list[str]) -> Caches:
    folder.mkdir()
    config = folder / "dataset.toml"
    config.write_text(
        f"[general]\nresolution = [{SIDE}, {SIDE}]\ncaption_extension = '.txt'\n[[datasets]]\nvideo_directory = '{clips.as_posix()}'\n"
        f"cache_directory = '{(folder / 'cache').as_posix()}'\ntarget_frames = [{FRAMES}]\nfp_latent_window_size = 2\n",
        encoding="utf-8",
    )
    parts = [word for part in verb.parts for word in (f"--{part}", str(models[part]))]
    assert main([verb.tool, "--dataset_config", str(config), *parts, *flags]) == 0
    files = sorted((folder / "cache").glob("*.safetensors"))
    assert files
    found = {f"{file.name} {name}": tensor for file in files for name, tensor in load(file).items()}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


@pytest.mark.parametrize(("verb", "flags", "promise"), ROWS, ids=lambda value: value.tool if isinstance(value, Verb) else None)
def test_caches_with_less_memory(verb: Verb, flags: tuple[str, ...], promise: Promise, cached: Cached, device: str) -> None:
    assert_kept(cached(verb, device, flags), cached(verb, device, ()), promise)


@pytest.mark.parametrize("verb", [WAN, HUNYUAN, FRAMEPACK, WAN_TEXT, HUNYUAN_TEXT, FRAMEPACK_TEXT], ids=lambda verb: verb.tool)
def test_the_device_caches_what_the_cpu_caches(verb: Verb, cached: Cached, device: str) -> None:
    if device == "cpu":
        pytest.skip("the device is the CPU")
    assert_kept(cached(verb, device, ()), cached(verb, "cpu", ()), SIXTEEN_BITS)
