"""With buckets off, caches of clips have the size that caching gives them: nobody is reported to cache again in vain."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.forms import CacheForms, Form, main_latents
from musubi_backend.dataset.batches import CachedDataset
from musubi_backend.dataset.items import text_path
from musubi_backend.dataset.probe import Foreseen, foresee


@pytest.mark.parametrize("settings", ["enable_bucket = false", "enable_bucket = true", "enable_bucket = true\nbucket_no_upscale = true"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (128, 32), (32, 32), (200, 120)])
def test_what_caching_makes_is_as_it_should_be(
    make: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: str, size: tuple[int, int]
) -> None:
    from musubi_backend.dataset.discovery import discover

    clip = make.clip(tmp_path / "clips" / "a.mp4", size=size, count=9)
    make.caption(clip)
    config = make.config(
        tmp_path, f"video_directory = '{tmp_path / 'clips'}'\ncache_directory = '{tmp_path / 'c'}'\ntarget_frames = [9]\n{settings}"
    )
    (item,) = discover(config.datasets[0], make.card).items
    foreseen = foresee(item, make.card)
    assert isinstance(foreseen, Foreseen)
    (entry,) = foreseen.entries
    (path,) = entry.latent_paths(make.card)
    width, height = entry.bucket
    latents = torch.zeros(16, 3, height // 8, width // 8)
    save_latents(path, {"latents": latents}, make.card, width=entry.name.width, height=entry.name.height, frame_count=9)
    save_text(text_path(item, make.card), {"varlen_t5": torch.ones(1, 8)}, make.card, caption="x")
    with caplog.at_level(logging.WARNING):
        dataset = CachedDataset.open(config, make.card, CacheForms(main_latents(16), {"t5": Form("any")}))
    assert dataset.collate(dataset.batches(0, 1)[0])["latents"].shape[1:] == latents.shape
    assert "Cache again" not in caplog.text
