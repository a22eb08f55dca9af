"""Files are known by their keys, and a wrong one is rejected by name."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.weights.recognise import expect, kind_of, recognise
from musubi_backend.weights.safetensors_file import load, save_atomic

RECORDED = {
    "dit/wan21_t2v.dit": ("wan_transformer", "Wan transformer (t2v, dim 32)"),
    "dit/wan21_i2v.dit": ("wan_transformer", "Wan transformer (i2v, dim 32)"),
    "dit/wan22_i2v.dit": ("wan_transformer", "Wan transformer (Wan2.2 i2v, dim 32)"),
    "dit/hv_t2v.dit": ("hunyuan_video_transformer", "HunyuanVideo transformer"),
    "dit/framepack.dit": ("framepack_transformer", "FramePack transformer"),
    "vae_te/wan_vae": ("wan_vae", "Wan VAE"),
    "vae_te/hv_vae": ("hunyuan_video_vae", "HunyuanVideo VAE"),
    "vae_te/umt5": ("umt5", "umt5-xxl text encoder"),
    "vae_te/clip_visual": ("clip_vision", "CLIP vision encoder"),
    "dit/wan21_t2v.lora": ("lora", "LoRA (Wan, musubi-tuner's layout)"),
    "dit/hv_t2v.lora": ("lora", "LoRA (HunyuanVideo or FLUX, musubi-tuner's layout)"),
    "convert/wan_t2v.other": ("lora", "LoRA (Wan, ComfyUI's layout)"),
    "convert/wan_t2v.other_prefix_transformer": ("lora", "LoRA (Wan, diffusers' layout)"),
    "cache/wan_t2v_video/clip_0_00000-009_0064x0048_wan": ("latent_cache", "latent cache (wan)"),
    "cache/wan_t2v_video/clip_0_wan_te": ("text_cache", "text encoder cache (wan)"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_files_are_recognised(shared, name):
    kind = recognise(shared / "golden" / f"{name}.safetensors")
    assert (kind.id, str(kind)) == RECORDED[name]


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_prefixed_and_pickled_files_are_recognised(shared, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in load(shared / "golden" / "dit" / "wan21_t2v.dit.safetensors").items()}
    save_atomic(state, tmp_path / "prefixed.safetensors")
    torch.save(state, tmp_path / "pickled.pth")
    assert recognise(tmp_path / "prefixed.safetensors").id == "wan_transformer"
    assert recognise(tmp_path / "pickled.pth").id == "wan_transformer"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["double_blocks.0.img_attn.qkv.weight", "txt_in.t_embedder.in_layer.weight"], "hunyuan_video_transformer"),
        (["double_blocks.0.img_attn.qkv.weight", "txt_in.weight", "img_in.weight"], "flux_transformer"),
        (["transformer_blocks.0.img_mlp.net.0.proj.weight", "txt_norm.weight"], "qwen_image_transformer"),
        (["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"], "sdxl_model"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight", "text_model.embeddings.token_embedding.weight"], "clip_l"),
        (["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"], "llama"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.class_embedding"], "clip_vision"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.embeddings.position_embedding.weight"], "siglip"),
        (["shared.weight", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"], "umt5"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "t5"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.conv1.weight"], "image_vae"),
    ],
)
def test_other_models_are_known_by_their_names(names, kind):
    assert kind_of(dict.fromkeys(names)).id == kind


def test_a_wrong_file_is_rejected_by_name(shared):
    wrong = shared / "golden" / "dit" / "hv_t2v.dit.safetensors"
    with pytest.raises(UserError, match=r"hv_t2v.dit.safetensors is a HunyuanVideo transformer; --dit expects a Wan transformer"):
        expect(wrong, "wan_transformer", "--dit")
    assert expect(wrong, "hunyuan_video_transformer", "--dit").name == "HunyuanVideo transformer"


def test_an_unknown_file_says_what_it_holds(tmp_path):
    save_atomic({"something": torch.ones(1)}, tmp_path / "odd.safetensors")
    assert recognise(tmp_path / "odd.safetensors") is None
    with pytest.raises(UserError, match=r"not a known kind of model file; --vae expects a Wan VAE. It holds 1 tensor, such as something"):
        expect(tmp_path / "odd.safetensors", "wan_vae", "--vae")


def test_a_pickle_is_never_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"encoder.conv1.weight": Harmful()}, tmp_path / "bad.pth")
    assert recognise(tmp_path / "bad.pth") is None
    assert not (tmp_path / "harm").exists()
