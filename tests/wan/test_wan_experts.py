"""Wan2.2's two experts: the boundary, the hand-over, guidance and LoRAs of each, in training and in generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.architectures import protocol
from musubi_backend.demo.models import write_models
from musubi_backend.inference.requests import build_request
from musubi_backend.inference.settings import GenerateSettings
from musubi_backend.layers.experts import HIGH, LOW, Experts, experts_of
from musubi_backend.lora.run_network import build
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.options.parser import parse
from musubi_backend.training.settings import TimestepSampling
from musubi_backend.training.timesteps import noise_levels
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

CPU = torch.device("cpu")
Generate = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("wan22"), kind="wan22")


@pytest.fixture
def generate(models: dict[str, Path], tmp_path: Path) -> Generate:
    """Latents of one request with given texts; keyword arguments replace or leave out (None) models."""
    texts = {}

    def run(*flags: object, **changed: Path | None) -> torch.Tensor:
        files = {name: path for name, path in {**models, **changed}.items() if path is not None}
        words = [word for name, path in files.items() for word in (f"--{name}", path)]
        sampling = ["--video_size", 32, 32, "--video_length", 5, "--infer_steps", 4, "--seed", 1, "--device", "cpu"]
        request = ["--task", "t2v-A14B", "--prompt", "a cat", "--save_path", tmp_path]
        args = parse("wan_generate_video", [str(word) for word in (*request, *words, *sampling, *flags)])
        wan = protocol.load("wan").configured(vars(args))
        asked = build_request({"prompt": "a cat"}, GenerateSettings.read(args), wan)
        for number, text in enumerate(wan.texts(asked)):
            texts[text] = {"varlen_t5": torch.randn(3, 64, generator=torch.Generator().manual_seed(number))}
        transformer = wan.transformer(CPU, torch.float32)
        return wan.sample(transformer, asked, texts, {}, device=CPU)

    return run


def one_layer_lora(dit: Path, path: Path, seed: int = 2) -> Path:
    """A strong random LoRA for one layer."""
    width = read_header(dit).tensors["blocks.0.self_attn.o.weight"].shape[0]
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_blocks_0_self_attn_o"
    tensors = {f"{name}.lora_down.weight": torch.randn(2, width, generator=generator), f"{name}.alpha": torch.tensor(2.0)}
    save_atomic({**tensors, f"{name}.lora_up.weight": torch.randn(width, 2, generator=generator)}, path)
    return path


# --- generating


def test_each_expert_does_the_steps_on_its_side(generate: Generate, models: dict[str, Path]) -> None:
    """With the boundary at one end, the pair is one of its experts alone."""
    low, high = models["dit"], models["dit_high_noise"]
    only_low = generate("--guidance_scale_high_noise", 3, dit_high_noise=None, dit=low)
    assert torch.equal(generate("--timestep_boundary", 1, "--guidance_scale_high_noise", 3), only_low), "no step has all the noise"
    only_high = generate("--timestep_boundary", 0, "--guidance_scale_high_noise", 4, dit_high_noise=None, dit=high)
    assert torch.equal(generate("--timestep_boundary", 0, "--guidance_scale_high_noise", 4), only_high)
    both = generate()
    assert not torch.allclose(both, only_low, atol=1e-3)
    assert not torch.allclose(both, only_high, atol=1e-3)


def test_how_the_models_are_kept_changes_nothing(generate: Generate) -> None:
    both = generate()
    assert torch.equal(generate("--lazy_loading"), both)
    assert torch.equal(generate("--offload_inactive_dit"), both)
    assert torch.equal(generate("--force_v2_1_time_embedding"), both)
    assert torch.equal(generate("--blocks_to_swap", 1, "--lazy_loading"), both)
    assert torch.equal(generate("--fp8_scaled", "--offload_inactive_dit"), generate("--fp8_scaled"))


def test_guidance_and_loras_belong_to_their_expert(generate: Generate, models: dict[str, Path], tmp_path: Path) -> None:
    both = generate()
    assert torch.equal(generate("--guidance_scale", 3, "--guidance_scale_high_noise", 4), both), "the defaults of t2v-A14B"
    for flag in ("--guidance_scale", "--guidance_scale_high_noise"):
        assert not torch.allclose(generate(flag, 8), both, atol=1e-4)
    lora = one_layer_lora(models["dit"], tmp_path / "lora.safetensors")
    on_low, on_high = generate("--lora_weight", lora), generate("--lora_weight_high_noise", lora)
    assert not torch.allclose(on_low, both, atol=1e-4)
    assert not torch.allclose(on_high, both, atol=1e-4)
    assert not torch.allclose(on_high, on_low, atol=1e-4)
    assert torch.equal(generate("--lora_weight_high_noise", lora, "--lora_multiplier_high_noise", 0), both)


@pytest.mark.parametrize(
    ("boundary", "own", "other"),
    [(0, "--guidance_scale_high_noise", "--guidance_scale"), (1, "--guidance_scale", "--guidance_scale_high_noise")],
)
def test_a_step_is_as_far_as_the_guidance_of_its_own_expert_says(generate: Generate, boundary: int, own: str, other: str) -> None:
    """One step: what it adds grows evenly with the scale, and the other expert's scale changes nothing."""

    def at(scale: float, others: float = 30.0) -> torch.Tensor:
        flags = ["--timestep_boundary", boundary, own, scale, other, others, "--infer_steps", 1]
        return generate(*flags)

    two, four, eight = at(2), at(4), at(8)
    assert float((four - two).abs().max()) > 1e-3
    torch.testing.assert_close(eight - two, 3 * (four - two), rtol=1e-3, atol=1e-4)
    assert torch.equal(at(4, 2.0), four)


