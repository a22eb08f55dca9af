"""DoRA in every program's form is merged exactly, converted where the other side can apply it, and rejected by name elsewhere; whatever
else a file holds is used or named."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.lora.merging import LoRAMerge
from musubi_backend.weights.safetensors_file import load, save_atomic
from torch import Tensor

NAME = "blocks.0.self_attn.q"
ROWS, COLUMNS, RANK = 24, 16, 3


def model() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "time_projection.1.weight": torch.randn(4, 4),
        "patch_embedding.weight": torch.randn(4, 16, 1, 2, 2),
        f"{NAME}.weight": torch.randn(ROWS, COLUMNS),
        f"{NAME}.bias": torch.randn(ROWS),
        "blocks.0.modulation": torch.randn(1, 6, 4),
        "head.modulation": torch.randn(1, 2, 4),
    }


def factors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, RANK), torch.randn(RANK, COLUMNS)


def dora(form: str) -> tuple[dict[str, Tensor], Tensor]:
    """(a file's tensors, the weight they make): alpha is half the rank where the form has one."""
    up, down = factors()
    inputs = form == "inputs"
    magnitude = torch.rand(1, COLUMNS) + 0.5 if inputs else torch.rand(ROWS, 1) + 0.5
    changed = model()[f"{NAME}.weight"] + up @ down * (0.5 if form in ("inputs", "outputs") else 1.0)
    wanted = magnitude * changed / changed.norm(dim=0 if inputs else 1, keepdim=True)
    if form in ("inputs", "outputs"):
        body = f"lora_unet_{NAME.replace('.', '_')}"
        alpha = torch.tensor(RANK / 2)
        return {
            f"{body}.lora_up.weight": up,
            f"{body}.lora_down.weight": down,
            f"{body}.alpha": alpha,
            f"{body}.dora_scale": magnitude,
        }, wanted
    body = f"diffusion_model.{NAME}"
    return {f"{body}.lora_A.weight": down, f"{body}.lora_B.weight": up, f"{body}.{form}": magnitude.flatten()}, wanted


@pytest.fixture
def merged(tmp_path, run_tool):
    """merged(file, *words) -> the tensors of the model with it"""

    def run(path, *words):
        save_atomic(model(), tmp_path / "base.safetensors")
        out = tmp_path / "merged.safetensors"
        run_tool("merge_lora", "--dit", tmp_path / "base.safetensors", "--lora_weight", path, *words, "--save_merged_model", out)
        return load(out)

    return run


@pytest.mark.parametrize("form", ["inputs", "outputs", "lora_magnitude_vector", "lora_magnitude_vector.default", "magnitude"])
def test_every_form_is_merged_exactly(form, tmp_path, merged, run_tool):
    state, wanted = dora(form)
    save_atomic(state, tmp_path / "dora.safetensors")
    found = merged(tmp_path / "dora.safetensors")[f"{NAME}.weight"]
    torch.testing.assert_close(found, wanted)
    half = merged(tmp_path / "dora.safetensors", "--lora_multiplier", "0.5")[f"{NAME}.weight"]
    torch.testing.assert_close(half, (wanted + model()[f"{NAME}.weight"]) / 2)
    on_the_fly = LoRAMerge([tmp_path / "dora.safetensors"])(f"{NAME}.weight", model()[f"{NAME}.weight"])
    torch.testing.assert_close(on_the_fly, wanted)
    run_tool("convert_lora", "--input", tmp_path / "dora.safetensors", "--output", tmp_path / "default.safetensors", "--target", "default")
    torch.testing.assert_close(merged(tmp_path / "default.safetensors")[f"{NAME}.weight"], wanted)


def test_magnitudes_of_inputs_become_comfyuis(tmp_path, merged, run_tool):
    state, wanted = dora("inputs")
    save_atomic(state, tmp_path / "dora.safetensors")
    run_tool("convert_lora", "--input", tmp_path / "dora.safetensors", "--output", tmp_path / "other.safetensors", "--target", "other")
    assert load(tmp_path / "other.safetensors")[f"diffusion_model.{NAME}.dora_scale"].shape == (1, COLUMNS)
    torch.testing.assert_close(merged(tmp_path / "other.safetensors")[f"{NAME}.weight"], wanted)


@pytest.mark.parametrize("form", ["outputs", "lora_magnitude_vector", "magnitude"])
def test_what_comfyui_would_apply_wrongly_is_rejected(form, tmp_path, refusal):
    save_atomic(dora(form)[0], tmp_path / "dora.safetensors")
    said = refusal("convert_lora", "--input", tmp_path / "dora.safetensors", "--output", tmp_path / "other", "--target", "other")
    assert "DoRA with a magnitude for each output" in said and "merge_lora" in said
    assert not (tmp_path / "other").exists()


def test_parts_of_a_fused_layer_are_merged_each_in_its_rows(tmp_path, refusal):
    torch.manual_seed(2)
    width, state, wanted = 8, {}, []
    weight = torch.randn(3 * width, width)
    for number, name in enumerate("qkv"):
        up, down, magnitude = torch.randn(width, 2), torch.randn(2, width), torch.rand(1, width) + 0.5
        body = f"lora_transformer_transformer_blocks_0_attn_to_{name}"
        state |= {f"{body}.lora_up.weight": up, f"{body}.lora_down.weight": down}
        part = weight[number * width : (number + 1) * width]
        if name != "k":  # one part without DoRA
            state[f"{body}.dora_scale"] = magnitude
        changed = part + up @ down
        wanted.append(changed if name == "k" else magnitude * changed / changed.norm(dim=0, keepdim=True))
    save_atomic(state, tmp_path / "dora.safetensors")
    merge = LoRAMerge([tmp_path / "dora.safetensors"], architecture="hv")
    original = weight.clone()
    with pytest.raises(UserError, match="changes rows up to 24, and the model's has 20"):
        merge.check({"double_blocks.0.img_attn_qkv.weight": (20, width)})
    merge.check({"double_blocks.0.img_attn_qkv.weight": weight.shape})
    torch.testing.assert_close(merge("double_blocks.0.img_attn_qkv.weight", weight), torch.cat(wanted))
    assert torch.equal(weight, original)
    torch.testing.assert_close(merge.rounded("double_blocks.0.img_attn_qkv.weight", weight), torch.cat(wanted))
    words = ["--output", tmp_path / "out", "--target", "default", "--architecture", "hv"]
    assert "cannot be fused" in refusal("convert_lora", "--input", tmp_path / "dora.safetensors", *words)


def test_a_dora_is_not_trained_on(tmp_path):
    from argparse import Namespace

    from musubi_backend.architectures.wan.card import CARD
    from musubi_backend.lora.run_network import _attach

    save_atomic(dora("magnitude")[0], tmp_path / "dora.safetensors")
    with pytest.raises(UserError, match=r"is a DoRA .*--base_weights"):
        _attach(Namespace(network_module=None, network_weights=str(tmp_path / "dora.safetensors")), CARD, torch.nn.Module(), 0)


def test_biases_tables_and_whole_weights(tmp_path, merged, run_tool, capsys):
    up, down = factors()
    body, bias, new = f"diffusion_model.{NAME}", torch.randn(ROWS), torch.randn(1, 2, 4)
    table = torch.randn(1, 6, 4)
    state = {f"{body}.lora_A.weight": down, f"{body}.lora_B.weight": up, f"{body}.lora_B.bias": bias, f"{body}.alpha": torch.tensor(-6.0)}
    save_atomic({**state, "diffusion_model.blocks.0.diff_m": table}, tmp_path / "a.safetensors")
    before = model()
    wanted = {**before, f"{NAME}.weight": before[f"{NAME}.weight"] - 2 * up @ down, f"{NAME}.bias": before[f"{NAME}.bias"] - 2 * bias,
              "blocks.0.modulation": before["blocks.0.modulation"] + table}  # fmt: skip
    torch.testing.assert_close(merged(tmp_path / "a.safetensors"), wanted)
    for target in ("other", "default"):
        words = ["--output", tmp_path / f"{target}.safetensors", "--target", target]
        run_tool("convert_lora", "--input", tmp_path / "a.safetensors", *words)
        torch.testing.assert_close(merged(tmp_path / f"{target}.safetensors"), wanted)
    assert "diffusion_model.blocks.0.modulation.diff" in load(tmp_path / "other.safetensors")
    run_tool("combine_lora", "--lora_weight", tmp_path / "a.safetensors", "--output", tmp_path / "c.safetensors")
    assert "exact: nothing was lost" in capsys.readouterr().out
    torch.testing.assert_close(merged(tmp_path / "c.safetensors"), wanted)
    save_atomic({"diffusion_model.head.modulation.set_weight": new}, tmp_path / "set.safetensors")
    assert torch.equal(merged(tmp_path / "set.safetensors")["head.modulation"], new)


def test_what_is_left_out_is_named(tmp_path, merged, run_tool, capsys):
    up, down = factors()
    body = f"diffusion_model.{NAME}"
    state = {f"{body}.lora_A.weight": down, f"{body}.lora_B.weight": up, "lora_te_text_model_x.lora_up.weight": torch.ones(2, 2)}
    save_atomic({**state, "diffusion_model.head.head.diff_b": torch.ones(4), "odd.tensor": torch.ones(1)}, tmp_path / "a.safetensors")
    run_tool("combine_lora", "--lora_weight", tmp_path / "a.safetensors", "--output", tmp_path / "c.safetensors")
    said = capsys.readouterr()
    assert "lora_te_text_model_x.lora_up.weight" in said.err and "odd.tensor" in said.err
    assert "nothing was lost" not in said.out and "2 tensors left out" in said.out
    merged(tmp_path / "a.safetensors")
    said = capsys.readouterr().err
    assert all(name in said for name in ("lora_te_text_model_x.lora_up.weight", "odd.tensor", "head_head.diff_b"))


def test_two_meanings_of_one_layer_are_rejected(tmp_path, refusal):
    up, down = factors()
    body = f"diffusion_model.{NAME}"
    state = {f"{body}.lora_A.weight": down, f"{body}.lora_B.weight": up}
    save_atomic({**state, f"{body}.diff": up @ down}, tmp_path / "a.safetensors")
    assert "is a LoRA and has diff too" in refusal("combine_lora", "--lora_weight", tmp_path / "a.safetensors", "--output", tmp_path / "c")
    save_atomic({**state, f"{body}.magnitude": torch.ones(5)}, tmp_path / "b.safetensors")
    assert "magnitudes [5, 1] do not fit" in refusal(
        "combine_lora", "--lora_weight", tmp_path / "b.safetensors", "--output", tmp_path / "c"
    )


def test_tables_are_extracted(tmp_path, merged, run_tool, capsys):
    save_atomic(model(), tmp_path / "base.safetensors")
    tuned = {name: tensor + 1 if name.endswith(("modulation", "q.bias", "q.weight")) else tensor for name, tensor in model().items()}
    save_atomic(tuned, tmp_path / "tuned.safetensors")
    words = ["--base", tmp_path / "base.safetensors", "--tuned", tmp_path / "tuned.safetensors", "--rank", "1"]
    run_tool("extract_lora", *words, "--output", tmp_path / "plain.safetensors", "--save_precision", "fp32")
    assert "3 changed biases, norms and tables are left out" in capsys.readouterr().err
    run_tool("extract_lora", *words, "--biases", "--output", tmp_path / "all.safetensors", "--save_precision", "fp32")
    torch.testing.assert_close(merged(tmp_path / "all.safetensors"), tuned, rtol=1e-4, atol=1e-4)


def test_layers_of_another_width_are_left_out_where_that_is_asked(tmp_path, merged, refusal, capsys):
    up, down = factors()
    good, wide = f"diffusion_model.{NAME}", "diffusion_model.blocks.0.modulation"
    state = {f"{good}.lora_A.weight": down, f"{good}.lora_B.weight": up, f"{wide}.diff": torch.ones(1, 6, 8)}
    save_atomic(state, tmp_path / "a.safetensors")
    save_atomic(model(), tmp_path / "base.safetensors")
    words = ["merge_lora", "--dit", tmp_path / "base.safetensors", "--save_merged_model", tmp_path / "o", "--lora_weight"]
    assert "blocks_0_modulation" in refusal(*words, tmp_path / "a.safetensors")
    found = merged(tmp_path / "a.safetensors", "--skip_mismatched")
    assert "left out: lora_unet_blocks_0_modulation" in capsys.readouterr().err
    torch.testing.assert_close(found[f"{NAME}.weight"], model()[f"{NAME}.weight"] + up @ down)
    assert torch.equal(found["blocks.0.modulation"], model()["blocks.0.modulation"])
    save_atomic({f"{wide}.diff": torch.ones(1, 6, 8)}, tmp_path / "b.safetensors")
    assert "every layer has another size" in refusal(*words, tmp_path / "b.safetensors", "--skip_mismatched")
