"""The LoRA nodes on real files and with the real tools: what they find, what they write, what they reject."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_examples import deltas, layers_of, write_layout
from musubi_backend.weights.safetensors_file import load, save_atomic


@pytest.fixture
def host(part: Any, tmp_path: Path, backend_python: str) -> Any:
    """A terminal host with a home of its own."""
    home = tmp_path / "our ホーム"
    home.mkdir()
    text = json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []})
    (home / "config.json").write_text(text, encoding="utf-8")
    terminal = part("headless.terminal")
    return terminal.TerminalHost(home)


def run(part: Any, host: Any, name: str, **inputs: Any) -> Any:
    node = getattr(part("nodes.lora_tools"), name)()
    return asyncio.run(node.run(host, **part("nodes.checks").prepared(node, host, inputs)))


def training(folder: Path, name: str, count: int) -> None:
    """A run folder with `count` checkpoints by epoch and the last one, all of the same size, numbers 1, 2, ..."""
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        state = {"lora_unet_blocks_0_ffn_0.lora_down.weight": torch.full((2, 4), float(number))}
        stem = f"{name}-{number:06d}" if number < count else name
        save_atomic(state, folder / f"{stem}.safetensors", {"ss_epoch": str(number)})
        os.utime(folder / f"{stem}.safetensors", (1, 1))


def test_checkpoints_are_found_by_output_name_job_folder_or_files(part, host):
    find = part("nodes.checkpoints").find
    training(host.home / "runs" / "cat-0123456789abcdef", "cat", 4)
    by_name = find(host, "cat")
    assert [checkpoint.label for checkpoint in by_name] == ["1", "2", "3", "last"]
    assert find(host, "", str(host.home / "runs" / "cat-0123456789abcdef")) == by_name
    assert find(host, "runs/cat-0123456789abcdef") == by_name
    listed = "runs/cat-0123456789abcdef/cat-000003.safetensors\nruns/cat-0123456789abcdef/cat-000001.safetensors"
    assert [checkpoint.number for checkpoint in find(host, listed)] == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "connect a trainer's job"), ("/etc", "outside the folders"), ("nothing", "does not exist"), ("demo", "no numbered checkpoints")],
)
def test_checkpoints_that_are_not_there(part, host, text, message):
    (host.home / "demo").mkdir()
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=message):
        part("nodes.checkpoints").find(host, text)


def test_presets_choose_strength_and_range(part, host):
    training(host.home / "runs" / "cat-0123456789abcdef", "cat", 30)
    result = run(part, host, "LoRAPostHocEMA", checkpoints="cat", preset="beta: against overfitting", output_name="even")
    assert result.values[0] == str(Path("musubi_tuner") / "even.safetensors")
    assert "11 checkpoints: cat-000015.safetensors to cat-000025.safetensors" in result.text
    average = 15.0
    for number in range(16, 26):
        average = 0.8 * average + 0.2 * number
    assert load(result.values[1])["lora_unet_blocks_0_ffn_0.lora_down.weight"][0, 0].item() == pytest.approx(average, rel=1e-5)
    image = result.shown[0]
    assert image.suffix == ".png" and image.read_bytes().startswith(b"\x89PNG") and result.values[3] == str(image)


def test_several_widths_are_files_of_their_own(part, host):
    training(host.home / "runs" / "cat-0123456789abcdef", "cat", 5)
    settings = {"checkpoints": "cat", "preset": "as set below", "method": "sigma_rel", "sigma_rel": 0.2, "more_sigma_rel": "0.1, 0.25"}
    result = run(part, host, "LoRAPostHocEMA", **settings, output_name="wide")
    folder = Path(result.values[1]).parent
    assert {path.name for path in folder.iterdir()} == {f"wide-sigma{width}.safetensors" for width in ("0.1", "0.2", "0.25")}
    assert result.values[0].endswith("wide-sigma0.2.safetensors")


def test_lora_ema_settings_are_checked_before_anything_runs(part, host):
    training(host.home / "runs" / "cat-0123456789abcdef", "cat", 5)
    check = part("nodes.checks").check
    node = part("nodes.lora_tools").LoRAPostHocEMA()
    for settings, message in (
        ({"output_name": "../x"}, "file name"),
        ({"more_sigma_rel": "0.1, wide"}, "not a list of numbers"),
        ({"more_sigma_rel": "0.5"}, "out of range"),
        ({"checkpoints": "/etc"}, "outside the folders"),
        ({"sigma_rel": 0.5}, "above the maximum"),
    ):
        assert message in str(check(node, host, settings)), settings
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="leave 1 of 5 checkpoints"):
        run(part, host, "LoRAPostHocEMA", checkpoints="cat", preset="as set below", first=0.95)


def test_conversion_reports_what_it_found(part, host):
    layers = layers_of("wan")
    host.loras_dir().mkdir(parents=True, exist_ok=True)
    write_layout(host.loras_dir() / "other.safetensors", "diffusers", "wan", layers)
    result = run(part, host, "LoRAFormatConverter", lora="other.safetensors", target="default")
    assert result.values[0] == str(Path("musubi_tuner") / "other_musubi.safetensors")
    assert "detected: diffusers; Wan, diffusers' names; LoRA" in result.values[3] and "left: nothing" in result.values[3]
    assert deltas(load(result.values[1])).keys() == {"lora_unet_" + path.replace(".", "_") for path in layers}


@pytest.mark.slow
def test_loras_merge_into_one_and_into_a_model(part, host):
    layers = layers_of("wan")
    host.loras_dir().mkdir(parents=True, exist_ok=True)
    for name, layout in (("a", "musubi"), ("b", "comfy")):
        write_layout(host.loras_dir() / f"{name}.safetensors", layout, "wan", layers)
    chosen = {"lora_1": "a.safetensors", "multiplier_1": 0.5, "lora_2": "b.safetensors"}
    one = run(part, host, "LoRAMerger", model="none", output_name="both", **chosen)
    assert "nothing was lost" in one.values[2]
    for path, delta in layers.items():
        assert torch.allclose(deltas(load(one.values[1]))["lora_unet_" + path.replace(".", "_")], 1.5 * delta, atol=1e-4)
    models = host.home / "models" / "diffusion_models" / "tiny"
    models.mkdir(parents=True)
    base = {f"{path}.weight": torch.zeros_like(delta) for path, delta in layers.items()}
    save_atomic(base, models / "base.safetensors")
    into = run(part, host, "LoRAMerger", model=str(Path("tiny") / "base.safetensors"), output_name="merged", **chosen)
    assert into.values[0] == str(Path("tiny") / "merged.safetensors") and "3 of 3 tensors changed" in into.values[2]
    merged = load(into.values[1])
    assert all(torch.allclose(merged[f"{path}.weight"], 1.5 * delta, atol=1e-4) for path, delta in layers.items())
    extracted = run(part, host, "LoRAExtractor", base=str(Path("tiny") / "base.safetensors"), tuned=into.values[0], rank=4)
    assert "extracted 3 of 3 layers" in extracted.values[3] and "0.00% of the change was lost" in extracted.values[3]


@pytest.mark.slow
def test_no_tool_replaces_a_file_that_is_there(part, host):
    models, loras = host.home / "models" / "diffusion_models", host.loras_dir()
    models.mkdir(parents=True)
    loras.mkdir(parents=True, exist_ok=True)
    base = models / "base.safetensors"
    save_atomic({f"{path}.weight": torch.zeros_like(delta) for path, delta in layers_of("wan").items()}, base)
    before = base.read_bytes()
    write_layout(loras / "a.safetensors", "musubi", "wan", layers_of("wan"))
    names = {"output_name": "one"}
    first = run(part, host, "LoRAFormatConverter", lora="a.safetensors", **names)
    kept = Path(first.values[1]).read_bytes()
    second = run(part, host, "LoRAFormatConverter", lora="a.safetensors", target="default", **names)
    assert Path(first.values[1]).name == "one.safetensors" and Path(first.values[1]).read_bytes() == kept
    assert Path(second.values[1]).name.startswith("one-") and second.files == (Path(second.values[1]),)
    assert "one.safetensors is another file, or in use, and was left as it is" in second.text and second.values[0] in second.values[1]
    again = run(part, host, "LoRAFormatConverter", lora="a.safetensors", **names)
    assert again.values[1] == first.values[1] and "left as it is" not in again.text, "the same again has the same name"
    merged = run(part, host, "LoRAMerger", model="base.safetensors", lora_1="a.safetensors", output_name="base")
    assert base.read_bytes() == before and merged.values[0].startswith("base-") and Path(merged.values[1]).is_file()
    extracted = run(part, host, "LoRAExtractor", base="base.safetensors", tuned=merged.values[0], rank=4, **names)
    assert Path(extracted.values[1]).name not in {"one.safetensors", Path(second.values[1]).name}
    combined = run(part, host, "LoRAMerger", model="none", lora_1="a.safetensors", multiplier_1=0.5, **names)
    assert Path(combined.values[1]).name.startswith("one-") and Path(first.values[1]).read_bytes() == kept
    training(host.home / "runs" / "cat-0123456789abcdef", "cat", 3)
    averaged = run(part, host, "LoRAPostHocEMA", checkpoints="cat", **names)
    assert Path(averaged.values[1]).name.startswith("one-") and averaged.values[1] in averaged.values[4]
    assert not [path for folder in (models, Path(first.values[1]).parent) for path in folder.glob(".*")], "nothing is left next to them"


def test_merging_nothing_is_rejected(part, host):
    error = part("backend.musubi_backend.errors").UserError
    models = host.home / "models" / "diffusion_models"
    models.mkdir(parents=True)
    save_atomic({"blocks.0.ffn.0.weight": torch.zeros(32, 8)}, models / "base.safetensors")
    host.loras_dir().mkdir(parents=True, exist_ok=True)
    write_layout(host.loras_dir() / "a.safetensors", "musubi", "wan", layers_of("wan"))
    with pytest.raises(error, match="choose at least one LoRA"):
        run(part, host, "LoRAMerger", model="base.safetensors")
    with pytest.raises(error, match="rank has no effect for merging into a transformer"):
        run(part, host, "LoRAMerger", model="base.safetensors", lora_1="a.safetensors", rank=8)


def test_a_hunyuan_video_lora_is_handed_to_comfyui_with_names_it_knows(part, host, shared):
    run_folder = host.home / "runs" / "dog-0123456789abcdef"
    run_folder.mkdir(parents=True)
    recorded = load(shared / "golden" / "convert" / "hv.default.safetensors")
    save_atomic(recorded, run_folder / "dog.safetensors")
    trained = part("nodes.runs").Run(run_folder, "dog")
    trainers = part("nodes.catalog").BY_NAME
    converted = asyncio.run(trainers["HunyuanVideoLoRATrainer"]().for_comfyui(host, trained.lora))
    assert "diffusion_model.double_blocks.0.img_mlp.fc1.lora_A.weight" in load(converted)
    stamp = converted.stat().st_mtime_ns
    assert asyncio.run(trainers["HunyuanVideoLoRATrainer"]().for_comfyui(host, trained.lora)).stat().st_mtime_ns == stamp
    assert asyncio.run(trainers["WanLoRATrainer"]().for_comfyui(host, trained.lora)) == trained.lora
