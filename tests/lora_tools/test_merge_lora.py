"""Merging into a transformer: what musubi-tuner wrote, every dtype and layout of the base, every kind of LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from musubi_backend.memory.fp8 import quantise
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from musubi_backend.weights.scales import dequantised
from torch import Tensor

NAME = "blocks.0.self_attn.q"


def base_of(tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What is recognised as a Wan transformer, with one linear of 64 x 128."""
    torch.manual_seed(0)
    other = {"time_projection.1.weight": torch.randn(4, 4), "patch_embedding.weight": torch.randn(4, 16, 1, 2, 2)}
    return {**other, f"{NAME}.weight": torch.randn(64, 128), f"{NAME}.bias": torch.randn(64), **(tensors or {})}


def lora_of(kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """(a LoRA file for that linear in ComfyUI's layout, its delta)"""
    torch.manual_seed(1)
    body = f"diffusion_model.{NAME}"
    if kind == "LoHa":
        parts = {
            "hada_w1_a": torch.randn(64, 2),
            "hada_w1_b": torch.randn(2, 128),
            "hada_w2_a": torch.randn(64, 2),
            "hada_w2_b": torch.randn(2, 128),
        }
        delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) / 2
    elif kind == "LoKr":
        parts = {"lokr_w1": torch.randn(8, 8), "lokr_w2_a": torch.randn(8, 2), "lokr_w2_b": torch.randn(2, 16)}
        delta = torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]) / 2
    elif kind == "diff":
        parts = {"diff": torch.randn(64, 128)}
        delta = parts["diff"]
    else:
        parts = {"lora_A.weight": torch.randn(2, 128), "lora_B.weight": torch.randn(64, 2)}
        delta = parts["lora_B.weight"] @ parts["lora_A.weight"] / 2
    return {f"{body}.{name}": tensor for name, tensor in {**parts, "alpha": torch.tensor(1.0)}.items()}, delta


@pytest.mark.parametrize("case", ["one_default_mult", "two_mult", "none"])
def test_hunyuan_video_is_merged_as_recorded_bit_for_bit(case, shared, run_tool, tmp_path):
    golden = shared / "golden" / "merge"
    recorded = json.loads((golden / "index.json").read_text(encoding="utf-8"))[case]
    words = [golden / word if word.endswith(".safetensors") else word for word in recorded["argv"]]
    output, base = tmp_path / "merged.safetensors", load(golden / "hv_dit_bf16.safetensors")
    run_tool("merge_lora", "--dit", golden / "hv_dit_bf16.safetensors", *words, "--save_merged_model", output)
    written, changed = load(output), load(golden / f"out_{case}.safetensors")
    changed.pop("none", None)  # stands in a file that would hold nothing
    assert written.keys() == base.keys() and len(changed) == recorded["changed"]
    for name, tensor in {**base, **changed}.items():
        assert written[name].dtype == tensor.dtype and torch.equal(written[name], tensor), name
    assert not read_header(output).metadata


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "diff"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_kind_goes_into_every_dtype_and_the_base_keeps_its_layout(kind, dtype, prefix, run_tool, tmp_path):
    base = {prefix + name: tensor.to(getattr(torch, dtype)) for name, tensor in base_of().items()}
    save_atomic(base, tmp_path / "base.safetensors", {"kept": "yes"})
    state, delta = lora_of(kind)
    save_atomic(state, tmp_path / "lora.safetensors")
    words = ["--dit", tmp_path / "base.safetensors", "--lora_weight", tmp_path / "lora.safetensors", "--lora_multiplier", "0.5"]
    run_tool("merge_lora", *words, "--save_merged_model", tmp_path / "out.safetensors")
    merged = load(tmp_path / "out.safetensors")
    weight = f"{prefix}{NAME}.weight"
    wanted = (base[weight].float() + 0.5 * delta).to(base[weight].dtype)
    assert torch.allclose(merged[weight].float(), wanted.float(), rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-5)
    assert merged.keys() == base.keys() and read_header(tmp_path / "out.safetensors").metadata == {"kept": "yes"}
    assert all(torch.equal(merged[name], tensor) for name, tensor in base.items() if name != weight)