def test_each_expert_has_its_own_loras_and_strengths(models: dict[str, Path], tmp_path: Path) -> None:
    """In numbers: two LoRAs of which one has a multiplier on the low-noise expert, one of another strength on the high-noise one."""
    files = [one_layer_lora(models["dit"], tmp_path / f"{number}.safetensors", number) for number in (1, 2, 3)]
    words = ["--dit", models["dit"], "--dit_high_noise", models["dit_high_noise"], "--vae", models["vae"], "--t5", models["t5"]]
    words += ["--lora_weight", *files[:2], "--lora_multiplier", 0.5, "--lora_weight_high_noise", files[2]]
    words += ["--lora_multiplier_high_noise", -0.25, "--task", "t2v-A14B", "--prompt", "x", "--save_path", tmp_path]
    pair: Any = (
        protocol.load("wan").configured(vars(parse("wan_generate_video", [str(word) for word in words]))).transformer(CPU, torch.float32)
    )
    deltas = []
    for file in files:
        name, tensors = "lora_unet_blocks_0_self_attn_o", load(file)
        deltas.append(tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"])
    for part, dit, added in (
        (LOW, models["dit"], 0.5 * deltas[0] + deltas[1]),
        (HIGH, models["dit_high_noise"], -0.25 * deltas[2]),
    ):
        found = experts_of(pair)[part].get_submodule("blocks.0.self_attn.o").weight
        torch.testing.assert_close(found, load(dit)["blocks.0.self_attn.o.weight"].float() + added)


def test_no_negative_prompt_is_needed_where_neither_expert_is_guided(models: dict[str, Path], tmp_path: Path) -> None:
    base = [
        "--task",
        "t2v-A14B",
        "--dit",
        models["dit"],
        "--vae",
        models["vae"],
        "--t5",
        models["t5"],
        "--save_path",
        tmp_path,
        "--prompt",
        "x",
    ]

    def texts(*flags: object) -> int:
        args = parse("wan_generate_video", [str(word) for word in (*base, *flags)])
        wan = protocol.load("wan").configured(vars(args))
        return len(wan.texts(build_request({"prompt": "x"}, GenerateSettings.read(args), wan)))

    assert texts("--guidance_scale", 1, "--guidance_scale_high_noise", 1) == 1
    assert texts("--guidance_scale", 1) == texts("--guidance_scale_high_noise", 1) == 2


@pytest.mark.slow
def test_the_command_says_when_the_models_change_hands(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(word) for name, path in models.items() for word in (f"--{name}", path)]
    sampling = ["--video_size", "32", "32", "--video_length", "5", "--infer_steps", "4", "--device", "cpu"]
    assert main(["wan_generate_video", "--task", "t2v-A14B", "--prompt", "a cat", "--save_path", str(tmp_path), *words, *sampling]) == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    printed = capsys.readouterr().err
    assert "Starting sampling (high noise: True). Models: 2, timestep boundary: 0.875" in printed
    assert printed.count("Switching to low noise at step") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "t2v-14B"], "--timestep_boundary is required"),
        (["--offload_inactive_dit", "--lazy_loading"], "exclude each other"),
        (["--offload_inactive_dit", "--blocks_to_swap", "1"], "exclude each other"),
        (["--lora_multiplier_high_noise", "1"], "has 1 value for 0 --lora_weight_high_noise"),
    ],
)
def test_what_does_not_go_together_is_rejected(
    flags: list[str], message: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word) for name, path in models.items() for word in (f"--{name}", path)]
    request = ["--task", "t2v-A14B", "--prompt", "x", "--save_path", str(tmp_path), "--video_length", "1", "--device", "cpu"]
    assert main(["wan_generate_video", *request, *words, *flags]) == 1
    assert message in capsys.readouterr().err


