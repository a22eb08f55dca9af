"""LoRA files of every layout are merged as musubi-tuner does it; files that do not belong are rejected."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.architectures.loading import lora_merge
from musubi_backend.architectures.settings import LoRASettings
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.geometry import GEOMETRY_KEY, WanGeometry
from musubi_backend.architectures.wan.load import load_transformer
from musubi_backend.architectures.wan.settings import WanSettings
from musubi_backend.errors import UserError
from musubi_backend.lora.merging import LoRAMerge, read_lora
from musubi_backend.options.parser import parse
from musubi_backend.weights.safetensors_file import load, save_atomic

CPU = torch.device("cpu")
GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=24, freq_dim=64)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_merging_equals_the_recorded_merge_bit_for_bit(shared, tmp_path, dtype):
    recorded = load(shared / "golden" / "merge" / f"wan_on_the_fly_{dtype}.safetensors")
    lora = tmp_path / "lora.safetensors"
    save_atomic({name.removeprefix("lora."): t for name, t in recorded.items() if name.startswith("lora.")}, lora)
    merge = LoRAMerge([lora], [0.8])
    bases = {name.removeprefix("base."): t for name, t in recorded.items() if name.startswith("base.")}
    merge.check({name: weight.shape for name, weight in bases.items()})
    assert bases
    for name, weight in bases.items():
        assert torch.equal(merge(name, weight).to(weight.dtype), recorded[f"merged.{name}"])


@pytest.fixture
def merged_output(shared, tmp_path):
    """merged_output(lora file, ...) -> (output of the recorded model with it merged, recorded input and outputs)"""
    golden = shared / "golden" / "dit"
    save_atomic(load(golden / "wan21_t2v.dit.safetensors"), tmp_path / "dit.safetensors", {GEOMETRY_KEY: GEOMETRY.to_json()})
    io = load(golden / "wan21_t2v.io.safetensors")

    def run(*files, **arguments):
        given = {"dit": str(tmp_path / "dit.safetensors"), "task": "t2v-1.3B", "lora_weight": [str(f) for f in files], **arguments}
        model = load_transformer(WanSettings.read(given), CPU, torch.float32)
        with torch.no_grad():
            return model(io["x"], io["t"], [io["context.0"], io["context.1"]]), io

    return run


LAYOUTS = ["convert/wan_t2v.default", "convert/wan_t2v.other", "convert/wan_t2v.other_prefix_transformer"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_merges_to_the_recorded_output(shared, merged_output, layout):
    out, io = merged_output(shared / "golden" / f"{layout}.safetensors", lora_multiplier=[1.0])
    assert (out - io["out.lora.fp32_attn"]).norm() / out.norm() < 1e-5


def test_multipliers_and_patterns(shared, merged_output):
    lora = shared / "golden" / "convert" / "wan_t2v.default.safetensors"
    plain, io = merged_output()
    assert (plain - io["out.fp32_weights.fp32_attn"]).norm() / plain.norm() < 1e-5
    nothing, _ = merged_output(lora, lora_multiplier=[0.0])
    assert torch.equal(nothing, plain)
    back, _ = merged_output(lora, lora, lora_multiplier=[0.5, -0.5])
    assert torch.allclose(back, plain, atol=1e-4)
    once, _ = merged_output(lora)
    first, _ = merged_output(lora, include_patterns=["blocks_0_"])
    second, _ = merged_output(lora, exclude_patterns=["blocks_0_"])
    for one, other in ((first, second), (first, once), (second, once), (once, plain)):
        assert not torch.allclose(one, other, atol=1e-4)
    with pytest.raises(UserError, match="leave nothing"):
        merged_output(lora, include_patterns=["double_blocks"])
    with pytest.raises(UserError, match="no regular expression"):
        merged_output(lora, include_patterns=["("])


def plain(path, layer, value):
    """A LoRA of one 4x4 layer whose delta is `value` everywhere, with a bias of it too."""
    parts = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.full((4, 1), value), "diff_b": torch.full((4,), value)}
    save_atomic({f"lora_unet_{layer}.{part}": tensor for part, tensor in parts.items()}, path)
    return path


def test_multipliers_and_patterns_go_by_the_order_of_the_files(tmp_path):
    """Missing ones are 1 and everything; a pattern matches where it is found, so that the beginning of a longer name does too."""
    files = [plain(tmp_path / f"{value:g}", layer, value) for value, layer in
             ((1.0, "blocks_1_ffn_0"), (10.0, "blocks_1_ffn_0"), (100.0, "blocks_11_ffn_0"))]  # fmt: skip
    zero = torch.zeros(4, 4)

    def added(layer, **more):
        merge = LoRAMerge(files, **more, architecture="wan")
        both = merge(f"{layer}.weight", zero)[0, 0].item(), merge(f"{layer}.bias", torch.zeros(4))[0].item()
        assert both[0] == both[1] == merge.rounded(f"{layer}.weight", zero.clone())[0, 0].item()
        return both[0]

    assert added("blocks.1.ffn.0", multipliers=[-0.5]) == 9.5 and added("blocks.11.ffn.0", multipliers=[-0.5]) == 100
    assert added("blocks.1.ffn.0", multipliers=[2, 3, 4]) == 32 and added("blocks.11.ffn.0", multipliers=[2, 3, 4]) == 400
    assert added("blocks.1.ffn.0", include_patterns=[None, "_up|_down|alpha|diff", "blocks_1"]) == 11
    assert added("blocks.11.ffn.0", include_patterns=[None, None, "blocks_1"]) == 100, "found in the longer name too"
    with pytest.raises(UserError, match="100: the include and exclude patterns leave nothing"):
        added("blocks.11.ffn.0", include_patterns=[None, None, "blocks_1_"])
    with pytest.raises(UserError, match="10: the include and exclude patterns leave nothing"):
        added("blocks.1.ffn.0", exclude_patterns=["blocks_2", "ffn"])
    merge = LoRAMerge(files, architecture="wan")
    assert merge.touches("blocks.11.ffn.0.weight") and merge.touches("blocks.1.ffn.0.bias") and not merge.touches("blocks.1.ffn.2.weight")


def test_base_weights_have_their_own_multipliers(tmp_path):
    files = [str(plain(tmp_path / f"{value:g}", "blocks_1_ffn_0", value)) for value in (1.0, 10.0)]
    for multipliers, wanted in (((3.0,), 13), ((3.0, 2.0), 23), (None, 11)):
        merge = lora_merge(LoRASettings(base_weights=tuple(files), base_weights_multiplier=multipliers), CARD)
        assert merge is not None and merge("blocks.1.ffn.0.weight", torch.zeros(4, 4))[0, 0] == wanted
    assert lora_merge(LoRASettings(lora_weight=()), CARD) is None


@pytest.mark.parametrize(
    ("weight", "factors", "wanted"),
    [("float32", "bfloat16", "float32"), ("float16", "float32", "float32"), ("bfloat16", "bfloat16", "bfloat16"),
     ("float8_e4m3fn", "bfloat16", "float16"), ("bfloat16", "float8_e5m2", "float32")],
)  # fmt: skip
def test_results_have_the_wider_dtype_and_weights_stay_as_they_were(weight, factors, wanted, tmp_path):
    state = {name: tensor.to(getattr(torch, factors)) for name, tensor in load(plain(tmp_path / "a", "blocks_1_ffn_0", 2.0)).items()}
    save_atomic(state, tmp_path / "b")
    before = torch.ones(4, 4).to(getattr(torch, weight))
    result = LoRAMerge([tmp_path / "b"], [0.5], architecture="wan")("blocks.1.ffn.0.weight", before)
    assert result.dtype == getattr(torch, wanted) and (result.float() == 2).all() and (before.float() == 1).all()


def test_a_bias_of_another_size_is_rejected(tmp_path):
    merge = LoRAMerge([plain(tmp_path / "a", "blocks_1_ffn_0", 1.0)], architecture="wan")
    with pytest.raises(UserError, match=r"blocks_1_ffn_0 of .* changes a bias of 4, and the model's is \[5\]"):
        merge.check({"blocks.1.ffn.0.weight": (4, 4), "blocks.1.ffn.0.bias": (5,)})
    with pytest.raises(UserError, match="changes a matrix of 4x4"):
        merge.check({"blocks.1.ffn.0.weight": (2, 8)})


def test_base_weights_are_merged_for_training(shared, merged_output):
    lora = str(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    ours, _ = merged_output(base_weights=[lora], base_weights_multiplier=[0.7])
    theirs, _ = merged_output(lora, lora_multiplier=[0.7])
    assert torch.equal(ours, theirs)


def test_leftover_keys_are_a_warning(shared, tmp_path, merged_output, caplog):
    state = load(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    state["lora_unet_blocks_7_ffn_0.lora_down.weight"] = torch.ones(4, 32)
    save_atomic(state, tmp_path / "more.safetensors")
    merged_output(tmp_path / "more.safetensors")
    assert "not all LoRA keys are used" in caplog.text
    assert "lora_unet_blocks_7_ffn_0.lora_down.weight" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dit/hv_t2v.lora", r"LoRA \(HunyuanVideo or FLUX.*fits no layer of this model"),
        ("dit/wan21_t2v.dit", "is a Wan transformer .*a LoRA file is expected"),
        ("cache/wan_t2v_video/clip_0_wan_te", "is a text encoder cache"),
    ],
)
def test_files_that_do_not_belong_are_rejected(shared, merged_output, name, message):
    with pytest.raises(UserError, match=message):
        merged_output(shared / "golden" / f"{name}.safetensors")


def test_a_lora_for_other_widths_is_rejected(shared, tmp_path, merged_output):
    state = load(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    wide = {name: torch.cat([t, t], dim=-1) if "down" in name else t for name, t in state.items()}
    save_atomic(wide, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match="was trained on another model"):
        merged_output(tmp_path / "wide.safetensors")


@pytest.mark.parametrize("tool", ["wan_generate_video", "wan_train_network"])
def test_layers_of_another_width_are_left_out_where_that_is_asked(tool, shared, tmp_path, merged_output, caplog):
    """One option of both: of --lora_weight and of --base_weights. The output is that of the LoRA without the layer."""
    state = load(shared / "golden" / "convert" / "wan_t2v.default.safetensors")
    name = "lora_unet_blocks_0_ffn_0"
    other = {key: tensor for key, tensor in state.items() if not key.startswith(name)}
    save_atomic(other, tmp_path / "other.safetensors")
    down = state[f"{name}.lora_down.weight"]
    save_atomic({**state, f"{name}.lora_down.weight": torch.cat([down, down], 1)}, tmp_path / "wide.safetensors")
    wanted, io = merged_output(tmp_path / "other.safetensors")
    flag = "--lora_weight" if tool == "wan_generate_video" else "--base_weights"
    words = ["--task", "t2v-1.3B", "--dit", str(tmp_path / "dit.safetensors"), flag, str(tmp_path / "wide.safetensors")]
    here = str(tmp_path / "dit.safetensors")  # files that the parser wants to see, and nothing reads
    words += (
        ["--prompt", "a cat", "--save_path", str(tmp_path), "--vae", here, "--t5", here]
        if tool == "wan_generate_video"
        else ["--dataset_config", here, "--output_dir", str(tmp_path), "--output_name", "x", "--network_module", "networks.lora_wan",
              "--optimizer_type", "adamw", "--sdpa"]
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"{name}.* changes a matrix of 64x64"):
        load_transformer(WanSettings.read(parse(tool, words)), CPU, torch.float32)
    model = load_transformer(WanSettings.read(parse(tool, [*words, "--skip_mismatched"])), CPU, torch.float32)
    assert f"left out: {name}" in caplog.text
    with torch.no_grad():
        assert torch.equal(model(io["x"], io["t"], [io["context.0"], io["context.1"]]), wanted)


def test_diffusers_names_of_wan_are_understood(shared, tmp_path):
    names = {"attn1.to_out.0": "self_attn_o", "attn2.to_q": "cross_attn_q", "ffn.net.0.proj": "ffn_0", "ffn.net.2": "ffn_2"}
    state = {f"transformer.blocks.1.{theirs}.lora_{part}.weight": torch.ones(2, 2) for theirs in names for part in "AB"}
    save_atomic(state, tmp_path / "d.safetensors")
    expected = {f"lora_unet_blocks_1_{ours}.lora_{part}.weight" for ours in names.values() for part in ("down", "up")}
    expected |= {f"lora_unet_blocks_1_{ours}.alpha" for ours in names.values()}
    assert read_lora(tmp_path / "d.safetensors", "wan").keys() == expected