@pytest.mark.parametrize("scaling", ["none", "tensor", "row", "block"])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_weights_are_scaled_anew_in_the_way_they_were(scaling, stored, run_tool, tmp_path):
    dense = base_of()[f"{NAME}.weight"]
    if scaling == "row":
        scale = dense.abs().amax(1, keepdim=True) / 448
        weight = (dense / scale).to(stored)
    else:
        weight, found = quantise(dense, scaling)
        weight, scale = weight.to(stored), found
    tensors = {f"{NAME}.weight": weight, "blocks.1.ffn.0.weight": torch.randn(64, 64).to(stored)}
    if scale is not None:
        tensors |= {
            f"{NAME}.scale_weight": scale,
            "blocks.1.ffn.0.scale_weight": torch.tensor([0.5]),
            "scaled_fp8": torch.empty(2).to(stored),
        }
    base = base_of(tensors)
    save_atomic(base, tmp_path / "base.safetensors")
    state, delta = lora_of("LoRA")
    save_atomic(state, tmp_path / "lora.safetensors")
    words = ["--dit", tmp_path / "base.safetensors", "--lora_weight", tmp_path / "lora.safetensors"]
    run_tool("merge_lora", *words, "--save_merged_model", tmp_path / "out.safetensors")
    merged = load(tmp_path / "out.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in merged.items()} == {name: (t.dtype, t.shape) for name, t in base.items()}
    touched = {f"{NAME}.weight", f"{NAME}.scale_weight"}
    for name, tensor in base.items():
        if name not in touched:
            assert torch.equal(merged[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name
    before = dequantised(weight, scale, torch.float32)
    after = dequantised(merged[f"{NAME}.weight"], merged.get(f"{NAME}.scale_weight"), torch.float32)
    error = (after - before - delta).norm() / (before + delta).norm()
    assert error < (0.04 if stored == torch.float8_e4m3fn else 0.08)


def test_biases_norms_and_convolutions_of_extracted_loras(run_tool, tmp_path):
    save_atomic(base_of(), tmp_path / "base.safetensors")
    state = {
        f"diffusion_model.{NAME}.diff_b": torch.full((64,), 2.0),
        "diffusion_model.patch_embedding.lora_A.weight": torch.ones(1, 16, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_B.weight": torch.ones(4, 1),
    }
    save_atomic(state, tmp_path / "lora.safetensors")
    words = ["--dit", tmp_path / "base.safetensors", "--lora_weight", tmp_path / "lora.safetensors"]
    run_tool("merge_lora", *words, "--save_merged_model", tmp_path / "out.safetensors")
    merged, base = load(tmp_path / "out.safetensors"), base_of()
    assert torch.equal(merged[f"{NAME}.bias"], base[f"{NAME}.bias"] + 2)
    assert torch.equal(merged["patch_embedding.weight"], base["patch_embedding.weight"] + 1)


def test_a_split_base_and_a_pickle_become_one_file(run_tool, tmp_path):
    whole = base_of()
    names = sorted(whole)
    for number, part in enumerate((names[:2], names[2:]), 1):
        save_atomic({name: whole[name] for name in part}, tmp_path / f"base-{number:05d}-of-00002.safetensors")
    torch.save({"module": whole}, tmp_path / "base.pt")
    state, _ = lora_of("LoRA")
    save_atomic(state, tmp_path / "lora.safetensors")
    for base in ("base-00002-of-00002.safetensors", "base.pt"):
        words = ["--dit", tmp_path / base, "--lora_weight", tmp_path / "lora.safetensors"]
        run_tool("merge_lora", *words, "--save_merged_model", tmp_path / f"{base}.merged")
    assert (tmp_path / "base.pt.merged").read_bytes() == (tmp_path / "base-00002-of-00002.safetensors.merged").read_bytes()
    assert load(tmp_path / "base.pt.merged").keys() == whole.keys()


@pytest.mark.parametrize("case", ["hv", "framepack"])
def test_hunyuan_and_framepack_loras_fit_each_others_transformers(case, shared, run_tool, tmp_path):
    """The same change, whether the LoRA is written for the base's own layers or for those of the other model."""
    golden = shared / "golden"
    base = golden / "dit" / f"{'hv_t2v' if case == 'hv' else 'framepack'}.dit.safetensors"
    lora, other = golden / "convert" / f"{case}.default.safetensors", tmp_path / "other.safetensors"
    run_tool("convert_lora", "--input", lora, "--output", other, "--target", "other", "--architecture", "fp" if case == "hv" else "hv")
    merged = []
    for number, path in enumerate((lora, other)):
        output = tmp_path / f"{number}.safetensors"
        run_tool("merge_lora", "--dit", base, "--lora_weight", path, "--save_merged_model", output)
        merged.append(load(output))
    before = load(base)
    changed = [name for name in before if not torch.equal(before[name], merged[0][name])]
    assert len(changed) == len([name for name in load(lora) if "lora_up" in name])
    assert all(torch.allclose(merged[0][name], merged[1][name], atol=1e-6) for name in before)


def test_bad_input(shared, refusal, tmp_path):
    golden = shared / "golden"
    save_atomic(base_of(), tmp_path / "base.safetensors")
    state, _ = lora_of("LoRA")
    save_atomic(state, tmp_path / "lora.safetensors")
    save_atomic({name: torch.cat([t, t], -1) if "lora_A" in name else t for name, t in state.items()}, tmp_path / "wide.safetensors")
    save_atomic({**state, f"diffusion_model.{NAME}.lora_mid.weight": torch.ones(2, 2)}, tmp_path / "tucker.safetensors")
    base, out = tmp_path / "base.safetensors", ["--save_merged_model", tmp_path / "out.safetensors"]

    def said(*words: object) -> str:
        return refusal("merge_lora", *words)

    hv = golden / "convert" / "hv.default.safetensors"
    assert "fits no layer of this model" in said("--dit", base, "--lora_weight", hv, *out)
    wide = said("--dit", base, "--lora_weight", tmp_path / "wide.safetensors", *out)
    assert "64x256" in wide and "[64, 128]" in wide and "blocks_0_self_attn_q" in wide
    assert "wide.safetensors" in wide and "base.safetensors" in wide
    assert "Tucker" in said("--dit", base, "--lora_weight", tmp_path / "tucker.safetensors", *out)
    assert "is the input" in said("--dit", base, "--lora_weight", hv, "--save_merged_model", base)
    assert "a transformer is expected" in said("--dit", hv, "--lora_weight", hv, *out)
    assert "--lora_multiplier has 2 values for 1" in said("--dit", base, "--lora_weight", hv, "--lora_multiplier", "1", "2", *out)
    parts = [tmp_path / f"part-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part in parts:
        save_atomic({f"{part.stem}.weight": torch.zeros(2, 2)}, part)
    assert f"is the input {parts[1]}" in said("--dit", parts[0], "--save_merged_model", parts[1])
    assert "holds no models" in said("--dit", _folder(tmp_path), *out)
    assert not (tmp_path / "out.safetensors").exists() and not list(tmp_path.glob(".*part"))


def test_a_full_disk_leaves_nothing_half(refusal, small_disk, tmp_path):
    save_atomic(base_of({"blocks.0.ffn.0.weight": torch.randn(1024, 1024)}), tmp_path / "base.safetensors")
    said = refusal("merge_lora", "--dit", tmp_path / "base.safetensors", "--save_merged_model", small_disk / "out.safetensors")
    assert "no space left" in said and not list(small_disk.iterdir())


def _folder(parent: Path) -> Path:
    (parent / "empty").mkdir()
    return parent / "empty"
