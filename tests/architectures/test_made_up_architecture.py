"""Adding an architecture takes one folder: `made_up/dots` is found, gets its tools, and is cached, trained and generated with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from musubi_backend.inference.video_file import write_mp4
from musubi_backend.weights.safetensors_file import read_header

HERE = Path(__file__).parent / "made_up"
# In a process of its own, so that the rest of the tests do not know it
FOUND = f"import sys, musubi_backend.architectures as found; found.__path__.append({str(HERE)!r})\n"
RUN = FOUND + "from musubi_backend.__main__ import main; sys.exit(main(sys.argv[1:]))"
MODEL = (
    FOUND
    + """
import torch
from musubi_backend.architectures.dots.adapter import DotsTransformer
from musubi_backend.weights.safetensors_file import save_atomic
torch.manual_seed(0)
save_atomic(DotsTransformer().state_dict(), sys.argv[1])
save_atomic({"nothing": torch.zeros(1)}, sys.argv[2])
"""
)


def _python(code: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_mp4(tmp_path / "clips" / "dots.mp4", random.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), fps=16)
    (tmp_path / "clips" / "dots.txt").write_text("dots", encoding="utf-8")
    toml = tmp_path / "dataset.toml"
    toml.write_text(
        "[general]\nresolution = [32, 32]\ncaption_extension = '.txt'\n"
        f"[[datasets]]\nvideo_directory = '{tmp_path / 'clips'}'\ncache_directory = '{tmp_path / 'cache'}'\ntarget_frames = [5]\n",
        encoding="utf-8",
    )
    return toml


@pytest.mark.slow
def test_one_folder_brings_four_tools_that_work(dataset: Path, tmp_path: Path) -> None:
    dit, vae, out = tmp_path / "dots.safetensors", tmp_path / "none.safetensors", tmp_path / "out"
    _python(MODEL, dit, vae)
    assert all(f"dots_{verb}" in _python(RUN) for verb in ("cache_latents", "train_network", "generate_video"))
    _python(RUN, "dots_cache_latents", "--dataset_config", dataset, "--vae", vae, "--device", "cpu")
    _python(RUN, "dots_cache_text_encoder_outputs", "--dataset_config", dataset, "--device", "cpu")
    cached = sorted(path.name for path in (tmp_path / "cache").glob("*.safetensors"))
    assert cached == ["dots_00000-005_0032x0032_dots.safetensors", "dots_dots_te.safetensors"]
    training = ["--optimizer_type", "adamw", "--max_train_steps", 3, "--learning_rate", 0.01, "--sdpa", "--gradient_checkpointing"]
    data = ["--dataset_config", dataset, "--dit", dit, "--output_dir", out, "--output_name", "lora"]
    _python(RUN, "dots_train_network", "--network_module", "networks.lora_dots", *data, *training)
    lora = read_header(out / "lora.safetensors")
    assert "lora_unet_blocks_1_shrink.lora_up.weight" in lora.tensors and lora.metadata["ss_base_model_version"] == "dots"
    request = ["--prompt", "dots", "--video_size", 32, 32, "--video_length", 5, "--save_path", out / "video", "--seed", 1]
    _python(RUN, "dots_generate_video", "--dit", dit, "--vae", vae, "--lora_weight", out / "lora.safetensors", *request, "--device", "cpu")
    assert [path.suffix for path in (out / "video").iterdir()] == [".mp4"]