def test_merged_experts_become_a_file_each(models: dict[str, Path], tmp_path: Path) -> None:
    lora = one_layer_lora(models["dit"], tmp_path / "lora.safetensors")
    words = [word for name in ("dit", "dit_high_noise") for word in (f"--{name}", models[name])]
    flags = [
        "--lora_weight_high_noise",
        lora,
        "--save_path",
        tmp_path,
        "--save_merged_model",
        tmp_path / "merged.safetensors",
        "--lazy_loading",
    ]
    request = ["wan_generate_video", "--task", "t2v-A14B", "--device", "cpu", *words, *flags]
    assert main([str(word) for word in request]) == 0
    changed = "blocks.0.self_attn.o.weight"
    low, high = load(tmp_path / "merged-low.safetensors"), load(tmp_path / "merged-high.safetensors")
    assert torch.equal(low[changed], load(models["dit"])[changed])
    before = load(models["dit_high_noise"])
    assert [name for name in before if not torch.equal(before[name], high[name])] == [changed]


# --- training


@pytest.mark.parametrize("mode", ["uniform", "shift", "sigma"])
def test_a_batch_lies_on_the_side_of_its_first_item(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 16, 1, 2, 2)
    sampling = TimestepSampling(timestep_sampling=mode, discrete_flow_shift=3.0)
    sides = []
    for _ in range(40):
        _, timesteps = noise_levels(sampling, shape, generator, boundary=0.6)
        high = timesteps / 1000 >= 0.6
        assert high.all() or not high.any()
        assert len(timesteps.unique()) > 1
        sides.append(bool(high[0]))
    assert 5 < sum(sides) < 38
    free = [noise_levels(sampling, shape, generator)[1] / 1000 >= 0.6 for _ in range(20)]
    assert any(bool(one.any()) and not bool(one.all()) for one in free)


@pytest.fixture
def training(models: dict[str, Path], tmp_path: Path, build_caches: Path) -> Callable[..., Path]:
    """Trains both experts; returns the output folder."""

    def run(out: str, *flags: object, steps: int = 8) -> Path:
        settings = {"task": "t2v-A14B", "dit": models["dit"], "dit_high_noise": models["dit_high_noise"], "dataset_config": build_caches}
        settings |= {"output_dir": tmp_path / out, "output_name": "cat", "network_module": "networks.lora_wan", "optimizer_type": "adamw"}
        settings |= {"learning_rate": "1e-2", "max_train_steps": steps, "seed": 3, "mixed_precision": "no", "network_dim": 4}
        settings |= {"timestep_sampling": "shift", "discrete_flow_shift": 8}
        words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        assert main(["wan_train_network", "--sdpa", *words, *map(str, flags)]) == 0
        return tmp_path / out

    return run


@pytest.fixture(scope="module")
def build_caches(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    from musubi_backend.demo.clips import write_clips

    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "clips", count=2, size=(32, 32), frames=5)
    config = folder / "dataset.toml"
    lines = ["[general]", "resolution = [32, 32]", 'caption_extension = ".txt"', "[[datasets]]", f"video_directory = '{folder / 'clips'}'"]
    config.write_text("\n".join([*lines, f"cache_directory = '{folder / 'cache'}'", "target_frames = [5]"]), encoding="utf-8")
    for tool, part in (("wan_cache_latents", "vae"), ("wan_cache_text_encoder_outputs", "t5")):
        assert main([tool, "--dataset_config", str(config), f"--{part}", str(models[part]), "--device", "cpu"]) == 0
    return config


