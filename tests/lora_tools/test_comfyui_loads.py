"""ComfyUI's own loader takes every file that our tools write, with no unmatched key and every patch changing its weight."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_examples import LAYOUTS, deltas, write_layout
from musubi_backend.lora.merging import LoRAMerge
from musubi_backend.weights.safetensors_file import load, save_atomic

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
SCRIPT = Path(__file__).with_name("comfyui_loads.py")


def converted(run_tool, golden: Path, folder: Path) -> list[tuple[str, Path]]:
    """(tiny model, file): every recorded LoRA in both layouts, as far as ComfyUI has the model."""
    files = []
    for case, model in (("wan_t2v", "wan"), ("wan_loha", "wan"), ("wan_lokr", "wan"), ("wan_lokr_full", "wan"), ("wan_i2v", "wan_i2v")):
        for source, target in (("default", "other"), ("other", "default")):
            path = folder / f"{case}.{target}.safetensors"
            run_tool("convert_lora", "--input", golden / f"{case}.{source}.safetensors", "--output", path, "--target", target)
            files.append((model, path))
    for case in ("hv", "framepack"):  # musubi-tuner's own names of HunyuanVideo's mlp are none that ComfyUI knows
        path = folder / f"{case}.comfy.safetensors"
        words = ["--input", golden / f"{case}.default.safetensors", "--output", path, "--target", "other", "--architecture", "hv"]
        run_tool("convert_lora", *words)
        files.append(("hv", path))
    return files


def from_other_programs(run_tool, golden: Path, folder: Path) -> list[tuple[str, Path]]:
    """(tiny model, file): a LoRA in every layout, converted to ComfyUI's."""
    layers = {
        "wan": {name: f"blocks.{name}" for name in ("0.self_attn.q", "1.cross_attn.o", "1.ffn.0", "0.ffn.2")},
        "hv": {name: name for name in ("double_blocks.1.img_attn_qkv", "double_blocks.0.txt_mlp.fc2", "single_blocks.1.linear1")},
    }
    sizes = {"ffn.0": (64, 32), "ffn.2": (32, 64), "qkv": (96, 32), "fc2": (32, 128), "linear1": (224, 32)}
    files = []
    for model, names in layers.items():
        shapes = {path: next((size for end, size in sizes.items() if path.endswith(end)), (32, 32)) for path in names.values()}
        for layout in LAYOUTS:
            source, path = folder / f"{model} {layout}.in.safetensors", folder / f"{model} {layout}.safetensors"
            write_layout(source, layout, model, {path: torch.randn(rows, 2) @ torch.randn(2, c) for path, (rows, c) in shapes.items()})
            run_tool("convert_lora", "--input", source, "--output", path, "--target", "other", "--architecture", model)
            files.append((model, path))
    return files


def made(run_tool, golden: Path, folder: Path) -> list[tuple[str, Path]]:
    """(tiny model, file): combined, cut to a lower rank, averaged, extracted."""
    lora = golden / "wan_t2v.default.safetensors"
    paths = [folder / f"{name}.safetensors" for name in ("combined", "cut", "averaged", "extracted")]
    run_tool("combine_lora", "--lora_weight", lora, golden / "wan_t2v.other.safetensors", "--output", paths[0])
    run_tool("combine_lora", "--lora_weight", lora, golden / "wan_lokr.default.safetensors", "--rank", "3", "--output", paths[1])
    run_tool("lora_post_hoc_ema", lora, lora, "--output_file", paths[2])
    base = {f"blocks.0.{name}": torch.randn(32, 32) for name in ("self_attn.q.weight", "cross_attn.k.weight")}
    base |= {"blocks.0.self_attn.q.bias": torch.randn(32), "blocks.0.self_attn.norm_q.weight": torch.randn(32)}
    save_atomic(base, folder / "base")
    save_atomic({name: tensor + torch.randn_like(tensor) for name, tensor in base.items()}, folder / "tuned")
    run_tool("extract_lora", "--base", folder / "base", "--tuned", folder / "tuned", "--rank", "4", "--biases", "--output", paths[3])
    return [("wan", path) for path in paths]


