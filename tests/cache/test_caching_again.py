"""`--skip_existing` makes again what was made from something else, and nothing more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.architectures.card import Card
from musubi_backend.caching import latents
from musubi_backend.content import RECORD
from musubi_backend.dataset import ahead
from musubi_backend.dataset.decoding import DecodedEntry
from musubi_backend.dataset.probe import Foreseen
from musubi_backend.dataset.problems import Problem
from musubi_backend.demo.clips import write_clips
from musubi_backend.demo.models import write_models
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    write_clips(tmp_path / "clips", count=3, size=(32, 32), frames=9)
    return tmp_path / "clips"


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_latents_follow_media_encoder_and_settings(
    tmp_path: Path, clips: Path, demo_models: dict[str, Path], dataset_toml: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"

    first, other = clips / "astronaut.mp4", clips / "coffee.mp4"
    size = max(first.stat().st_size, other.stat().st_size) + 64
    for clip in (first, other):  # a box "free" at the end is no part of the clip
        data = clip.read_bytes()
        clip.write_bytes(data + (size - len(data)).to_bytes(4, "big") + b"free".ljust(size - len(data) - 4, b"\0"))

    def again(*flags: str, vae: Path = demo_models["vae"], **settings: object) -> tuple[set[str], str]:
        """The files that caching writes, and what it says."""
        capfd.readouterr()
        toml = dataset_toml(tmp_path / "d.toml", "video", clips, cache, resolution=[32, 32], target_frames=[1, 5], **settings)
        before = times(cache)
        assert main(["wan_cache_latents", "--dataset_config", str(toml), "--vae", str(vae), *flags, "--skip_existing"]) == 0
        return {name for name, time in times(cache).items() if before.get(name) != time}, capfd.readouterr().err

    everything, _ = again()
    assert len(everything) == 6
    shutil.copy2(other, first)
    written, said = again()
    assert written == {name for name in everything if name.startswith("astronaut")}
    assert "1 item is cached again: the image or clip has changed" in said

    vae = Path(shutil.copyfile(demo_models["vae"], tmp_path / "renamed.safetensors"))
    assert again(vae=vae)[0] == set()
    save_atomic({**load(vae), "more": torch.zeros(1)}, vae, read_header(vae).metadata)
    (cache / RECORD).unlink()  # as musubi-tuner leaves caches
    written, said = again()
    assert written == set() and "Of 3 items it is not noted" in said
    written, said = again(vae=vae, source_fps=32)
    assert written == everything and "3 items are cached again: another source_fps, vae" in said


def test_captions_follow_the_text_encoder(
    tmp_path: Path, clips: Path, demo_models: dict[str, Path], dataset_toml: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    toml = dataset_toml(tmp_path / "d.toml", "video", clips, tmp_path / "cache", resolution=[32, 32], target_frames=[1])

    def again(t5: Path) -> int:
        before = times(tmp_path / "cache")
        assert main(["wan_cache_text_encoder_outputs", "--dataset_config", str(toml), "--t5", str(t5), "--skip_existing"]) == 0
        return sum(before.get(name) != time for name, time in times(tmp_path / "cache").items())

    assert again(demo_models["t5"]) == 3
    assert again(demo_models["t5"]) == 0
    other = write_models(tmp_path / "other", seed=1)["t5"]
    capfd.readouterr()
    assert again(other) == 3 and "3 items are cached again: another t5" in capfd.readouterr().err
    assert again(other) == 0


@pytest.mark.slow
def test_a_clip_decoded_in_parts_is_noted_once_all_its_caches_are_there(
    tmp_path: Path, clips: Path, demo_models: dict[str, Path], dataset_toml: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls, real = tmp_path / "cache", [], ahead.decode_foreseen
    settings = {"resolution": [32, 32], "target_frames": [5], "frame_extraction": "'slide'", "frame_stride": 1}
    toml = dataset_toml(tmp_path / "d.toml", "video", clips, cache, **settings)
    words = ["wan_cache_latents", "--dataset_config", str(toml), "--vae", str(demo_models["vae"])]

    def decode(foreseen: Foreseen, card: Card) -> list[DecodedEntry] | Problem:
        calls.append(foreseen.part)
        damaged = fails and foreseen.part[0] == 1 and foreseen.item.stem == "astronaut"
        return Problem(foreseen.item.path, "damaged") if damaged else real(foreseen, card)

    monkeypatch.setattr(ahead, "decode_foreseen", decode)
    monkeypatch.setattr(latents, "decoded", partial(ahead.decoded, in_flight=54_000))  # half of it: six frames, and one as it is read
    fails = False
    assert main([*words, "--batch_size", "2"]) == 0
    parts = max(count for _, count in calls)
    assert parts > 2 and len(times(cache)) == 15
    fails = True
    assert main(words) == 1
    calls.clear()
    fails = False
    assert main([*words, "--skip_existing"]) == 0
    assert [number for number, _ in calls] == list(range(parts)), "only the clip that was cached in part, though all its files are there"
