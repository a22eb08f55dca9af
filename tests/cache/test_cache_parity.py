"""The caches our verbs write, against those the real musubi-tuner wrote from the same media with the same tiny encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.weights.safetensors_file import save_atomic
from safetensors import safe_open
from safetensors.torch import load_file

CASES = {
    "wan_t2v_image": ("image", "img", "bfloat16", {}),
    "wan_t2v_image_fp32": ("image", "img", "float32", {}),
    "wan_t2v_video": ("video", "vid", "bfloat16", {"target_frames": [1, 9], "frame_extraction": '"head"'}),
    "wan_i2v21_video": ("video", "vid", "float32", {"target_frames": [1, 9], "frame_extraction": '"head"'}),
    "wan_fun_control_video": ("video", "vid", "bfloat16", {"target_frames": [1, 9], "frame_extraction": '"head"'}),
}
# (largest, mean) difference. float32: the same arithmetic in the same order. bfloat16: 40 layers round to 8 bits in both; the mean
# error against float32 is 2.0e-3 to 2.7e-3 for the reference and 1.7e-3 to 2.3e-3 for ours, and single values differ by two roundings.
# float16: CLIP features, which the reference computes in float16 and we on the CPU in float32.
TOLERANCE = {"float32": (1e-5, 1e-6), "bfloat16": (0.04, 4e-3), "float16": (0.02, 2e-3)}


@pytest.mark.parametrize("case", CASES)
def test_latents_equal_musubi_tuners(case: str, shared: Path, tmp_path: Path, dataset_toml: Callable[..., Path]) -> None:
    kind, folder, dtype, values = CASES[case]
    source = shared / "golden/cache/_src" / folder
    if "control" in case:
        values = {**values, "control_directory": f'"{(shared / "golden/cache/_src/vctl").as_posix()}"'}
    toml = dataset_toml(tmp_path / "dataset.toml", kind, source, tmp_path / "cache", resolution=[64, 48], enable_bucket="true", **values)
    vae = shared / "golden/vae_te/wan_vae.safetensors"
    flags = ["--clip", str(_reference_clip(shared, tmp_path))] if "i2v" in case else []
    assert main(["wan_cache_latents", "--dataset_config", str(toml), "--vae", str(vae), "--vae_dtype", dtype, *flags]) == 0

    expected = _files(shared / "golden/cache" / case, text=False)
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.safetensors")) == sorted(path.name for path in expected)
    for path in expected:
        metadata, tensors = _content(tmp_path / "cache" / path.name)
        wanted_metadata, wanted = _content(path)
        assert metadata == wanted_metadata
        assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {name: (t.dtype, t.shape) for name, t in wanted.items()}
        for name, tensor in wanted.items():
            difference = (tensors[name].float() - tensor.float()).abs()
            largest, mean = TOLERANCE["float16" if tensor.dtype == torch.float16 else dtype]
            assert difference.max() <= largest, path.name
            assert difference.mean() <= mean, path.name


@pytest.mark.parametrize("case", ["wan_t2v_image", "wan_t2v_video"])
def test_text_caches_have_musubi_tuners_names_keys_and_metadata(
    case: str, shared: Path, tmp_path: Path, dataset_toml: Callable[..., Path], demo_models: dict[str, Path]
) -> None:
    """Values cannot be compared: the reference used a word tokenizer that is not part of it. `test_umt5` compares the encoder."""
    kind, folder, _, values = CASES[case]
    toml = dataset_toml(tmp_path / "dataset.toml", kind, shared / "golden/cache/_src" / folder, tmp_path / "cache", **values)
    t5 = _reference_umt5(shared, demo_models, tmp_path)
    assert main(["wan_cache_text_encoder_outputs", "--dataset_config", str(toml), "--t5", str(t5)]) == 0

    expected = _files(shared / "golden/cache" / case, text=True)
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.safetensors")) == sorted(path.name for path in expected)
    for path in expected:
        metadata, tensors = _content(tmp_path / "cache" / path.name)
        wanted_metadata, wanted = _content(path)
        assert metadata == wanted_metadata
        assert {name: (t.dtype, t.shape[1:]) for name, t in tensors.items()} == {name: (t.dtype, t.shape[1:]) for name, t in wanted.items()}
        assert all(0 < len(tensor) <= 512 and torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_the_reference_cases_are_those_of_the_index(shared: Path) -> None:
    index = json.loads((shared / "golden/cache/index.json").read_text(encoding="utf-8"))
    assert set(CASES) <= set(index)


def _reference_umt5(shared: Path, demo_models: dict[str, Path], tmp_path: Path) -> Path:
    """The reference encoder (width 32) with a vocabulary as large as the demo tokenizer's."""
    tensors = load_file(shared / "golden/vae_te/umt5.safetensors")
    demo = load_file(demo_models["t5"])
    tensors["token_embedding.weight"] = torch.randn(len(demo["shared.weight"]), 32, generator=torch.Generator().manual_seed(0))
    tensors["spiece_model"] = demo["spiece_model"]
    path = tmp_path / "umt5.safetensors"
    save_atomic(tensors, path)
    return path


def _reference_clip(shared: Path, tmp_path: Path) -> Path:
    """The reference image encoder, saying how many heads it has."""
    path = tmp_path / "clip.safetensors"
    save_atomic(load_file(shared / "golden/vae_te/clip_visual.safetensors"), path, {"musubi_geometry": '{"num_attention_heads": 4}'})
    return path


def _files(folder: Path, *, text: bool) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.name.endswith("_te.safetensors") == text)


def _content(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
