"""Cached items become batches: paired, bucketed, in an order that depends on (seed, epoch) only."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.forms import CacheForms, floats, main_latents
from musubi_backend.cache.names import LatentName, latent_name, text_name
from musubi_backend.dataset.batches import CachedDataset
from musubi_backend.dataset.config import load_config
from musubi_backend.dataset.order import shuffled_batches
from musubi_backend.errors import UserError

FORMS = CacheForms(main_latents(16), {"t5": floats((None, None))})


def cache_clip(folder: Path, stem: str, size: tuple[int, int] = (64, 48), frames: int = 9, words: int = 3, text: bool = True) -> None:
    name = LatentName(stem, *size, 0, frames)
    latents = torch.full((16, (frames - 1) // 4 + 1, size[1] // 8, size[0] // 8), float(len(stem)), dtype=torch.bfloat16)
    save_latents(folder / latent_name(name, "wan"), {"latents": latents}, CARD, width=size[0], height=size[1], frame_count=frames)
    if text:
        save_text(folder / text_name(stem, "wan"), {"varlen_t5": torch.ones(words, 32, dtype=torch.bfloat16)}, CARD, caption=stem)


def section(folder: Path, **values: object) -> str:
    settings = {"video_directory": "gone", "cache_directory": str(folder), "target_frames": [9], **values}
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())


def test_the_recorded_order_and_timestep_pool_come_out(shared: Path) -> None:
    recorded = json.loads((shared / "golden/timesteps/timesteps.json").read_text())["bucket_pool"]
    first, second = recorded["bucket_sizes"]
    buckets = {(64, 64, 9): list(range(first)), (96, 64, 9): list(range(second))}
    batches = shuffled_batches(buckets, recorded["batch_size"], recorded["seed"], recorded["num_timestep_buckets"])
    assert [list(key) for key, _, _ in batches] == [key for key, _ in recorded["batches"]]
    for (_, items, timesteps), pool in zip(batches, recorded["pool"], strict=True):
        assert list(timesteps or ()) == pool[: len(items)]


def test_a_real_musubi_cache_is_opened_and_read(shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(shared / "golden/train/data_t2v")
    with caplog.at_level(logging.INFO):
        dataset = CachedDataset.open(load_config("dataset.toml"), CARD, FORMS)
    assert len(dataset.items) == 4 and not dataset.problems
    assert "bucket: (64, 64, 9), count: 4" in caplog.text and "total batches: 4" in caplog.text and "[Dataset 0]" in caplog.text
    batch = dataset.collate(dataset.batches(0, 1)[0])
    assert batch["latents"].shape == (1, 16, 3, 8, 8) and batch["latents"].dtype == torch.bfloat16
    assert [text.ndim for text in batch["t5"]] == [2] and set(batch) == {"latents", "t5"}


def test_batches_never_mix_buckets_and_every_item_comes_as_often_as_repeated(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "cache 'x' 日本"
    for number in range(5):
        cache_clip(folder, f"wide{number}", (64, 48), words=number + 1)
    for number in range(3):
        cache_clip(folder, f"high{number}", (48, 64))
        cache_clip(folder, f"long{number}", (64, 48), frames=13)
    config = make.config(tmp_path, section(folder, batch_size=2, num_repeats=3), general="resolution = [64, 48]\nenable_bucket = true")
    dataset = CachedDataset.open(config, CARD, FORMS, num_timestep_buckets=4)
    assert len(dataset.items) == 33
    batches = dataset.batches(seed=1, epoch=1)
    assert all(len({item.key for item in batch.items}) == 1 for batch in batches)
    assert Counter(name for batch in batches for name in batch.names) == Counter({item.name: 3 for item in dataset.items})
    assert len(batches) == 8 + 5 + 5
    pair = next(batch for batch in batches if batch.names[0].startswith("wide") and len(batch.items) == 2)
    content = dataset.collate(pair)
    assert content["latents"].shape == (2, 16, 3, 6, 8) and len(content["t5"]) == 2
    assert len(content["timesteps"]) == 2 and all(0 <= position <= 1 for position in content["timesteps"])


def test_the_order_depends_on_seed_and_epoch_only(make: SimpleNamespace, tmp_path: Path) -> None:
    for name in "ab":
        for number in range(10):
            cache_clip(tmp_path / name, f"{name}{number}")
    config = make.config(tmp_path, section(tmp_path / "a"), section(tmp_path / "b", batch_size=2))
    one, two = CachedDataset.open(config, CARD, FORMS), CachedDataset.open(config, CARD, FORMS)
    third = one.batches(7, 3)
    for epoch in (1, 2, 3):
        two.batches(7, epoch)
    assert two.batches(7, 3) == third and one.digest() == two.digest()
    assert one.batches(7, 4) != third and one.batches(8, 3) != third
    origins = "".join(batch.names[0][0] for batch in third)
    assert "ab" in origins and "ba" in origins  # the data sets are mixed


def test_items_without_text_are_reported_and_left_out(make: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_clip(tmp_path / "c", "good")
    cache_clip(tmp_path / "c", "mute", text=False)
    (tmp_path / "c" / "image_0064x0048_wan.safetensors").write_bytes(b"")
    dataset = CachedDataset.open(make.config(tmp_path, section(tmp_path / "c")), CARD, FORMS)
    assert [item.name[:4] for item in dataset.items] == ["good"]
    reasons = {problem.path.name[:4]: problem.reason for problem in dataset.problems}
    assert "not the cache of a clip" in reasons["imag"]
    assert f"Text encoder output cache file not found: {tmp_path}/c/mute_wan_te.safetensors" in caplog.text


def test_nothing_cached_is_an_error_that_says_what_to_run(make: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No training items found in the dataset.*caching first"):
        CachedDataset.open(make.config(tmp_path, section(tmp_path / "none")), CARD, FORMS)


def test_damaged_and_foreign_caches_stop_before_training(make: SimpleNamespace, tmp_path: Path, shared: Path) -> None:
    folder = tmp_path / "c"
    cache_clip(folder, "a")
    config = make.config(tmp_path, section(folder))
    file, text = next(folder.glob("*9_*")), folder / "a_wan_te.safetensors"
    for path in (file, text):
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        with pytest.raises(UserError, match="damaged; delete it and cache again"):
            CachedDataset.open(config, CARD, FORMS)
        path.write_bytes((shared / "golden/cache/hv_video/clip_0_00000-009_0064x0048_hv.safetensors").read_bytes())
        with pytest.raises(UserError, match="hunyuan_video"):
            CachedDataset.open(config, CARD, FORMS)
        path.write_bytes(whole)
    dataset = CachedDataset.open(config, CARD, FORMS)
    file.unlink()  # while training
    with pytest.raises(UserError, match="a_00000-009"):
        dataset.collate(dataset.batches(0, 1)[0])


def test_caches_of_another_size_than_now_asked_for_still_make_batches(
    make: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "c"
    cache_clip(folder, "aa", (64, 48))
    cache_clip(folder, "bbb", (48, 64))
    cache_clip(folder, "c", (96, 80))  # at another resolution
    config = make.config(tmp_path, section(folder, batch_size=2, enable_bucket=False))  # clips are cached in buckets all the same
    dataset = CachedDataset.open(config, CARD, FORMS)
    shapes = sorted(tuple(dataset.collate(batch)["latents"].shape) for batch in dataset.batches(0, 1))
    assert shapes == [(1, 16, 3, 6, 8), (1, 16, 3, 8, 6), (1, 16, 3, 10, 12)]
    assert "1 of 3 caches have another size" in caplog.text and "c_00000-009_0096x0080_wan" in caplog.text


def test_the_metadata_names_the_data_sets_like_musubi(make: SimpleNamespace, tmp_path: Path) -> None:
    cache_clip(tmp_path / "c", "a")
    section_text = section(
        tmp_path / "c", video_directory="/some/where/clips", target_frames=[9, 3], frame_extraction="uniform", source_fps=30
    )
    (entry,) = CachedDataset.open(make.config(tmp_path, section_text), CARD, FORMS).metadata()
    assert json.loads(json.dumps(entry)) == {
        "resolution": [64, 48], "caption_extension": ".txt", "batch_size_per_device": 1, "num_repeats": 1, "enable_bucket": False,
        "bucket_no_upscale": False, "video_directory": "clips", "frame_extraction": "head", "frame_stride": 1, "frame_sample": 1,
        "target_frames": [1, 9], "max_frames": 129, "source_fps": 30.0, "has_control": False,
    }  # fmt: skip
