"""Names in LoRA files are read as a grammar: any sequence of prefixes, named adapters, wrappers; other models' layers are not taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.lora.layouts import LoRAFile
from musubi_backend.lora.shapes import DORA, DOWN, UP
from musubi_backend.lora.tensor_names import Key, parse
from musubi_backend.weights.recognise import recognise
from musubi_backend.weights.safetensors_file import save_atomic


@pytest.mark.parametrize(
    ("name", "layer", "part"),
    [
        ("Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv.lora_down.weight", "double_blocks_0_img_attn_qkv", DOWN),
        ("lora_transformer_transformer_blocks_0_attn_to_k.lora_up.weight", "transformer_blocks_0_attn_to_k", UP),
        ("lora_transformer_blocks_0_attn1_to_q.lora_up.weight", "blocks_0_attn1_to_q", UP),
        ("lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight", "transformer_blocks_0_attn_to_q", UP),
        ("lora_unet_unet_down_blocks_0_x.lora_up.weight", "unet_down_blocks_0_x", UP),
        ("controlnet.blocks.0.ffn.0.lora_A.weight", "controlnet.blocks.0.ffn.0", DOWN),
        ("lora_unet_vace_blocks_3_self_attn_q.lora_up.weight", "vace_blocks_3_self_attn_q", UP),
        ("transformer.base_model.model.blocks.0.attn1.to_q.lora_A.my_style.weight", "blocks.0.attn1.to_q", DOWN),
        ("base_model.model.diffusion_model.blocks.0.ffn.0.lora_A.weight", "blocks.0.ffn.0", DOWN),
        ("model.diffusion_model.blocks.0.ffn.0.lora_A.weight", "blocks.0.ffn.0", DOWN),
        ("some.wrapper.blocks.0._orig_mod.ffn.0.lora_B.default_0.weight", "blocks.0.ffn.0", UP),
        ("diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight", "vace_blocks.0.self_attn.q", DOWN),
        ("blocks.0.ffn.0.lora_magnitude_vector.default.weight", "blocks.0.ffn.0", DORA),
        ("blocks.0.ffn.0.magnitude", "blocks.0.ffn.0", DORA),
        ("diffusion_model.blocks.0.diff_m", "blocks.0.modulation", "diff"),
        ("lora_unet_blocks_0.diff_m", "blocks_0_modulation", "diff"),
        ("head.diff_m", "head.modulation", "diff"),
        ("lycoris_blocks_0_norm3.b_norm", "blocks_0_norm3", "diff_b"),
    ],
)
def test_names(name, layer, part):
    found = parse(name)
    assert found is not None and (found.layer, found.part) == (layer, part)


@pytest.mark.parametrize(
    "name",
    ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "lora_te2_x.alpha", "text_encoder.layers.0.q.lora_A.weight", "what.ever",
     "blocks.0.ffn.0.lora_A.bias"],
)  # fmt: skip
def test_names_of_other_things(name):
    assert parse(name) is None


def write(path: Path, layers: dict[str, str], metadata: dict[str, str] | None = None, **more: torch.Tensor) -> Path:
    """layers: path of a layer -> adapter's name behind lora_A and lora_B ("" for none)"""
    state = {f"{layer}.lora_{half}{name}.weight": torch.ones(4, 4) for layer, name in layers.items() for half in "AB"}
    save_atomic({**state, **more}, path, metadata)
    return path


WAN_LAYER, FUSED, DIFFUSERS = "transformer.blocks.0.attn1.to_q", "double_blocks.0.img_attn_qkv", "single_transformer_blocks.0.proj_mlp"


@pytest.mark.parametrize(
    ("layer", "metadata", "native"),
    [
        (WAN_LAYER, {"ss_base_model_version": "wan_2.2_14b"}, "wan"),
        (WAN_LAYER, {"modelspec.architecture": "wan-2_1-i2v/lora"}, "wan"),
        (WAN_LAYER, {"ss_base_model_version": "flux2"}, "wan"),
        (FUSED, {"modelspec.architecture": "hunyuan-video/lora"}, "hv"),
        (FUSED, {"modelspec.architecture": "something new"}, "hv"),
        (FUSED, {"ss_base_model_version": "flux1"}, ""),
        (DIFFUSERS, {"ss_base_model_version": "hunyuan_video"}, "hv"),
        (DIFFUSERS, {}, "fp"),
    ],
)
def test_names_decide_and_metadata_only_where_they_are_ambiguous(layer, metadata, native, tmp_path):
    assert LoRAFile.open(write(tmp_path / "a.safetensors", {layer: ""}, metadata)).native == native


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 16.0),
        ({"transformer.lora_alpha": 8}, 8.0),
        ({"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn1.to_q": 3}, "transformer.use_rslora": True}, 6.0),
        ({"transformer_2.lora_alpha": 8}, None),
    ],
)
def test_the_alpha_in_pefts_settings(settings, alpha, tmp_path):
    file = LoRAFile.open(write(tmp_path / "a.safetensors", {WAN_LAYER: ""}, {"lora_adapter_metadata": json.dumps(settings)}))
    assert file.layers[0].weights.alpha == alpha


def test_the_alpha_of_a_layer_wins_over_the_settings_of_all(tmp_path):
    settings = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})}
    own = {f"{WAN_LAYER}.alpha": torch.tensor(3.0)}
    assert LoRAFile.open(write(tmp_path / "a.safetensors", {WAN_LAYER: ""}, settings, **own)).layers[0].weights.alpha == 3.0


def test_the_alpha_in_the_file_beside(tmp_path):
    write(tmp_path / "adapter_model.safetensors", {f"base_model.model.{FUSED}": ""})
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2, "use_rslora": true}', encoding="utf-8")
    assert LoRAFile.open(tmp_path / "adapter_model.safetensors").layers[0].weights.alpha == 4.0
    (tmp_path / "adapter_config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config.json cannot be read"):
        LoRAFile.open(tmp_path / "adapter_model.safetensors")


def test_the_experts_of_one_file(tmp_path):
    low, high = "transformer_2.blocks.0.attn1.to_q", "transformer.blocks.0.attn1.to_k"
    both = write(tmp_path / "both.safetensors", {low: "", high: ""})
    with pytest.raises(UserError, match="both experts"):
        LoRAFile.open(both)
    assert [layer.path for layer in LoRAFile.open(both, "low").layers] == ["blocks.0.attn1.to_q"]
    assert [layer.path for layer in LoRAFile.open(both, "high").layers] == ["blocks.0.attn1.to_k"]
    for expert in ("", "low", "high"):
        assert LoRAFile.open(write(tmp_path / "one.safetensors", {low: ""}), expert).layers


def test_several_adapters_are_rejected_by_name(tmp_path):
    path = write(tmp_path / "a.safetensors", {FUSED: ".one", "single_blocks.0.linear1": ".two"})
    assert "LoRA" in str(recognise(path))
    with pytest.raises(UserError, match=r"several adapters \(one, two\)"):
        LoRAFile.open(path)
    assert parse(f"{FUSED}.lora_B.one.bias") == Key("", FUSED, "lora_up.bias", "one")


def test_shared_cases_are_all_read(shared):
    files = sorted((shared / "cases" / "lora").glob("*.safetensors"))
    assert len(files) == 13
    for path in files:
        with_text_encoder = path.name == "lora_te_mixed.safetensors"
        file = LoRAFile.open(path)
        assert file.native in ("wan", "hv", "fp") and not file.namings[""], path
        assert bool(file.left) == with_text_encoder, path
        assert str(recognise(path)).startswith("LoRA"), path
