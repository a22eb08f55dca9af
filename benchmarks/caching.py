"""Caching latents of 64 images with a tiny VAE, and running again when all is cached, ours next to musubi-tuner's.

    python -m benchmarks.caching --musubi CHECKOUT --musubi-python PYTHON [--repeat 3] [--work DIR]

With a tiny VAE what is measured is everything around it: start-up, decoding, resizing, writing. Wall seconds, minima over
the repetitions, the engines in turn; both may use all cores.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageFilter

from .process import run
from .report import Row, arguments_of, print_table, working_folder

ROOT = Path(__file__).resolve().parents[1]
RUNNER = str(ROOT / "benchmarks" / "timed_run.py")
IMAGES, SIZE, BUCKET, VAE_DIM = 64, (1280, 960), 256, 4


def write_images(folder: Path) -> Path:
    """JPEGs with structure at several scales, captioned, and the dataset file. Returns the file's path."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        coarse = Image.effect_noise((32, 24), 90).resize(SIZE, Image.Resampling.BICUBIC)
        fine = Image.effect_noise(SIZE, 40).filter(ImageFilter.GaussianBlur(2))
        image = Image.merge("RGB", (coarse, Image.blend(coarse, fine, 0.5), fine))
        image.save(images / f"image{i:02d}.jpg", quality=92)
        (images / f"image{i:02d}.txt").write_text(f"image {i}", encoding="utf-8")
    config = folder / "dataset.toml"
    config.write_text(
        f'[general]\nresolution = [{BUCKET}, {BUCKET}]\ncaption_extension = ".txt"\nbatch_size = 1\nenable_bucket = true\n\n'
        f"[[datasets]]\nimage_directory = {json.dumps(str(images))}\ncache_directory = {json.dumps(str(folder / 'cache'))}\n",
        encoding="utf-8",
    )
    return config


def write_vae(path: Path) -> dict[str, object]:
    """A random VAE of the smallest useful width; returns its sizes for musubi-tuner, which cannot read them from the file."""
    sys.path.insert(0, str(ROOT / "backend"))
    import torch
    from musubi_backend.architectures.wan.demo_vae import MULTIPLIERS, shapes_of
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes_of(VAE_DIM).items()}, path)
    return {"dim": VAE_DIM, "dim_mult": list(MULTIPLIERS)}


def main() -> None:
    arguments = arguments_of(__doc__)
    threads = os.cpu_count() or 1
    with working_folder(arguments) as work:
        config, vae = write_images(work), work / "vae.safetensors"
        sizes = {"BENCH_VAE": json.dumps(write_vae(vae))}
        sides = {"ours": (sys.executable, ROOT / "backend"), "musubi": (arguments.musubi_python, arguments.musubi / "src")}
        best: dict[tuple[str, str], float] = {}
        flags = ["wan_cache_latents", "--dataset_config", str(config), "--vae", str(vae)]
        for _ in range(arguments.repeat):
            for engine, (python, source) in sides.items():
                shutil.rmtree(work / "cache", ignore_errors=True)
                for case, extra in (("cache", []), ("skip", ["--skip_existing"])):
                    command = [python, RUNNER, engine, *flags, *extra]
                    usage = run(command, work / f"{engine}.log", {"PYTHONPATH": str(source), **sizes}, threads)
                    best[case, engine] = min(usage.wall, best.get((case, engine), usage.wall))
        print_table(
            [
                Row(f"cache {IMAGES} images", best["cache", "ours"], best["cache", "musubi"], "s", 0.5),
                Row("run again, all cached", best["skip", "ours"], best["skip", "musubi"], "s", 0.1),
            ]
        )


if __name__ == "__main__":
    main()