def asked(python: Path, comfyui: Path, words: list[str]) -> dict[str, Any]:
    """What ComfyUI says about files, each MODEL[@STRENGTH]=FILE."""
    done = subprocess.run([str(python), str(SCRIPT), *words], cwd=comfyui, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(words)
    return results


def test_no_key_is_unmatched(shared, run_tool, tmp_path, comfyui_path, comfyui_python):
    golden = shared / "golden" / "convert"
    torch.manual_seed(0)
    files = [file for make in (converted, from_other_programs, made) for file in make(run_tool, golden, tmp_path)]
    for path, result in asked(comfyui_python, comfyui_path, [f"{model}={path}" for model, path in files]).items():
        state = load(path)
        layers = len({name.rpartition(".lora_")[0] or name for name in state if ".lora_A" in name}) or len(deltas(state)) or None
        assert result["unmatched"] == [], path
        assert result["moved"] == result["loaded"] > 0, path
        assert layers is None or result["loaded"] >= layers, path


def odd_files() -> dict[str, dict[str, torch.Tensor]]:
    """What is more than a plain LoRA of a linear, by name: DoRA of each kind, differences of weights, biases and tables, alphas."""
    q, ffn, patch = "lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_ffn_0", "lora_unet_patch_embedding"
    lora = {f"{q}.lora_down.weight": torch.randn(3, 32), f"{q}.lora_up.weight": torch.randn(32, 3)}
    loha = {f"{ffn}.hada_w{n}_{half}": torch.randn(*shape) for n in (1, 2) for half, shape in (("a", (64, 2)), ("b", (2, 32)))}
    lokr = {f"{ffn}.lokr_w1": torch.randn(4, 4), f"{ffn}.lokr_w2_a": torch.randn(16, 2), f"{ffn}.lokr_w2_b": torch.randn(2, 8)}
    convolution = {f"{patch}.lora_down.weight": torch.randn(2, 16, 1, 2, 2), f"{patch}.lora_up.weight": torch.randn(32, 2, 1, 1, 1)}
    low = {name: torch.tensor(value) for name, value in ((f"{q}.alpha", -1.5), (f"{ffn}.alpha", 0.5), (f"{patch}.alpha", 0.5))}
    in_32 = torch.rand(1, 32) + 0.5
    return {
        "alpha below 0": {**lora, f"{q}.alpha": low[f"{q}.alpha"]},
        "DoRA": {**lora, f"{q}.alpha": torch.tensor(1.5), f"{q}.dora_scale": in_32},
        "DoRA of a LoHa": {**loha, f"{ffn}.alpha": low[f"{ffn}.alpha"], f"{ffn}.dora_scale": in_32},
        "DoRA of a LoKr": {**lokr, f"{ffn}.alpha": low[f"{ffn}.alpha"], f"{ffn}.dora_scale": in_32},
        "convolution": {**convolution, f"{patch}.alpha": low[f"{patch}.alpha"]},
        "DoRA of a convolution": {**convolution, f"{patch}.dora_scale": torch.rand(1, 16, 1, 1, 1) + 0.5},
        "lightx2v": {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(3, 32),
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(32, 3),
            "diffusion_model.blocks.0.self_attn.q.diff_b": torch.randn(32),
            "diffusion_model.blocks.0.norm3.diff": torch.randn(32),
            "diffusion_model.blocks.0.norm3.diff_b": torch.randn(32),
            "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.randn(32),
            "diffusion_model.blocks.0.diff_m": torch.randn(1, 6, 32),
            "diffusion_model.head.diff_m": torch.randn(1, 2, 32),
        },
        "bias of lora_B": {
            "base_model.model.blocks.1.ffn.0.lora_A.default.weight": torch.randn(4, 32),
            "base_model.model.blocks.1.ffn.0.lora_B.default.weight": torch.randn(64, 4),
            "base_model.model.blocks.1.ffn.0.lora_B.default.bias": torch.randn(64),
        },
    }


def test_comfyui_computes_what_we_do(run_tool, tmp_path, comfyui_path, comfyui_python):
    """The same weight with every converted file, at strength 0.5 too, as merging the file that it was made from."""
    torch.manual_seed(0)
    words, made_from = [], {}
    for name, state in odd_files().items():
        source = tmp_path / f"{name}.in.safetensors"
        save_atomic(state, source)
        for strength in (1.0, 0.5):
            path = tmp_path / f"{name} {strength}.safetensors"
            run_tool("convert_lora", "--input", source, "--output", path, "--target", "other")
            words.append(f"wan@{strength}={path}")
            made_from[str(path)] = (source, strength)
    for path, result in asked(comfyui_python, comfyui_path, words).items():
        source, strength = made_from[path]
        assert result["unmatched"] == [], path
        merge, patched = LoRAMerge([source], [strength], architecture="wan"), load(f"{path}.patched")
        names = [name.removeprefix("before.") for name in patched if name.startswith("before.")]
        assert len(names) == {"lightx2v": 7, "bias of lora_B": 2}.get(source.name.removesuffix(".in.safetensors"), 1), path
        for name in names:
            ours = merge(name.removeprefix("diffusion_model."), patched[f"before.{name}"])
            torch.testing.assert_close(patched[f"after.{name}"], ours, rtol=1e-4, atol=1e-4)
