"""Generating with the options that save memory, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.weights.safetensors_file import load

SMALL = ["--task", "t2v-1.3B", "--video_size", "32", "48", "--video_length", "5", "--infer_steps", "2", "--device", "cpu", "--seed", "1"]


@pytest.fixture
def latents(demo: dict[str, Path], tmp_path: Path) -> object:
    """latents("--fp8") -> what wan_generate_video makes with these flags."""

    def run(*flags: object) -> torch.Tensor:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        models = [word for name in ("dit", "vae", "t5") for word in (f"--{name}", demo[name])]
        argv = ["wan_generate_video", *SMALL, *models, "--save_path", folder, "--prompt", "a dog", "--output_type", "latent", *flags]
        assert main([str(word) for word in argv]) == 0
        return load(next(folder.glob("*.safetensors")))["latent"]

    return run


def test_swapped_blocks_give_the_same_and_fp8_nearly_the_same(latents) -> None:  # type: ignore[no-untyped-def]
    plain = latents()
    assert torch.equal(latents("--blocks_to_swap", 1), plain)
    small = latents("--fp8_scaled", "--fp8_t5")
    assert torch.equal(latents("--fp8", "--fp8_scaled", "--fp8_t5", "--blocks_to_swap", 1, "--use_pinned_memory_for_block_swap"), small)
    for other in (small, latents("--fp8"), latents("--fp8_scaled", "--fp8_fast")):
        assert 1e-4 < (other - plain).norm() / plain.norm() < 0.2


@pytest.mark.slow
def test_compiled_blocks_give_the_same(latents) -> None:  # type: ignore[no-untyped-def]
    flags = ["--fp8_scaled", "--blocks_to_swap", 1]
    compiled = latents(*flags, "--compile", "--compile_backend", "aot_eager", "--compile_fullgraph", "--compile_cache_size_limit", 16)
    torch.testing.assert_close(compiled, latents(*flags), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fp8_fast"], "--fp8_fast needs --fp8 or --fp8_scaled"),
        (["--fp8_scaled", "--save_merged_model", "x.safetensors"], "leave --fp8_scaled out"),
        (["--blocks_to_swap", "99"], "at most 1 of the blocks of this model can be offloaded to system RAM"),
        (["--compile", "--compile_backend", "nothing"], "this PyTorch has"),
        (["--attn_mode", "sageattn"], "needs the package sageattention"),
    ],
)
def test_what_cannot_be_is_said(demo: dict[str, Path], tmp_path: Path, capfd, flags: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    models = [word for name in ("dit", "vae", "t5") for word in (f"--{name}", str(demo[name]))]
    assert main(["wan_generate_video", *SMALL, *models, "--save_path", str(tmp_path), "--prompt", "a dog", *flags]) == 1
    assert message in capfd.readouterr().err