def test_one_lora_serves_both_or_each_has_its_own(training: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    shared = training("shared")
    assert [path.name for path in shared.glob("*.safetensors")] == ["cat.safetensors"]
    own = training("own", "--lora_per_expert", "--save_every_n_steps", 4, "--save_last_n_steps", 4)
    names = {"cat-high.safetensors", "cat-low.safetensors"}
    assert {path.name for path in own.glob("*.safetensors")} == {
        *names, "cat-step00000004-high.safetensors", "cat-step00000004-low.safetensors",
        "cat-step00000008-high.safetensors", "cat-step00000008-low.safetensors",
    }  # fmt: skip
    assert "cat-high.safetensors is the LoRA of the high noise expert" in capsys.readouterr().err
    files = {name: load(own / name) for name in (*names, "../shared/cat.safetensors")}
    keys = [set(tensors) for tensors in files.values()]
    assert keys[0] == keys[1] == keys[2], "all are ordinary LoRA files"
    ups = [torch.cat([t.flatten() for n, t in tensors.items() if "lora_up" in n]) for tensors in files.values()]
    assert all(bool(up.any()) for up in ups), "both were trained"
    assert not torch.allclose(ups[0], ups[1])
    metadata = read_header(own / "cat-high.safetensors").metadata
    assert (metadata["ss_expert"], metadata["modelspec.title"]) == ("high", "cat (high noise)")


def test_a_range_that_leaves_one_lora_untrained_is_rejected(
    models: dict[str, Path], build_caches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--task", "t2v-A14B", "--dit", models["dit"], "--dit_high_noise", models["dit_high_noise"], "--dataset_config", build_caches]
    flags = ["--network_module", "networks.lora_wan", "--optimizer_type", "adamw", "--sdpa", "--output_dir", tmp_path, "--output_name", "x"]
    words = ["wan_train_network", *data, *flags, "--lora_per_expert", "--max_timestep", 800]
    assert main([str(word) for word in words]) == 1
    assert "boundary, 875, so the high noise expert would learn nothing" in capsys.readouterr().err


def test_resuming_two_loras_gives_the_same_bits(training: Callable[..., Path]) -> None:
    whole = training("whole", "--lora_per_expert", steps=6)
    part = training("part", "--lora_per_expert", "--save_state", steps=3)
    again = training("again", "--lora_per_expert", "--resume", part / "cat-state", steps=6)
    for name in ("cat-high.safetensors", "cat-low.safetensors"):
        first, second = load(whole / name), load(again / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_where_the_resting_expert_lies_changes_nothing(training: Callable[..., Path]) -> None:
    plain = load(training("plain", steps=4) / "cat.safetensors")
    for out, flags in {"offloaded": ["--offload_inactive_dit"], "swapped": ["--blocks_to_swap", 1]}.items():
        other = load(training(out, "--gradient_checkpointing", *flags, steps=4) / "cat.safetensors")
        assert all(torch.allclose(plain[key], other[key], atol=1e-6) for key in plain)


def test_a_shared_lora_acts_in_both_experts(models: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--network_module", "networks.lora_wan", "--optimizer_type", "adamw", "--sdpa", "--output_dir", tmp_path, "--output_name", "x"]
    data = ["--dit", models["dit"], "--dit_high_noise", models["dit_high_noise"], "--task", "t2v-A14B", "--dataset_config", models["dit"]]
    args = parse("wan_train_network", [str(word) for word in (*data, *flags)])
    wan: Any = protocol.load("wan").configured(vars(args))
    pair = wan.transformer(CPU, torch.float32)
    assert isinstance(pair, Experts)
    network = build(NetworkSettings.read(args), wan.card, pair, 0, CPU)
    text = [torch.randn(3, 64, generator=torch.Generator().manual_seed(0))]
    noisy = torch.randn(1, 16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    before = {name: pair(noisy, torch.tensor([time]), text) for name, time in ((HIGH, 990.0), (LOW, 100.0))}
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for name, time in ((HIGH, 990.0), (LOW, 100.0)):
        out = pair(noisy, torch.tensor([time]), text)
        assert not torch.allclose(out, before[name], atol=1e-3)
        network.zero_grad()
        out.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
