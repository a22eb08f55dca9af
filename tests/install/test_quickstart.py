"""The main job as a newcomer runs it: demo data, caches, training, a video with the LoRA, in a home whose path is awkward."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from installer.backend import Places
from installer.console import Console
from installer.quickstart import run
from installer.settings import Settings


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_makes_a_lora_a_video_and_a_loss_curve(repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
    for phase in ("VAE Latent Cache", "Text Encoder Cache", "Wan LoRA Trainer", "Wan Video Generator", "Video Output"):
        assert phase in out
    assert re.search(r"loss \d", out), "no progress of the training was shown"
    for what in ("LoRA", "video", "loss curve"):
        made = re.search(rf"^  {what} +(.+)$", out, re.MULTILINE)
        assert made and Path(made[1]).is_file() and Path(made[1]).stat().st_size > 500, f"{what}: {out}"
