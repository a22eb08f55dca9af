"""The CLIP image encoder against the reference (musubi-tuner's own code, float32), in all namings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from musubi_backend.encoders.clip_vision import ClipVision
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import save_atomic
from safetensors.torch import load_file

CPU = torch.device("cpu")
HEADS = {"musubi_geometry": '{"num_attention_heads": 4}'}


@pytest.fixture(scope="module")
def original(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden/vae_te/clip_visual.safetensors")


def _hugging_face(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The image encoder under the names of ComfyUI's file, written out here a second time on purpose."""
    names = {
        "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
        **{f"visual.pre_norm.{kind}": f"pre_layrnorm.{kind}" for kind in ("weight", "bias")},
        **{f"visual.post_norm.{kind}": f"post_layernorm.{kind}" for kind in ("weight", "bias")},
    }
    parts = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    result = {}
    for layer in range(3):
        for kind in ("weight", "bias"):
            for old, new in parts.items():
                names[f"visual.transformer.{layer}.{old}.{kind}"] = f"encoder.layers.{layer}.{new}.{kind}"
            q, k, v = tensors[f"visual.transformer.{layer}.attn.to_qkv.{kind}"].split(32)
            for part, tensor in (("q", q), ("k", k), ("v", v)):
                result[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = tensor
    result |= {new: tensors[old] for old, new in names.items()}
    result["embeddings.class_embedding"] = tensors["visual.cls_embedding"][0, 0]
    result["embeddings.position_embedding.weight"] = tensors["visual.pos_embedding"][0]
    return {f"vision_model.{name}": tensor.contiguous() for name, tensor in result.items()}


@pytest.mark.parametrize("naming", ["original", "pth", "hugging face"])
def test_features_equal_the_reference(
    naming: str, original: dict[str, torch.Tensor], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("clip.pth" if naming == "pth" else "clip.safetensors")
    if naming == "pth":
        torch.save(original, path)
        monkeypatch.setattr("musubi_backend.encoders.clip_vision.HEAD_DIM", 8)  # a .pth file cannot say how many heads it has
    else:
        save_atomic(_hugging_face(original) if naming == "hugging face" else original, path, HEADS)
    io = load_file(shared / "golden/vae_te/clip_visual.io.safetensors")
    features = ClipVision.load(path, CPU).features(io["images_-1_1"][:, :, 0])
    assert features.dtype == torch.float16
    torch.testing.assert_close(features.float(), io["out"], rtol=1e-3, atol=1e-3)  # rounded to float16, as it is cached


def test_other_and_incomplete_files_are_named(original: dict[str, torch.Tensor], shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a Wan VAE; --clip expects a CLIP vision encoder"):
        ClipVision.load(shared / "golden/vae_te/wan_vae.safetensors", CPU)
    path = tmp_path / "clip.safetensors"
    save_atomic({name: tensor for name, tensor in original.items() if "transformer.1.mlp.2.bias" not in name}, path, HEADS)
    with pytest.raises(UserError, match=r"1 tensor is missing, first encoder.layers.1.mlp.fc2.bias"):
        ClipVision.load(path, CPU)
