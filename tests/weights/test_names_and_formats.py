"""What files are called by their names and shapes, and formats as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from musubi_backend import device
from musubi_backend.errors import UserError
from musubi_backend.weights.dtypes import dtype_named, kept_and_computed
from musubi_backend.weights.geometry import geometry_metadata
from musubi_backend.weights.loader import open_weights, read_pickled
from musubi_backend.weights.recognise import expect, kind_of, recognise, refuse_others
from musubi_backend.weights.safetensors_file import TensorInfo, common_prefix, read_model_header, save_atomic, split_files, without_prefix

WAN = ("blocks.0.self_attn.q.weight", "time_projection.1.weight")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("channels", "width", "image", "said"),
    [
        (16, 1536, False, "t2v, 1.3B"),
        (16, 5120, False, "t2v, 14B"),
        (36, 5120, True, "i2v, 14B"),
        (36, 5120, False, "Wan2.2 i2v, 14B"),
        (48, 3072, False, "t2v/ti2v 5B, 5B"),
        (48, 5120, False, "control (FC), 14B"),
        (20, 64, False, "20 input channels, dim 64"),
    ],
)
def test_a_wan_transformer_is_reported_by_its_sizes(channels: int, width: int, image: bool, said: str) -> None:
    names = {name: TensorInfo("F32", (1,), 0, 4) for name in (*WAN, *(["img_emb.proj.0.weight"] if image else []))}
    names["patch_embedding.weight"] = TensorInfo("F32", (width, channels, 1, 2, 2), 0, 4)
    names["blocks.0.modulation"] = TensorInfo("F32", (1, 6, width), 0, 4)
    assert str(kind_of(names)) == f"Wan transformer ({said})"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "Wan, musubi-tuner's layout"),
        ("lora_unet_double_blocks_0_img_attn.hada_w1_a", "HunyuanVideo or FLUX, LoHa"),
        ("lora_unet_single_transformer_blocks_0_x.lokr_w1", "FramePack or FLUX (diffusers' layout), LoKr"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "Wan, ComfyUI's layout"),
        ("diffusion_model.blocks.0.ffn.0.lora_down.default.weight", "Wan, ComfyUI's layout"),
        ("lycoris_blocks_0_ffn_0.lora_down.weight", "Wan, underscored names"),
        ("transformer.blocks.0.attn1.to_q.lora.down.weight", "Wan (diffusers' layout), diffusers' layout"),
        ("diffusion_model.blocks.0.norm3.diff_b", "full differences"),
        ("something.lora_down.weight", "diffusers' layout"),
    ],
)
def test_loras_are_reported_by_architecture_and_layout(name: str, said: str) -> None:
    kind = kind_of({name: None})
    assert kind is not None and (kind.id, str(kind)) == ("lora", f"LoRA ({said})")


@pytest.mark.parametrize(
    ("names", "metadata", "said"),
    [
        (["latents_9x6x8_bf16"], {"architecture": "wan"}, "latent cache (wan)"),
        (["latents_9x6_bf16"], {}, None),
        (["varlen_t5_bf16"], {}, "text encoder cache"),
        (["x"], {"architecture": "hv", "caption1": "a cat"}, "text encoder cache (hv)"),
        (["x"], {"architecture": "hv"}, None),
        (["x"], {"caption1": "a cat"}, None),
    ],
)
def test_caches_are_reported(names: list[str], metadata: dict[str, str], said: str | None) -> None:
    kind = kind_of(dict.fromkeys(names), metadata)
    assert (str(kind) if kind else None) == said


def test_only_what_is_known_to_be_another_kind_is_rejected(tmp_path: Path) -> None:
    save_atomic({"something": torch.ones(1)}, tmp_path / "odd.safetensors")
    save_atomic(
        {"shared.weight": torch.ones(1), "encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(1)}, tmp_path / "t5.safetensors"
    )
    refuse_others(tmp_path / "odd.safetensors", ("wan_vae",), "--vae")
    refuse_others(tmp_path / "t5.safetensors", ("umt5", "t5"), "--t5")
    refuse_others(tmp_path, ("wan_vae",), "--vae")
    with pytest.raises(UserError, match=r"t5\.safetensors is a T5 text encoder; --t5 expects a umt5-xxl text encoder"):
        refuse_others(tmp_path / "t5.safetensors", ("umt5",), "--t5")
    with pytest.raises(UserError, match=r"expects a LoRA\. It holds 1 tensor, such as something\."):
        expect(tmp_path / "odd.safetensors", "lora", "--lora_weight")
    (tmp_path / "no.pth").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"no\.pth is not a readable PyTorch file"):
        recognise(tmp_path / "no.pth")
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        recognise(tmp_path / "none.pt")


def test_the_first_prefix_that_any_name_has_is_taken_off_all() -> None:
    names = {"model.a": 1, "vae.a": 2, "b": 3}
    assert common_prefix(names, ("x.", "vae.", "model.")) == "vae." and common_prefix(names, ("x.",)) == ""
    assert without_prefix(names, "model.") == {"a": 1} and without_prefix(names, "") == names  # type: ignore[arg-type]


def test_metadata_of_all_parts_counts_and_parts_are_in_order(tmp_path: Path) -> None:
    for number in (1, 2):
        save_atomic(
            {f"m.{number}": torch.ones(1), "other": torch.ones(1)}, tmp_path / f"x-{number:05d}-of-00002.safetensors", {str(number): "y"}
        )
    header = read_model_header(tmp_path / "x-00002-of-00002.safetensors", ("m.",))
    assert (list(header.tensors), header.metadata) == (["1", "2"], {"1": "y", "2": "y"})
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x"}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds several models \(one\.safetensors\.index\.json, two\.safetensors\.index\.json\); name"):
        split_files(tmp_path)


@pytest.mark.parametrize("wrapper", ["state_dict", "module", "model", None])
def test_wrappers_of_a_pytorch_file_are_taken_off(tmp_path: Path, wrapper: str | None) -> None:
    state = {"weight": torch.ones(2), "epoch": 3}
    torch.save({wrapper: state, "optimizer": {"lr": 1.0}} if wrapper else state, tmp_path / "x.pth")
    assert {name: tensor.tolist() for name, tensor in read_pickled(tmp_path / "x.pth").items()} == {"weight": [1.0, 1.0]}
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth holds no tensors"):
        read_pickled(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"away\.pth does not exist"):
        read_pickled(tmp_path / "away.pth")


def test_a_file_says_its_main_dtype_and_its_fp8_tensors(tmp_path: Path) -> None:
    small = torch.ones(2, 2).to(torch.float8_e5m2)
    state = {"a.weight": small, "b": torch.ones(1).bfloat16(), "c": torch.ones(1).bfloat16(), "a.scale_weight": torch.tensor(0.5)}
    save_atomic(state, tmp_path / "x.safetensors")
    weights = open_weights(tmp_path / "x.safetensors")
    assert weights.main_dtype() == torch.bfloat16 and weights.holds_fp8 and weights.fp8_names() == ["a.weight"]
    scale = weights.scale("a.weight")
    assert scale is not None and scale.item() == 0.5 and weights.scale("b") is None
    assert weights.read("b").item() == 1.0 and [stored.name for stored in weights.tensors()] == ["b", "c", "a.weight"]
    save_atomic({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    assert not open_weights(tmp_path / "y.safetensors").holds_fp8


def test_sizes_in_the_metadata_are_read_where_there_are_any(tmp_path: Path) -> None:
    for name, metadata in (("plain", None), ("sizes", '{"heads": 2}'), ("list", "[1]"), ("damaged", "{")):
        save_atomic({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors", {"musubi_geometry": metadata} if metadata else None)
    assert geometry_metadata(tmp_path / "plain.safetensors") == geometry_metadata(tmp_path / "none.pth") == {}
    assert geometry_metadata(tmp_path / "sizes.safetensors") == {"heads": 2}
    for name in ("list", "damaged"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors: the metadata musubi_geometry is not"):
            geometry_metadata(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16), ("BFLOAT16", torch.bfloat16), ("torch.bfloat16", torch.bfloat16), ("half", torch.float16),
        ("fp16", torch.float16), ("float", torch.float32), ("fp32", torch.float32), ("float32", torch.float32), ("fp8", None), ("", None),
    ],
)  # fmt: skip
def test_formats_as_people_write_them(name: str, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        assert dtype_named(name, "--vae_dtype") == dtype
    else:
        with pytest.raises(UserError, match=f"--vae_dtype {name} is not known; use float32, bfloat16 or float16"):
            dtype_named(name, "--vae_dtype")


@pytest.mark.parametrize("fast", [True, False])
def test_what_the_user_names_is_computed_in_and_other_16_bits_only_where_the_cpu_can(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"avx512_bf16": fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert kept_and_computed("bf16", "fp16", "--x", CPU) == (torch.bfloat16, torch.bfloat16)
    assert kept_and_computed(None, "bf16", "--x", CPU) == (torch.bfloat16, torch.bfloat16 if fast else torch.float32)
    assert kept_and_computed(None, "fp16", "--x", CPU) == (torch.float16, torch.float32), "bf16 instructions do not help it"
    assert kept_and_computed(None, "fp16", "--x", GPU) == (torch.float16, torch.float16)
    assert device.computed_in(torch.float32, CPU) == torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("sve_bf16", torch.bfloat16), ("bf16", torch.bfloat16),
        ("avx512_fp16", torch.float16), ("amx_fp16", torch.float16), ("fp16_arith", torch.float16), ("avx512_f", None),
    ],
)  # fmt: skip
def test_which_instructions_compute_in_16_bits(name: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    assert [one for one in (torch.bfloat16, torch.float16) if device.cpu_computes_in(one)] == ([dtype] if dtype else [])
