"""Model files as people have them: harmless extra tensors, near relatives known by name, split models opened by their index."""

from __future__ import annotations

import json

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.recognise import kind_of, recognise, refuse_others
from musubi_backend.weights.safetensors_file import read_model_header, save_atomic, split_files
from torch import nn

WAN = ("blocks.0.self_attn.q.weight", "time_projection.1.weight", "patch_embedding.weight")


def model(extra=()):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return module, {**module.state_dict(), **dict(extra)}


@pytest.mark.parametrize(
    "extra",
    [
        {"model_type.Wan2_1-T2V-14B": torch.zeros(1)},
        {"scaled": torch.zeros(()), "note": torch.zeros(12, dtype=torch.uint8), "table": torch.ones(2, 2)},
        {"0.inv_freq": torch.ones(4)},
    ],
)
def test_harmless_extra_tensors_are_named_and_left_out(extra, tmp_path, caplog):
    module, state = model(extra)
    save_atomic(state, tmp_path / "model.safetensors")
    load_into(module, open_weights(tmp_path / "model.safetensors"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(name in caplog.text for name in extra) and "not part of the model and left out" in caplog.text


@pytest.mark.parametrize("extra", [["0.norm.weight"], ["audio.0.weight", "audio.1.weight"]])
def test_layers_of_another_model_are_rejected(extra, tmp_path):
    module, state = model({name: torch.ones(4, 4) for name in extra})
    save_atomic(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{len(extra)} not part of the model: {extra[0]}"):
        load_into(module, open_weights(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([*WAN, "vace_patch_embedding.weight"], "VACE"),
        ([*WAN, "face_adapter.fuser_blocks.0.k_norm.weight"], "Animate"),
        ([*WAN, "casual_audio_encoder.encoder.final_linear.weight"], "S2V"),
        ([*WAN, "control_adapter.conv.weight"], "Fun-Camera"),
        ([*WAN, "ref_conv.weight"], "reference image"),
    ],
)
def test_relatives_of_wan_are_named(names, words, tmp_path):
    save_atomic({f"model.diffusion_model.{name}": torch.ones(1, 1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"is a .*{words}.*; --dit expects a Wan transformer"):
        refuse_others(tmp_path / "model.safetensors", ("wan_transformer",), "--dit")


def test_the_vae_of_the_5b_model_is_named():
    names = ["encoder.conv1.weight", "decoder.middle.0.residual.0.gamma", "conv2.weight"]
    assert kind_of(dict.fromkeys(names)).id == "wan_vae"
    assert "48 channels" in str(kind_of(dict.fromkeys([*names, "decoder.upsamples.0.upsamples.0.residual.2.weight"])))


def split(folder, **changes):
    """A Wan transformer in two files with an index; returns the index."""
    files = dict(zip(WAN, ("a.safetensors", "b.safetensors", "b.safetensors"), strict=True))
    for file in set(files.values()):
        save_atomic({name: torch.ones(2, 2) for name in files if files[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**files, **changes}}), encoding="utf-8")
    return index


def test_an_index_and_its_folder_open_the_split_model(tmp_path):
    index = split(tmp_path)
    for path in (index, tmp_path):
        assert split_files(path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        assert set(read_model_header(path).tensors) == set(WAN) == {stored.name for stored in open_weights(path).tensors()}
        assert recognise(path).id == "wan_transformer"
        with pytest.raises(UserError, match="--vae expects a Wan VAE"):
            refuse_others(path, ("wan_vae",), "--vae")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": "c.safetensors"}, r"c.safetensors is missing"),
        ({"more": "a.safetensors"}, "does not hold more"),
        ({"more": "../a.safetensors"}, "only .safetensors files in its own folder"),
        ({"more": "C:\\a.safetensors"}, "only .safetensors files in its own folder"),
        ({"more": 3}, "is not the index of a model"),
    ],
)
def test_what_is_wrong_with_an_index_is_said(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        split_files(split(tmp_path, **changes))


def test_a_damaged_part_or_index_is_rejected(tmp_path):
    index = split(tmp_path)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"b.safetensors is truncated"):
        split_files(index)
    index.write_text("[" * 10_000, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as the index"):
        split_files(index)
