"""Conversion: what musubi-tuner's converter wrote, all layouts people have, and the same delta whatever the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_examples import LAYOUTS, WIDTH, deltas, layers_of, write_layout
from musubi_backend.__main__ import main
from musubi_backend.lora import layer_names
from musubi_backend.lora.layouts import LoRAFile
from musubi_backend.lora.merging import read_lora
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
FACTORS = ("float32", "bfloat16", "float16")
CASES = ("wan_t2v", "wan_i2v", "hv", "framepack", "wan_loha", "wan_lokr", "wan_lokr_full")


def equal(ours: Path, theirs: Path) -> None:
    written, wanted = load(ours), load(theirs)
    assert written.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key
    assert read_header(ours).metadata == read_header(theirs).metadata


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_musubi_tuners_bit_for_bit(case, shared, run_tool, tmp_path):
    golden = shared / "golden" / "convert"
    as_there = ["--musubi_names"] if case == "framepack" else []
    other = tmp_path / "other.safetensors"
    run_tool("convert_lora", "--input", golden / f"{case}.default.safetensors", "--output", other, "--target", "other", *as_there)
    equal(other, golden / f"{case}.other.safetensors")


def test_another_prefix(shared, run_tool, tmp_path):
    golden, other = shared / "golden" / "convert", tmp_path / "other.safetensors"
    words = ["--input", golden / "wan_t2v.default.safetensors", "--output", other, "--target", "other"]
    run_tool("convert_lora", *words, "--diffusers_prefix", "transformer")
    equal(other, golden / "wan_t2v.other_prefix_transformer.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_has_the_recorded_keys_alphas_and_deltas(case, shared, run_tool, tmp_path):
    golden, back = shared / "golden" / "convert", tmp_path / "back.safetensors"
    recorded = json.loads((golden / "index.json").read_text(encoding="utf-8"))[case]
    run_tool("convert_lora", "--input", golden / f"{case}.other.safetensors", "--output", back, "--target", "default")
    state, before = load(back), load(golden / f"{case}.default.safetensors")
    assert state.keys() == before.keys()
    for key, (value, dtype) in recorded["alpha_back"].items():
        assert state[key].item() == value and str(state[key].dtype) == dtype
    assert read_header(back).metadata == recorded["meta_back"]
    after, wanted = deltas(state), deltas(before)
    assert max((after[name] - wanted[name]).abs().max() for name in wanted) < 1e-8


def test_framepack_gets_its_right_names(shared, run_tool, tmp_path):
    golden, other = shared / "golden" / "convert", tmp_path / "other.safetensors"
    run_tool("convert_lora", "--input", golden / "framepack.default.safetensors", "--output", other, "--target", "other")
    model = {key.removesuffix(".weight") for key in load(shared / "golden" / "dit" / "framepack.dit.safetensors")}
    paths = {key.removeprefix("diffusion_model.").partition(".lora_")[0] for key in load(other)}
    assert paths and paths <= model


@pytest.mark.parametrize("architecture", ["wan", "hv", "fp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_means_the_same(layout, architecture, tmp_path, run_tool, capsys):
    layers = layers_of(architecture)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    title = write_layout(source, layout, architecture, layers)
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "default", "--architecture", architecture)
    assert f"detected: {title}" in capsys.readouterr().out
    found = deltas(load(target))
    assert found.keys() == {"lora_unet_" + path.replace(".", "_") for path in layers}
    for path, delta in layers.items():
        assert torch.allclose(found["lora_unet_" + path.replace(".", "_")], delta, atol=1e-5), path


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_hunyuan_becomes_framepack_and_back(kind, tmp_path, run_tool):
    torch.manual_seed(1)
    shapes = {"double_blocks_3_img_attn_qkv": (3 * WIDTH, WIDTH), "single_blocks_0_linear1": (7 * WIDTH, WIDTH),
              "single_blocks_0_linear2": (WIDTH, 5 * WIDTH), "double_blocks_3_txt_mlp_fc1": (4 * WIDTH, WIDTH)}  # fmt: skip
    state = {}
    for name, (rows, columns) in shapes.items():
        names = ("lora_up.weight", "lora_down.weight") if kind == "lora" else ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        for part in names:
            up = part.endswith(("_a", "up.weight"))
            state[f"lora_unet_{name}.{part}"] = torch.randn(*((rows, 3) if up else (3, columns)))
        state[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("hv", "fp", "back"))
    save_atomic(state, first, {"ss_base_model_version": "hunyuan_video"})
    run_tool("convert_lora", "--input", first, "--output", second, "--target", "default", "--architecture", "fp")
    assert read_header(second).metadata == {"ss_base_model_version": "framepack"}
    split, whole = deltas(load(second)), deltas(state)
    parts = [split[f"lora_unet_transformer_blocks_3_attn_to_{x}"] for x in "qkv"]
    assert torch.equal(torch.cat(parts), whole["lora_unet_double_blocks_3_img_attn_qkv"])
    parts = [split[f"lora_unet_single_transformer_blocks_0_{x}"] for x in ("attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp")]
    assert [len(part) for part in parts] == [WIDTH, WIDTH, WIDTH, 4 * WIDTH]
    assert torch.equal(torch.cat(parts), whole["lora_unet_single_blocks_0_linear1"])
    run_tool("convert_lora", "--input", second, "--output", third, "--target", "default", "--architecture", "hv")
    back = deltas(load(third))
    assert back.keys() == whole.keys() and all(torch.allclose(back[name], whole[name], atol=1e-5) for name in whole)
    if kind == "lora":  # parts that share their down factor get it back: no rank is added
        assert {name: t.shape for name, t in load(third).items()} == {name: t.shape for name, t in state.items()}


def test_only_some_parts_of_a_fused_layer(tmp_path, run_tool):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    torch.manual_seed(0)
    names = {"single_transformer_blocks_0_attn_to_q": (WIDTH, 2, 4.0), "single_transformer_blocks_0_attn_to_v": (WIDTH, 3, 1.0)}
    state = {}
    for name, (rows, rank, alpha) in names.items():
        state[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, rank)
        state[f"lora_unet_{name}.lora_down.weight"] = torch.randn(rank, WIDTH)
        state[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    save_atomic(state, source)
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "default", "--architecture", "hv")
    fused, parts = deltas(load(target))["lora_unet_single_blocks_0_linear1"], deltas(state)
    assert fused.shape == (7 * WIDTH, WIDTH)
    assert torch.allclose(fused[:WIDTH], parts["lora_unet_single_transformer_blocks_0_attn_to_q"], atol=1e-5)
    assert torch.allclose(fused[2 * WIDTH : 3 * WIDTH], parts["lora_unet_single_transformer_blocks_0_attn_to_v"], atol=1e-5)
    assert not fused[WIDTH : 2 * WIDTH].any() and not fused[3 * WIDTH :].any()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(FACTORS),
    st.sampled_from([*FACTORS, "int64", None]),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 8),
    st.booleans(),
)
def test_round_trips_keep_the_delta(tmp_path_factory, dtype, alpha_dtype, rank, rows, columns, alpha, extra):
    """Over dtypes, ranks, shapes, missing alphas and foreign keys; the factors are musubi-tuner's, rounded as torch rounds."""
    folder = tmp_path_factory.mktemp("convert")
    factor = getattr(torch, dtype)
    name = "lora_unet_blocks_0_self_attn_q"
    state = {
        f"{name}.lora_down.weight": torch.randn(rank, columns).to(factor),
        f"{name}.lora_up.weight": torch.randn(rows, rank).to(factor),
    }
    if alpha_dtype:
        state[f"{name}.alpha"] = torch.tensor(alpha).to(getattr(torch, alpha_dtype))
    foreign = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 2), "anything": torch.ones(1)} if extra else {}
    save_atomic({**state, **foreign}, folder / "a.safetensors", {"kept": "yes"})
    for source, target, layout in (("a", "b", "other"), ("b", "c", "default")):
        words = ["--input", str(folder / f"{source}.safetensors"), "--output", str(folder / f"{target}.safetensors"), "--target", layout]
        assert main(["convert_lora", *words]) == 0
    other, back = load(folder / "b.safetensors"), load(folder / "c.safetensors")
    assert read_header(folder / "c.safetensors").metadata == {"kept": "yes"}
    assert back.keys() == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    down = state[f"{name}.lora_down.weight"]
    root = (state[f"{name}.alpha"] / rank).sqrt() if alpha_dtype else 1
    last_bit = max(torch.finfo(getattr(torch, each)).eps for each in (dtype, alpha_dtype) if each in FACTORS)  # processors round roots so
    torch.testing.assert_close(other["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], down * root, rtol=2 * last_bit, atol=0)
    before, after = deltas(state)[name], deltas(back)[name]
    tolerance = max({"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[each] for each in (dtype, alpha_dtype) if each in FACTORS)
    assert torch.allclose(before, after, rtol=tolerance, atol=tolerance * float(before.abs().max()) + 1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.none() | st.tuples(st.integers(1, 3), st.none() | st.sampled_from([0.5, 1.0, 3.0])), min_size=4, max_size=4).filter(any),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(["lora", "loha"]),
)
def test_parts_of_a_layer_fuse_to_their_deltas(tmp_path_factory, parts, dtype, kind):
    """Over ranks, alphas, missing alphas and missing parts: the fused layer's rows are the parts' deltas."""
    folder = tmp_path_factory.mktemp("fuse")
    names = ["attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp"]
    heights = [WIDTH, WIDTH, WIDTH, 4 * WIDTH]
    state = {}
    for name, rows, part in zip(names, heights, parts, strict=True):
        for factor in () if part is None else {"lora": ("lora_up.weight", "lora_down.weight"), "loha": LOHA}[kind]:
            up = factor.endswith(("_a", "up.weight"))
            shape = (rows, part[0]) if up else (part[0], WIDTH)
            state[f"lora_unet_single_transformer_blocks_0_{name}.{factor}"] = torch.randn(shape).to(getattr(torch, dtype))
        if part is not None and part[1] is not None:
            state[f"lora_unet_single_transformer_blocks_0_{name}.alpha"] = torch.tensor(part[1])
    save_atomic(state, folder / "in.safetensors")
    words = ["--input", str(folder / "in.safetensors"), "--output", str(folder / "out.safetensors"), "--target", "default"]
    assert main(["convert_lora", *words, "--architecture", "hv"]) == 0
    fused, wanted = deltas(load(folder / "out.safetensors"))["lora_unet_single_blocks_0_linear1"], deltas(state)
    prefix = "lora_unet_single_transformer_blocks_0_"
    rows = torch.cat([wanted.get(prefix + name, torch.zeros(height, WIDTH)) for name, height in zip(names, heights, strict=True)])
    limit = (1e-5 if dtype == "float32" else 2e-2) * max(1.0, float(rows.abs().max()))
    assert torch.allclose(fused, rows, atol=limit)


def test_unknown_tensors_are_reported_and_left_out_or_kept(tmp_path, run_tool, capsys, shared):
    state = load(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 2)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_atomic(state, source)
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "other")
    captured = capsys.readouterr()
    assert "left: 1 tensor left out (lora_te_text_model" in captured.out and "unexpected key: lora_te_text_model" in captured.err
    assert len(load(target)) == 40
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "other", "--keep_unknown")
    assert len(load(target)) == 41


def test_a_hash_in_the_metadata_is_renewed(tmp_path, run_tool, shared):
    state = load(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_atomic(state, source, {"sshs_model_hash": "0" * 64, "ss_network_dim": "4"})
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "other")
    from musubi_backend.weights.streamed_file import with_hashes

    assert read_header(target).metadata == with_hashes(load(target), {"ss_network_dim": "4"})


def test_the_alpha_in_diffusers_metadata_counts(tmp_path):
    path = tmp_path / "d.safetensors"
    state = {f"transformer.blocks.0.attn1.to_q.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}
    save_atomic(state, path, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer.r": 4})})
    assert read_lora(path, "wan")["lora_unet_blocks_0_self_attn_q.alpha"] == 8


def test_names_have_one_meaning_each():
    kept = 0
    for table in layer_names.tables():
        for row in table.rows:
            for column, naming in enumerate(table.namings):
                for name in row[column]:
                    path = name.format("7")
                    for written in (path, path.replace(".", "_")):
                        found = layer_names.find(written)
                        assert found is not None
                        if layer_names.has_naming(found.place, naming.id):  # models share names; the first table counts
                            assert path in layer_names.names_of(found.place, naming.id)
                            kept += 1
    assert kept > 300


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PK" + bytes(100)), "looks like a PyTorch pickle"),
        (lambda path: save_atomic({"blocks.0.self_attn.q.weight": torch.ones(2)}, path), "holds no LoRA"),
        (lambda path: save_atomic({"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.ones(2, 2)}, path), "holds no LoRA"),
        (lambda path: save_atomic({"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.ones(2, 2),
                                   "lora_unet_blocks_0_ffn_0.lora_up.weight": torch.ones(2, 3)}, path), "do not fit each other"),
        (lambda path: save_atomic({"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.ones(2, 2),
                                   "lora_unet_blocks_0_ffn_0.lora_up.weight": torch.ones(2, 2),
                                   "lora_unet_blocks_0_ffn_0.alpha": torch.ones(2)}, path), "one number is expected"),
    ],
)  # fmt: skip
def test_bad_files_are_rejected_by_name(make, message, tmp_path, refusal):
    source = tmp_path / "in.safetensors"
    make(source)
    said = refusal("convert_lora", "--input", source, "--output", tmp_path / "out.safetensors", "--target", "other")
    assert message in said and "in.safetensors" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_what_cannot_be_is_rejected(shared, tmp_path, refusal):
    wan = shared / "golden" / "convert" / "wan_t2v.default.safetensors"
    out = ["--output", tmp_path / "out.safetensors", "--target", "default"]
    assert "is for Wan2.1 and cannot become one for FramePack" in refusal("convert_lora", "--input", wan, *out, "--architecture", "fp")
    assert "is the input" in refusal("convert_lora", "--input", wan, "--output", wan, "--target", "other")
    lokr = tmp_path / "lokr.safetensors"
    save_atomic({f"lora_unet_single_blocks_0_linear1.lokr_w{n}": torch.ones(*size) for n, size in ((1, (4, 4)), (2, (14, 2)))}, lokr)
    assert "cannot be split at row" in refusal("convert_lora", "--input", lokr, *out, "--architecture", "fp")


def test_a_lokr_whose_blocks_fit_is_split(tmp_path, run_tool):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    state = {f"lora_unet_double_blocks_0_img_attn_qkv.lokr_w{n}": torch.randn(*size) for n, size in ((1, (6, 2)), (2, (4, 4)))}
    save_atomic(state, source)
    run_tool("convert_lora", "--input", source, "--output", target, "--target", "default", "--architecture", "fp")
    split = deltas(load(target))
    whole = deltas(state)["lora_unet_double_blocks_0_img_attn_qkv"]
    assert torch.equal(torch.cat([split[f"lora_unet_transformer_blocks_0_attn_to_{x}"] for x in "qkv"]), whole)


def test_a_large_rank_and_its_reading_stay_lazy(tmp_path):
    path = tmp_path / "in.safetensors"
    save_atomic({f"lora_unet_blocks_0_ffn_0.{part}": torch.ones(4, 4) for part in ("lora_down.weight", "lora_up.weight")}, path)
    lora = LoRAFile.open(path)
    lora.file.array = None  # type: ignore[method-assign, assignment]
    assert lora.layers[0].weights.size() == (4, 4) and lora.title == "musubi-tuner; Wan; LoRA"
    assert np.isclose(lora.layers[0].weights.scale, 1.0)
