"""Several LoRAs as one, and one from two checkpoints: exact where nothing is cut, the nearest of its rank where something is."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_examples import deltas, layers_of, write_layout
from musubi_backend.lora.factors import factors_of, nearest, nearest_product
from musubi_backend.memory.fp8 import quantise
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

NAME = "lora_unet_blocks_0_self_attn_q"


def lora(rank: int, alpha: float | None, rows: int = 24, columns: int = 16, name: str = NAME) -> dict[str, torch.Tensor]:
    state = {f"{name}.lora_down.weight": torch.randn(rank, columns), f"{name}.lora_up.weight": torch.randn(rows, rank)}
    return state if alpha is None else {**state, f"{name}.alpha": torch.tensor(alpha)}


def loha(rank: int) -> dict[str, torch.Tensor]:
    shapes = {"hada_w1_a": (24, rank), "hada_w1_b": (rank, 16), "hada_w2_a": (24, rank), "hada_w2_b": (rank, 16)}
    return {**{f"{NAME}.{part}": torch.randn(*shape) for part, shape in shapes.items()}, f"{NAME}.alpha": torch.tensor(1.0)}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.none() | st.floats(0.5, 4), st.floats(-2, 2)), min_size=1, max_size=4))
def test_ranks_add_up_and_nothing_is_lost(tmp_path_factory, loras):
    from musubi_backend.__main__ import main

    folder = tmp_path_factory.mktemp("combine")
    words, wanted = [], torch.zeros(24, 16)
    for number, (rank, alpha, strength) in enumerate(loras):
        state = lora(rank, alpha)
        wanted += strength * deltas(state)[NAME]
        save_atomic(state, folder / f"{number}.safetensors")
        words.append(str(folder / f"{number}.safetensors"))
    strengths = [f"{strength:.17f}" for _, _, strength in loras]
    output = folder / "out.safetensors"
    assert main(["combine_lora", "--lora_weight", *words, "--lora_multiplier", *strengths, "--output", str(output)]) == 0
    combined = load(output)
    assert combined[f"{NAME}.lora_down.weight"].shape[0] == sum(rank for rank, _, _ in loras)
    assert torch.allclose(deltas(combined)[NAME], wanted, atol=1e-4)


def test_layouts_mix_and_the_metadata_says_from_what(tmp_path, run_tool, capsys):
    layers = layers_of("wan")
    write_layout(tmp_path / "a.safetensors", "diffusers", "wan", layers)
    write_layout(tmp_path / "b.safetensors", "lycoris", "wan", layers)
    words = [
        "--lora_weight",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        "--lora_multiplier",
        "0.5",
        "--output",
        tmp_path / "c",
    ]
    run_tool("combine_lora", *words)
    assert "nothing was lost" in capsys.readouterr().out
    for path, delta in layers.items():
        assert torch.allclose(deltas(load(tmp_path / "c"))["lora_unet_" + path.replace(".", "_")], 1.5 * delta, atol=1e-4)
    metadata = read_header(tmp_path / "c").metadata
    assert '"strength": 0.5' in metadata["combined_from"] and metadata["ss_network_dim"] == "4" and len(metadata["sshs_model_hash"]) == 64


def test_a_lower_rank_is_the_nearest_and_its_error_is_the_reported_one(tmp_path, run_tool, capsys):
    torch.manual_seed(0)
    first, second = lora(6, 6.0), lora(6, 3.0)
    for name, state in (("a", first), ("b", second)):
        save_atomic(state, tmp_path / name)
    run_tool("combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "b", "--rank", "5", "--output", tmp_path / "c")
    whole = deltas(first)[NAME] + deltas(second)[NAME]
    cut = deltas(load(tmp_path / "c"))[NAME]
    values = torch.linalg.svdvals(whole)
    assert torch.linalg.matrix_rank(cut) == 5
    assert torch.allclose((whole - cut).norm(), values[5:].norm(), rtol=1e-4)
    reported = float(re.search(r"rank 5: ([\d.]+)% of the change", capsys.readouterr().out)[1])  # type: ignore[index]
    assert reported == pytest.approx(100 * float(values[5:].norm() / values.norm()), abs=0.01)


def test_loha_and_lokr_combine(tmp_path, run_tool, refusal):
    torch.manual_seed(0)
    first, second = loha(3), lora(2, 1.0)
    lokr = {f"{NAME}.lokr_w1": torch.randn(4, 4), f"{NAME}.lokr_w2": torch.randn(6, 4)}
    for name, state in (("a", first), ("b", second), ("c", lokr)):
        save_atomic(state, tmp_path / name)
    run_tool("combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "ab")
    assert torch.allclose(deltas(load(tmp_path / "ab"))[NAME], deltas(first)[NAME] + deltas(second)[NAME], atol=1e-4)
    words = ["combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "c", "--output", tmp_path / "ac"]
    assert "choose a rank with --rank" in refusal(*words)
    run_tool(*words, "--rank", "16")
    assert torch.allclose(deltas(load(tmp_path / "ac"))[NAME], deltas(first)[NAME] + deltas(lokr)[NAME], atol=1e-3)


def test_whole_differences_of_a_convolution_combine_at_a_rank(tmp_path, run_tool):
    torch.manual_seed(0)
    name, shape = "lora_unet_patch_embedding", (12, 4, 1, 2, 2)
    first, second = torch.randn(shape), torch.randn(shape)
    for file, diff in (("a", first), ("b", second)):
        save_atomic({f"{name}.diff": diff, **lora(2, 1.0)}, tmp_path / file)
    run_tool("combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "b", "--rank", "12", "--output", tmp_path / "c")
    found = load(tmp_path / "c")
    assert found[f"{name}.lora_down.weight"].shape == (12, *shape[1:])
    product = found[f"{name}.lora_up.weight"].flatten(1) @ found[f"{name}.lora_down.weight"].flatten(1)
    assert torch.allclose(product.view(shape), first + second, atol=1e-4)


def test_a_loha_is_a_product_of_rank_squared():
    parts = {name.partition(".")[2]: tensor for name, tensor in loha(3).items()}
    factors = factors_of(parts, 2.0)
    assert factors is not None and factors.up.shape == (24, 9)
    assert torch.allclose(factors.up @ factors.down, 2 * deltas({f"x.{n}": t for n, t in parts.items()})["x"], atol=1e-5)


def test_small_decompositions_of_products_equal_those_of_the_matrix():
    up, down = torch.randn(40, 7), torch.randn(7, 30)
    thin, whole = nearest_product(up, down, 3), nearest(up @ down, 3)
    assert torch.allclose(thin.up @ thin.down, whole.up @ whole.down, atol=1e-4)
    assert thin.lost == pytest.approx(whole.lost, rel=1e-4) and thin.norm == pytest.approx(whole.norm, rel=1e-5)


def test_random_projections_find_nearly_the_best_and_measure_what_they_lose(monkeypatch):
    torch.manual_seed(0)
    matrix = torch.randn(120, 8) @ torch.randn(8, 100) + 0.05 * torch.randn(120, 100)
    best = nearest(matrix, 6)
    monkeypatch.setattr("musubi_backend.lora.factors._EXACT_SIDE", 10)
    found = nearest(matrix, 6)
    assert found.lost == pytest.approx(float((matrix - found.up @ found.down).norm()), rel=1e-4)
    assert best.lost * 0.9999 <= found.lost <= 1.01 * best.lost
    assert torch.equal(found.up, nearest(matrix, 6).up)


def test_what_cannot_be_combined(tmp_path, refusal, shared):
    golden = shared / "golden" / "convert"
    save_atomic(lora(2, 1.0), tmp_path / "a")
    save_atomic(lora(2, 1.0, columns=8), tmp_path / "narrow")
    save_atomic({**lora(2, 1.0), f"{NAME}.dora_scale": torch.ones(24, 1)}, tmp_path / "dora")
    out = ["--output", tmp_path / "out"]
    said = refusal("combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "narrow", *out)
    assert "blocks.0.self_attn.q is 24x16 in" in said and "24x8 in" in said
    said = refusal("combine_lora", "--lora_weight", tmp_path / "a", golden / "hv.default.safetensors", *out)
    assert "different models" in said and "HunyuanVideo" in said
    assert "DoRA" in refusal("combine_lora", "--lora_weight", tmp_path / "a", tmp_path / "dora", *out)
    assert "is the input" in refusal("combine_lora", "--lora_weight", tmp_path / "a", "--output", tmp_path / "a")
    assert "has 3 values for 1" in refusal("combine_lora", "--lora_weight", tmp_path / "a", "--lora_multiplier", 1, 2, 3, *out)


def checkpoint(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "blocks.0.self_attn.q.weight": torch.randn(24, 16),
        "blocks.0.self_attn.q.bias": torch.randn(24),
        "blocks.0.self_attn.norm_q.weight": torch.randn(16),
        "blocks.1.ffn.0.weight": torch.randn(16, 16),
        "patch_embedding.weight": torch.randn(16, 4, 1, 2, 2),
    }


def test_a_difference_is_extracted_and_merges_back(tmp_path, run_tool, capsys):
    base = checkpoint()
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["blocks.0.self_attn.q.weight"] += torch.randn(24, 3) @ torch.randn(3, 16)
    tuned["blocks.0.self_attn.q.bias"] += 1
    tuned["blocks.0.self_attn.norm_q.weight"] += 2
    tuned["patch_embedding.weight"] += 0.5
    save_atomic(base, tmp_path / "base.safetensors")
    save_atomic({f"model.diffusion_model.{name}": tensor for name, tensor in tuned.items()}, tmp_path / "tuned.safetensors")
    words = ["--base", tmp_path / "base.safetensors", "--tuned", tmp_path / "tuned.safetensors", "--rank", "4", "--save_precision", "fp32"]
    run_tool("extract_lora", *words, "--biases", "--output", tmp_path / "lora.safetensors")
    out = capsys.readouterr().out
    assert "extracted 3 of 5 layers" in out and "rank 4: 0.00% of the change was lost" in out
    run_tool("merge_lora", "--dit", tmp_path / "base.safetensors", "--lora_weight", tmp_path / "lora.safetensors",
             "--save_merged_model", tmp_path / "again.safetensors")  # fmt: skip
    again = load(tmp_path / "again.safetensors")
    assert all(torch.allclose(again[name], tensor, atol=1e-4) for name, tensor in tuned.items())
    assert read_header(tmp_path / "lora.safetensors").metadata["ss_base_model_version"] == "wan"


@pytest.mark.parametrize(
    ("layer", "name", "architecture"),
    [
        ("blocks.3.attn1.to_out.0", "blocks_3_self_attn_o", "wan"),
        ("blocks.3.cross_attn.q", "blocks_3_cross_attn_q", "wan"),
        ("double_blocks.2.img_attn.qkv", "double_blocks_2_img_attn_qkv", "hunyuan_video"),
        ("single_transformer_blocks.2.attn.to_q", "single_transformer_blocks_2_attn_to_q", "framepack"),
        ("some.block.4.proj", "some_block_4_proj", None),
    ],
)
def test_layers_are_named_as_their_architecture_does(layer, name, architecture, tmp_path, run_tool):
    torch.manual_seed(0)
    base, change = torch.randn(8, 8), torch.randn(8, 1) @ torch.randn(1, 8)
    save_atomic({f"{layer}.weight": base, f"{layer}.bias": torch.ones(8)}, tmp_path / "base.safetensors")
    save_atomic({f"{layer}.weight": base + change, f"{layer}.bias": torch.zeros(8)}, tmp_path / "tuned.safetensors")
    words = ["--base", tmp_path / "base.safetensors", "--tuned", tmp_path / "tuned.safetensors", "--rank", "2", "--save_precision", "fp32"]
    run_tool("extract_lora", *words, "--biases", "--output", tmp_path / "lora.safetensors")
    found = load(tmp_path / "lora.safetensors")
    assert found.keys() == {f"lora_unet_{name}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha", "diff_b")}
    assert found[f"lora_unet_{name}.alpha"] == 2 and found[f"lora_unet_{name}.diff_b"].tolist() == [-1.0] * 8
    torch.testing.assert_close(deltas(found)[f"lora_unet_{name}"], change, rtol=1e-4, atol=1e-4)
    assert read_header(tmp_path / "lora.safetensors").metadata.get("ss_base_model_version") == architecture


def test_strengths_act_on_all_kinds_and_missing_ones_are_1(tmp_path, run_tool):
    """Three files with biases and differences, of which the first only has a strength."""
    norm = "lora_unet_blocks_0_norm3"
    for number in (1.0, 2.0, 4.0):
        parts = {f"{NAME}.lora_down.weight": torch.ones(1, 16), f"{NAME}.lora_up.weight": torch.full((24, 1), number)}
        parts |= {f"{NAME}.alpha": torch.tensor(-2.0), f"{NAME}.diff_b": torch.full((24,), number)}
        save_atomic({**parts, f"{norm}.diff": torch.full((16,), number)}, tmp_path / f"{number:g}")
    words = ["--lora_weight", tmp_path / "1", tmp_path / "2", tmp_path / "4", "--lora_multiplier", "-0.5"]
    run_tool("combine_lora", *words, "--output", tmp_path / "c")
    found = load(tmp_path / "c")
    assert torch.equal(deltas(found)[NAME], torch.full((24, 16), -2 * 5.5))  # -0.5 * 1 + 2 + 4
    assert torch.equal(found[f"{NAME}.diff_b"], torch.full((24,), 5.5)) and torch.equal(found[f"{norm}.diff"], torch.full((16,), 5.5))
    assert found[f"{NAME}.lora_down.weight"].dtype == torch.float32


def test_fp8_checkpoints_are_compared_by_what_they_mean(tmp_path, run_tool, capsys):
    base = checkpoint()
    weight, scale = quantise(base["blocks.1.ffn.0.weight"], "tensor")
    assert scale is not None
    eight_bit = {**base, "blocks.1.ffn.0.weight": weight, "blocks.1.ffn.0.scale_weight": scale}
    tuned = {**base, "blocks.1.ffn.0.weight": weight.float() * scale + torch.ones(16, 1) @ torch.ones(1, 16)}
    save_atomic(eight_bit, tmp_path / "base.safetensors")
    save_atomic(tuned, tmp_path / "tuned.safetensors")
    words = ["--base", tmp_path / "base.safetensors", "--tuned", tmp_path / "tuned.safetensors", "--rank", "1", "--save_precision", "fp32"]
    run_tool("extract_lora", *words, "--output", tmp_path / "lora.safetensors")
    found = deltas(load(tmp_path / "lora.safetensors"))
    assert list(found) == ["lora_unet_blocks_1_ffn_0"] and torch.allclose(found["lora_unet_blocks_1_ffn_0"], torch.ones(16, 16), atol=1e-4)


def test_what_cannot_be_extracted(tmp_path, refusal):
    base = checkpoint()
    save_atomic(base, tmp_path / "base.safetensors")
    save_atomic({**base, "blocks.1.ffn.0.weight": torch.ones(4, 4)}, tmp_path / "small.safetensors")
    save_atomic({"x.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    first, out = ["--base", tmp_path / "base.safetensors"], ["--output", tmp_path / "out.safetensors"]
    assert "there is nothing to extract" in refusal("extract_lora", *first, "--tuned", tmp_path / "base.safetensors", *out)
    said = refusal("extract_lora", *first, "--tuned", tmp_path / "small.safetensors", *out)
    assert "blocks.1.ffn.0.weight is [16, 16]" in said and "[4, 4]" in said
    assert "no tensor in common" in refusal("extract_lora", *first, "--tuned", tmp_path / "other.safetensors", *out)
    assert not (tmp_path / "out.safetensors").exists()
