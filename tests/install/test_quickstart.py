"""The main job as a newcomer runs it: demo data, caches, training, what came of it, in a home whose path is awkward."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import float32_cpu
import numpy as np
import pytest
import torch
from musubi_backend.device import computed_in, pick_device
from musubi_backend.inference.side_by_side import GAP, TITLE_HEIGHT
from musubi_backend.inference.video_file import read_images
from musubi_backend.weights.safetensors_file import read_header

from installer.backend import Places
from installer.console import Console
from installer.quickstart import run
from installer.settings import Settings

HEIGHT = 256
"""Of each video in the comparison, as the workflow has it."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_shows_that_it_has_learned_its_clip(
    repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    home = tmp_path / "mein Heim ビデオ"
    home.mkdir()
    console = Console(home)
    settings = Settings(home / "config.json", console)
    settings.use_interpreter(Path(sys.executable))
    settings.save()

    code = run(Places(repository, home), Path(sys.executable), console)

    out = capfd.readouterr().out
    assert code == 0, out
    for phase in ("VAE Latent Cache", "Text Encoder Cache", "Wan LoRA Trainer", "Wan Video Generator", "without LoRA", "Video Comparison"):
        assert phase in out
    assert re.search(r"loss \d", out), "no progress of the training was shown"
    found = {}
    for what in ("LoRA", "comparison", "loss curve"):
        made = re.search(rf"^  {what} +(.+)$", out, re.MULTILINE)
        assert made and Path(made[1]).is_file() and Path(made[1]).stat().st_size > 500, f"{what}: {out}"
        found[what] = Path(made[1])
    _check_comparison(found["comparison"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", float32_cpu.real)
    computed = computed_in(torch.bfloat16, pick_device(None))
    expected = "bf16" if computed == torch.bfloat16 else "no"
    assert read_header(found["LoRA"]).metadata["ss_mixed_precision"] == expected, "what `auto` came to, not the word"


def _check_comparison(path: Path) -> None:
    """Of the three videos in it, the one with the LoRA looks like the clip, and the one without does not."""
    images = np.stack(read_images(path)[0]).astype(float)[:, TITLE_HEIGHT : TITLE_HEIGHT + HEIGHT]
    lefts = [GAP + number * (HEIGHT + GAP) for number in range(3)]  # they are square
    clip, without, trained = (images[:, :, left : left + HEIGHT] for left in lefts)
    contrast = clip.std()

    def difference(other: np.ndarray) -> float:
        return float(np.sqrt(((other - clip) ** 2).mean()) / contrast)

    def alike(other: np.ndarray) -> float:
        return float(np.corrcoef(clip.mean(0).ravel(), other.mean(0).ravel())[0, 1])

    assert difference(without) > 0.9 and alike(without) < 0.3
    assert difference(trained) < 0.6 and alike(trained) > 0.8, "the same squares are light and dark"
