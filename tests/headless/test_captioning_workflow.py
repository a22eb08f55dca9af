"""The captioning workflow on a terminal, with the demo model: images get captions, the dataset takes them, the viewer shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(home: Path, *settings: str) -> str:
    command = [sys.executable, "-m", "headless", str(ROOT / "workflows" / "captioning.json"), "--home", str(home)]
    model = ["--set", "CaptionImages.model=demo_qwen_vl.safetensors", "--set", "CaptionImages.max_size=112"]
    words = [word for setting in settings for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *model, *words], cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.full(reason="headless/test_workflows captions clips")
def test_images_get_captions_that_the_dataset_takes(home: Path) -> None:
    from musubi_backend.demo.models import write_models
    from PIL import Image
    from skimage import data

    write_models(home / "demo" / "models", kind="qwen_vl")
    images = home / "input" / "my_pictures"
    images.mkdir(parents=True)
    for name in ("coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).resize((168, 112)).save(images / f"{name}.png")
    said = run(home)
    assert "2 captions written, 0 kept" in said and "1 dataset: 2 images" in said and "page 1 of 1, 2 items" in said
    assert (images / "coffee.txt").read_text(encoding="utf-8") == "a dark picture in warm colours"
    assert len(list((home / "temp" / "musubi_tuner").glob("dataset_*.png"))) == 1
    run(home)  # the captions are new to the node that wrote them
    assert run(home).count("nothing changed") == 3
