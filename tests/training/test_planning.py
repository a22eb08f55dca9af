"""What a plan says a training needs, against the live bytes of a real step of it on the CPU."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract_models
import numpy as np
import pytest
import torch
from contract_models import FAMILIES
from musubi_backend import architectures, events, job
from musubi_backend.__main__ import main
from musubi_backend.architectures import protocol
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.cache.forms import FRAMES, HEIGHT, WIDTH
from musubi_backend.demo.models import write_models
from musubi_backend.demo.umt5 import umt5
from musubi_backend.device import planned_for
from musubi_backend.errors import UserError
from musubi_backend.layers.blocks import run_block
from musubi_backend.layers.linear import Linear
from musubi_backend.layers.rope import rope_tables
from musubi_backend.memory import estimate, gpus, live_bytes
from musubi_backend.memory.few_blocks import FewBlocks
from musubi_backend.memory.live_bytes import LiveBytes
from musubi_backend.memory.w8a8 import FORMATS, W8A8Linear
from musubi_backend.options.parser import parse
from musubi_backend.training import dry_step, planned_batch, planned_samples, planning, vram
from musubi_backend.training.loop import Loop
from musubi_backend.weights.geometry import GEOMETRY_KEY
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from PIL import Image
from recorded_training import prepared
from torch import Tensor, nn

CPU = torch.device("cpu")
_JOINT: dict[str, Any] = {
    "dim": 96, "num_heads": 3, "mlp_dim": 384, "num_double_layers": 5, "num_single_layers": 6, "text_dim": 64, "pooled_dim": 32,
    "num_refiner_layers": 1, "rope_widths": (4, 14, 14),
}  # fmt: skip
MODELS: dict[str, Callable[[], tuple[nn.Module, str]]] = {
    "wan": lambda: _made(WanTransformer, WanGeometry(96, 512, 3, 7, text_dim=64, text_len=32, freq_dim=32)),
    "hv": lambda: _made(HunyuanTransformer, HunyuanGeometry(**_JOINT)),
    "fp": lambda: _made(FramePackTransformer, FramePackGeometry(**_JOINT, image_dim=48)),
}
SETTINGS = {
    "plain": (), "checkpointing": ("--gradient_checkpointing",), "swap": ("--blocks_to_swap", "2", "--gradient_checkpointing"),
    "attention": ("--keep_attention_blocks", "3", "--gradient_checkpointing"),
    "fp8": ("--fp8_base", "--gradient_checkpointing"),
    "by block": ("--accumulate_by_block", "--gradient_accumulation_steps", "3", "--blocks_to_swap", "2", "--gradient_checkpointing"),
    "w8a8": ("--w8a8", "int8", "--gradient_checkpointing"),
}  # fmt: skip


def _made(kind: Any, geometry: Any) -> tuple[nn.Module, str]:
    return kind(geometry), geometry.to_json()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], list[str]]]:
    """(family, setting) -> the command line of its training. Models are float32, as the CPU has no fast bfloat16."""
    files: dict[str, tuple[Path, Path]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract_models, "SIDE", 128)
        for name, make in MODELS.items():
            folder = tmp_path_factory.mktemp(name)
            model, sizes = make()
            state = {key: torch.full(tensor.shape, 0.01) for key, tensor in model.state_dict().items()}
            save_atomic(state, folder / "dit.safetensors", {GEOMETRY_KEY: sizes})
            files[name] = folder / "dit.safetensors", contract_models.write_caches(FAMILIES[name], folder)

    def line(name: str, setting: str) -> list[str]:
        dit, data = files[name]
        return [
            "--dit", str(dit), *FAMILIES[name].flags, "--dataset_config", str(data), "--output_dir", str(dit.parent), "--output_name", "x",
            "--network_dim", "8", "--network_module", architectures.cards()[name].network_module, "--optimizer_type", "AdamW",
            "--seed", "1", "--mixed_precision", "auto", "--sdpa", *SETTINGS[setting],
        ]  # fmt: skip

    yield line


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    from musubi_backend.inference.video_file import write_mp4

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.txt").write_text("a clip")
    return write_mp4(tmp_path / "clips" / "one.mp4", np.zeros((5, 64, 64, 3), np.uint8), fps=16)


def uncached(folder: Path, clip: Path) -> Path:
    """A dataset file of a clip without caches."""
    data = folder / "uncached.toml"
    data.write_text(
        f"[general]\nresolution = [64, 64]\nbatch_size = 2\ncaption_extension = '.txt'\n[[datasets]]\ntarget_frames = [5]\n"
        f"video_directory = '{clip.parent.as_posix()}'\ncache_directory = '{(folder / 'cache').as_posix()}'\n",
        encoding="utf-8",
    )
    return data


def tool(name: str) -> str:
    return "hv_train_network" if name == "hv" else FAMILIES[name].tool("train_network")


def counted(loop: Loop) -> int:
    """Bytes of the second step at its worst, as if what waits in system RAM were not there."""
    run: Any = loop.run
    batch = loop._load(run.dataset.batches(0, 1)[0])
    loop.forward_and_backward([batch] * loop.at_once, 0)
    run.choice.optimizer.step()
    run.choice.optimizer.zero_grad(set_to_none=True)
    streams = {id(block.stream): block.stream for part in run.transformer.block_lists() for block in part if getattr(block, "stream", None)}
    packed = [one.memory for stream in streams.values() for one in stream.packed]
    waiting = {memory.untyped_storage()._cdata for memory in packed}
    buffers = [*packed, *(buffer for stream in streams.values() for buffer in stream.buffers)]
    state = [value for one in run.choice.optimizer.state.values() for value in one.values() if isinstance(value, Tensor)]
    there = [
        *run.transformer.parameters(), *run.transformer.buffers(), *run.network.parameters(), *run.network.buffers(), *state, *buffers,
        *(one for value in batch.values() for one in (value if isinstance(value, list) else [value]) if isinstance(one, Tensor)),
    ]  # fmt: skip
    sizes = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in there}
    rope_tables.cache_clear()  # they live as long as a training
    count = LiveBytes(CPU, there)
    with count:
        loop.forward_and_backward([batch] * loop.at_once, loop.at_once)
    return sum(size for key, size in sizes.items() if key not in waiting) + count.peak


def planned(loop: Loop, device: torch.device = CPU) -> estimate.Estimate:
    run = loop.run
    return planning.Planner(planned_batch.largest_batch(run.dataset), run.dtype, device).estimate(run.settings, run.architecture)


CASES = (("wan", "attention"), ("hv", "by block"))
"""`--full` for all families and settings, which take half a minute."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_plan_is_within_three_percent_of_what_lives_in_a_step:
        every = [(name, setting) for name in MODELS for setting in SETTINGS]
        metafunc.parametrize(("name", "setting"), every if metafunc.config.getoption("--full", False) else CASES)


def test_a_plan_is_within_three_percent_of_what_lives_in_a_step(words: Callable[[str, str], list[str]], name: str, setting: str) -> None:
    loop = prepared(name, tool(name), words(name, setting))
    plan, real = planned(loop), counted(loop)
    step = next(phase for phase in plan.phases if phase.name == estimate.STEP)
    print(f"{name} {setting}: planned {step.total:,} of {real:,} bytes, {step.total / real - 1:+.1%}")
    assert abs(step.total / real - 1) < 0.03, (step, real)


def test_inputs_that_wait_in_system_ram_are_not_on_the_device(words: Callable[[str, str], list[str]]) -> None:
    """What is kept for backward is in one place or the other, of all blocks."""
    loop = prepared("wan", tool("wan"), words("wan", "checkpointing"))
    settings, gpu = loop.run.settings, torch.device("cuda")
    planner = planning.Planner(planned_batch.largest_batch(loop.run.dataset), loop.run.dtype, gpu)
    there, away = (
        planner.estimate(
            replace(settings, memory=replace(settings.memory, gradient_checkpointing_cpu_offload=offload)), loop.run.architecture
        )
        for offload in (False, True)
    )
    kept, left = (one.phases[0].parts[estimate.KEPT] for one in (there, away))
    assert away.ram > 0 == there.ram
    assert left + away.ram == pytest.approx(kept, rel=0.01)


def test_as_a_block_runs_again_its_input_and_the_one_before_are_back() -> None:
    """Which are all of three blocks' that are still needed, so it takes as much as where nothing waits in system RAM."""

    def middle(offload: bool) -> int:
        x = torch.empty(4, 1024, device="meta", requires_grad=True)
        blocks = nn.ModuleList(nn.Linear(1024, 1024, device="meta").requires_grad_(False) for _ in range(3))
        count = LiveBytes(torch.device("meta"), [x, *blocks.parameters()])
        few = FewBlocks([blocks], count, offload)
        with count:
            y = x * 1
            for number, block in enumerate(blocks):
                y = run_block(block, y, recompute=number < 2, offload=offload)
            y.sum().backward()
        few.result(0)
        return next(one.peak for one in few.segments if one.backward and one.block == 1)

    assert middle(True) == middle(False) > 0


def test_operations_that_were_worked_out_before_are_counted_as_those_that_were_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[Any, ...]:
        weight, scale = (nn.Parameter(torch.empty(64, 64, device="meta")) for _ in range(2))
        count = LiveBytes(torch.device("meta"), [weight, scale])
        with count:
            x = torch.empty(2, 10, 64, device="meta", requires_grad=True)
            y = nn.functional.gelu(nn.functional.layer_norm(x, (64,)) @ weight).mul_(2).to(torch.bfloat16).float()
            heads = y.view(2, 10, 4, 16).transpose(1, 2)
            heads = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(2, 10, 64)
            several = torch.cat([heads, heads * 2, heads * 2.0]).split(2)
            turned = several[0].detach().clone().transpose_(1, 2).add_(1)
            (several[1].sum() + torch.softmax(several[2], -1).mean()).backward()
            made = [x.grad, weight.grad, turned, turned.long() * 2, turned.long() * 2.0]
        forms = [(one.shape, one.stride(), one.dtype) for one in made]
        return count.live, count.peak, count.operations, forms

    monkeypatch.setattr(live_bytes, "_RESULTS", {})
    first, again = step(), step()
    known = len(live_bytes._RESULTS)
    assert step() == again and len(live_bytes._RESULTS) == known, "nothing is worked out a second time"
    monkeypatch.setattr(live_bytes, "_made", lambda func, args, kwargs: func(*args, **kwargs))
    assert first == again == step()


def test_sampling_is_planned_within_three_percent(words: Callable[[str, str], list[str]]) -> None:
    """Blocks without gradient keep nothing, however many there are."""
    loop = prepared("wan", tool("wan"), words("wan", "checkpointing"))
    run: Any = loop.run
    batch = {name: value[:1] for name, value in loop._load(run.dataset.batches(0, 1)[0]).items() if value is not None}
    frames, height, width = batch["latents"].shape[2:]
    batch["t5"] = [text.new_zeros(32, text.shape[1]) for text in batch["t5"]]  # as long as is planned for
    there = [*run.transformer.parameters(), *run.transformer.buffers(), *run.network.parameters(), *run.network.buffers(), *batch["t5"]]
    rope_tables.cache_clear()
    run.network.eval()
    noisy, timesteps = batch["latents"].float(), torch.tensor([500.0])
    count = LiveBytes(CPU, [*there, batch["latents"], noisy, timesteps])
    with count, torch.no_grad():
        run.architecture.predict(run.transformer, noisy, timesteps, batch)
    planner = planning.Planner(planned_batch.largest_batch(run.dataset), run.dtype, CPU)
    model = planning._built(run.settings, run.architecture, run.dtype)
    found = planner._sampled(run.architecture, model, {FRAMES: frames, HEIGHT: height, WIDTH: width})
    print(f"planned {found:,} of {count.peak:,} bytes")
    assert found == pytest.approx(count.peak, rel=0.03)


def phases(peak: int, swappable: int = 9) -> estimate.Estimate:
    return estimate.Estimate((estimate.Phase(estimate.STEP, {estimate.WEIGHTS: peak}),), 0, 10**15, 0, 10, swappable)


def simple(values: Any) -> estimate.Estimate:
    """A training of 100 GB whose savers take 40, 20, 2 for each of at most 9 blocks, and 15; batches by block cost 30."""
    if values["blocks_to_swap"] and values["blocks_to_swap"] > 9:
        raise UserError("no more blocks")
    saved = 40 * bool(values["gradient_checkpointing"]) + 20 * bool(values["fp8_base"]) + 2 * (values["blocks_to_swap"] or 0)
    saved += 15 * bool(values["gradient_checkpointing_cpu_offload"]) - 30 * bool(values.get("accumulate_by_block"))
    found = phases(10**9 * (100 - saved), 0 if values.get("offload_inactive_dit") else 9)
    decoding = estimate.Phase(
        estimate.DECODING, {estimate.VAE: 10**9 * (100 + values.get("decoding", 0) - saved - 30 * bool(values.get("vae_cache_cpu")))}
    )
    return replace(found, phases=(*found.phases, decoding))


NOTHING = {"sdpa": False, "gradient_checkpointing": False, "fp8_base": False, "fp8_scaled": False, "blocks_to_swap": None,
           "gradient_checkpointing_cpu_offload": False}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "limit", "flags"),
    [
        ({}, 100, "--sdpa"),
        ({"flash_attn": True}, 60, "--gradient_checkpointing"),
        ({}, 40, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled"),
        ({}, 35, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled --blocks_to_swap 3"),
        ({"blocks_to_swap": 0}, 25, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled --gradient_checkpointing_cpu_offload"),
        ({"blocks_to_swap": 2, "fp8_base": True}, 50, "--sdpa --gradient_checkpointing"),
        ({}, 21, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled --blocks_to_swap 2 --gradient_checkpointing_cpu_offload"),
        ({"vae_cache_cpu": False}, 60, "--sdpa --gradient_checkpointing"),
        ({"vae_cache_cpu": False, "decoding": 30}, 60, "--sdpa --gradient_checkpointing --vae_cache_cpu"),
        ({"vae_cache_cpu": False}, 40, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled"),
        ({"offload_inactive_dit": True}, 35,
         "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled --gradient_checkpointing_cpu_offload"),
        ({"offload_inactive_dit": True}, 21, "--sdpa --gradient_checkpointing --fp8_base --fp8_scaled --blocks_to_swap 2 "
         "--gradient_checkpointing_cpu_offload (without --offload_inactive_dit)"),
    ],
)  # fmt: skip
def test_the_cheapest_savers_are_chosen_and_what_was_given_stays(given: dict[str, Any], limit: int, flags: str) -> None:
    chosen = vram.choose({**NOTHING, **given}, simple, limit * 10**9)
    assert chosen.flags == flags
    taken = [f"--{name}" if value is True else f"--{name} {value}" for name, value in chosen.taken.items() if name != "sdpa"]
    assert all(any(flag in cost for cost in chosen.costs) or "without" in flags for flag in taken), "each is said with what it costs"
    assert chosen.estimate.fits(limit * 10**9)
    assert {name: chosen.values[name] for name in given.keys() - chosen.taken.keys()} == {
        name: value for name, value in given.items() if name not in chosen.taken
    }


@pytest.mark.parametrize(
    ("given", "phase", "flags"),
    [
        ({}, estimate.STEP, "--gradient_checkpointing"),
        ({"gradient_checkpointing": True, "blocks_to_swap": 2, "fp8_base": True}, estimate.STEP, "--blocks_to_swap 5"),
        ({"gradient_checkpointing": True, "blocks_to_swap": 8}, estimate.STEP, "--blocks_to_swap 9 --gradient_checkpointing_cpu_offload"),
        ({"vae_cache_cpu": False}, estimate.DECODING, "--vae_cache_cpu"),
        (
            {"gradient_checkpointing": True, "accumulate_by_block": True, "blocks_to_swap": 4},
            estimate.STEP,
            "(without --accumulate_by_block)",
        ),
        ({"vae_cache_cpu": True, "gradient_checkpointing": True}, estimate.DECODING, "--blocks_to_swap 3"),
    ],
)
def test_what_ran_out_steps_down_without_learning_otherwise(given: dict[str, Any], phase: str, flags: str) -> None:
    """The fewest that take 15 % less, swapped blocks before offloaded inputs; for a phase that decodes, its own first. No fp8."""
    found = vram.lowered({**NOTHING, **given}, simple, phase)
    assert found is not None and found.flags == flags


def test_nothing_steps_down_where_nothing_is_left() -> None:
    most = {"gradient_checkpointing": True, "blocks_to_swap": 9, "gradient_checkpointing_cpu_offload": True}
    assert vram.lowered({**NOTHING, **most}, simple, estimate.STEP) is None


@pytest.mark.parametrize(("limit", "fewest", "most"), [(39, 1, None), (22, 9, None), (45, None, 3), (54, None, 9)])
def test_counts_are_found_by_halves(limit: int, fewest: int | None, most: int | None) -> None:
    """Five plans at most for one of nine."""
    asked = []

    def plan(values: Any) -> estimate.Estimate:
        asked.append(values)
        kept = values["keep_attention_blocks"]
        return replace(phases(simple(values).phases[0].total + kept * 1_500_000_000), operations=100 - kept)

    values = {**NOTHING, "sdpa": True, "gradient_checkpointing": True, "fp8_base": True, "keep_attention_blocks": 0}
    if fewest is not None:
        found = vram._fewest(values, plan, lambda one: one.excess(limit * 10**9), 1, 9)
        assert found is not None and found[0] == {"blocks_to_swap": fewest}
    else:
        found = vram._most(values, plan, limit * 10**9)
        assert found is not None and found[0] == {"keep_attention_blocks": most}
    assert len(asked) <= 5


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"compile": True}, True), ({"compile": True, "flash_attn": True}, False), ({"flash_attn": True}, True),
        ({"gradient_checkpointing": True}, True),
    ],
)  # fmt: skip
def test_memory_that_is_left_keeps_the_attention_of_compiled_blocks_where_they_can(given: dict[str, Any], kept: bool) -> None:
    def plan(values: Any) -> estimate.Estimate:
        return replace(simple(values), operations=100 - values["keep_attention_blocks"])

    chosen = vram.choose({**NOTHING, "keep_attention_blocks": 0, **given}, plan, 60 * 10**9)
    assert ("keep_attention_blocks" in chosen.taken) is kept


def test_what_misses_by_more_than_the_margin_is_refused_and_named_with_what_would_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 4090")

    def judged(limit: int, **given: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vram, "limit_of", lambda *_: limit * 10**9)
            return vram.fitted({**NOTHING, "sdpa": True, "vram": None, **given}, simple, gpu, {}, lambda number: number)

    with pytest.raises(UserError, match=r"needs 100.0 GB of 62.0 GB: weights 100.0. It would fit with --gradient_checkpointing .60.0 GB."):
        judged(62)
    with caplog.at_level("INFO"):
        assert judged(95)["gradient_checkpointing"] is False  # within the margin: it may start
    assert "needs 100.0 GB of 95.0 GB: weights 100.0; a step takes about 10.1 s (60% of the data sheet of an RTX 4090)" in caplog.text
    with pytest.raises(UserError, match=r"needs 7.0 GB of 5.0 GB: weights 7.0. Nothing saves more: use fewer frames"):
        judged(5, vram="auto")
    with pytest.raises(UserError, match=r"needs 100.0 GB of 5.0 GB: weights 100.0. With all savers it needs 7.0 GB: use fewer frames"):
        judged(5)
    with pytest.raises(UserError, match=r"needs 17.0 GB of 5.0 GB while decoding samples: .*: use smaller or shorter samples"):
        judged(5, vram="auto", decoding=10)


def test_a_continued_training_keeps_what_was_chosen_for_its_state() -> None:
    found = vram.fitted({**NOTHING, "vram": "100"}, simple, CPU, {"fp8_base": True, "fp8_scaled": True}, lambda number: number)
    assert (found["fp8_base"], found["gradient_checkpointing"]) == (True, False)


def test_auto_leaves_some_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen goes up to the limit, and a plan may be a little low."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (11 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10**9)
    limits = [vram.limit_of(chosen, torch.device("cuda")) for chosen in (None, "auto", "10", "off")]
    assert limits == [12 * 10**9, 11.4e9, 10 * 10**9, None]


def test_what_was_measured_changes_what_is_chosen() -> None:
    """Twice what was planned of a step, which is half weights."""
    parts = {estimate.WEIGHTS: 4, estimate.KEPT: 3, estimate.WORKING: 1}
    found = replace(phases(0), phases=(estimate.Phase(estimate.STEP, parts), estimate.Phase(estimate.UPDATE, {estimate.WORKING: 9})))
    assert [phase.total for phase in dry_step.corrected(found, 2.0).phases] == [12, 9]


def test_a_step_takes_as_long_as_the_longer_of_computing_and_copying() -> None:
    speed = gpus.of_sheet("NVIDIA GeForce RTX 4090")
    assert speed is not None and gpus.of_sheet("Voodoo 2") is None and gpus.of_sheet("NVIDIA RTX A1000") is None, "no A100"
    assert gpus.of_sheet("NVIDIA GeForce RTX 4090 Laptop GPU") is None, "another chip"
    assert speed.seconds(int(speed.multiplies * 3e12), 0) == pytest.approx(3)
    assert speed.seconds(0, int(speed.copies * 2e9)) == pytest.approx(2)


def test_a_gpu_whose_speed_cannot_be_measured_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of a step's seconds ends no training."""

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    for name, answer in (("is_available", True), ("get_device_name", "Voodoo 2")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch, "randn", refused)
    assert gpus.of_device(torch.device("cuda")) is None


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_products_of_8_bits_are_counted_as_those_of_16(name: str) -> None:
    counted = []
    with torch.device("meta"):
        plain, small = Linear(64, 32), W8A8Linear(64, 32, True, FORMATS[name])
        small.weight = torch.nn.Parameter(torch.empty(32, 64, dtype=FORMATS[name]), requires_grad=False)
        for linear in (plain, small):
            with LiveBytes(torch.device("meta")) as count:
                linear.requires_grad_(False)(torch.empty(48, 64, requires_grad=True)).sum().backward()
            counted.append(count.operations)
    assert counted[0] == counted[1] > 0


@pytest.mark.slow
def test_a_trainer_chooses_what_fits_and_a_dry_step_agrees(
    words: Callable[[str, str], list[str]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is saved."""
    line = ["wan_train_network", *(word for word in words("wan", "checkpointing") if word != "--sdpa"), "--output_dir", str(tmp_path)]
    assert main([*line, "--vram", "0.013", "--dry_step"]) == 0
    said = capfd.readouterr().err
    assert "--vram 0.013: --sdpa --keep_attention_blocks 6\n" in said, "what is left is used, whoever chose checkpointing"
    assert re.search(r"needs 1[12].\d MB of 13.0 MB", said)
    assert abs(float(re.findall(r"\(([+-]\d+)%\)", said)[-1])) <= 10
    assert re.search(r"--vram 0.013, by what was measured: --sdpa --keep_attention_blocks \d; needs 1[12].\d MB of 13.0 MB", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("swapped", [(), ("--blocks_to_swap", "4")])
def test_a_dry_step_with_a_large_lora_in_bf16_agrees_too(
    swapped: tuple[str, ...], words: Callable[[str, str], list[str]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The gradients of its copies and of its factors are there together, which is more than the blocks ever make."""
    line = words("wan", "checkpointing")
    dit = Path(line[line.index("--dit") + 1])
    save_atomic({name: one.bfloat16() for name, one in load(dit).items()}, tmp_path / "dit.safetensors", read_header(dit).metadata)
    line += ["--dit", str(tmp_path / "dit.safetensors"), "--mixed_precision", "bf16", "--network_dim", "128", *swapped]
    assert main(["wan_train_network", *line, "--dry_step"]) == 0
    assert abs(float(re.findall(r"\(([+-]\d+)%\)", capfd.readouterr().err)[-1])) <= 10


def test_a_plan_that_goes_wrong_ends_no_training(
    words: Callable[[str, str], list[str]], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise NotImplementedError("no such kernel on meta")

    monkeypatch.setattr(planning.Planner, "estimate", fails)
    line = ["wan_train_network", *words("wan", "plain"), "--output_dir", str(tmp_path), "--max_train_steps", "1", "--vram", "auto"]
    assert main(line) == 0
    assert "the memory could not be planned (NotImplementedError: no such kernel on meta)" in capfd.readouterr().err
    assert list(tmp_path.glob("*.safetensors"))


def test_a_training_can_be_planned_before_anything_is_cached(
    words: Callable[[str, str], list[str]], tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a card that is not there, with the time of a step on it. Nothing is loaded, and nobody is told that it is."""
    data = uncached(tmp_path, clip)
    line = ["wan_train_network", *words("wan", "checkpointing"), "--dataset_config", str(data)]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 32 --h 32 --f 1", encoding="utf-8")
    models = write_models(tmp_path / "models")
    vae, t5 = models["vae"], models["t5"]
    line += ["--t5", str(t5), "--vae", str(vae), "--sample_prompts", str(prompts)]
    report = tmp_path / "plan.json"
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # the stdin of the tests is no runner's
    assert main(["plan_memory", "--gpu", "RTX 4090", "--output", str(report), *line]) == 0
    told = (tmp_path / events.FILE_NAME).read_text(encoding="utf-8")
    assert "found 1 video" in told and "loading" not in told and "LoRA on" not in told
    plan = json.loads(report.read_text(encoding="utf-8"))
    phases = {phase["name"]: phase["parts"] for phase in plan["phases"]}
    assert phases[estimate.PROMPTS][estimate.ENCODER] == 230_528, "what it holds in 16 bits; its file has a tokenizer too"
    parts = phases[estimate.STEP]
    assert phases[estimate.SAMPLING][estimate.WORKING] > 50_000
    assert phases[estimate.DECODING][estimate.VAE] > vae.stat().st_size / 2
    assert all(phases[name][estimate.WEIGHTS] == parts[estimate.WEIGHTS] for name in (estimate.SAMPLING, estimate.DECODING))
    assert plan["peak"] == max(phase["total"] for phase in plan["phases"])
    assert parts[estimate.WEIGHTS] == 5273856 // 2, "in 16 bits as on that card, whatever this CPU computes in"
    assert parts[estimate.DRIVER] > 10**8 and plan["seconds"] > 0
    assert plan["fits"] and "data sheet of an RTX 4090" in plan["speed"]
    assert parse("plan_memory", ["--gpu", "x", *line]).training == line


def test_a_text_encoder_is_planned_as_it_will_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on a CPU that computes in nothing else; of an offloaded one there are two layers, norms and position biases."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    file = tmp_path / "umt5.safetensors"
    tensors = umt5(64, 0)
    save_atomic(tensors, file)
    args = parse("wan_cache_text_encoder_outputs", ["--t5", str(file), "--dataset_config", str(file)])
    numbers = {name: tensor.numel() for name, tensor in tensors.items() if tensor.is_floating_point()}
    layers = [sum(count for name, count in numbers.items() if f"block.{block}." in name and tensors[name].ndim == 2) for block in range(2)]
    table = next(count for name, count in numbers.items() if name.startswith("shared"))
    biases = sum(count for name, count in numbers.items() if "relative" in name)
    for device, size in ((CPU, 4), (torch.device("cuda"), 2)):
        with planned_for(device):
            plans = [planned_samples.text_encoders(protocol.load("wan").configured({**vars(args), "offload_text_encoder": offload}))
                     for offload in (False, True)]  # fmt: skip
        assert plans[0] == size * sum(numbers.values())
        assert plans[0] - plans[1] == pytest.approx(size * (table + sum(layers) - biases - 2 * max(layers)), rel=0.02)


def test_a_plan_says_why_nothing_of_a_dataset_can_be_used(
    words: Callable[[str, str], list[str]], tmp_path: Path, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = uncached(tmp_path, clip)
    data.write_text(data.read_text(encoding="utf-8").replace("target_frames = [5]", "target_frames = [81]"), encoding="utf-8")
    assert main(["plan_memory", "wan_train_network", *words("wan", "checkpointing"), "--dataset_config", str(data)]) == 1
    said = capfd.readouterr().err
    assert re.search(r"no item of .* can be used\. .*clip", said), said


@pytest.mark.parametrize(
    ("engine", "vram", "side", "changed"),
    [
        ("builtin", "6 GB", 0, {"gradient_checkpointing": False, "blocks_to_swap": None, "vram": "6"}),
        ("musubi-tuner", "6 GB", 0, {"gradient_checkpointing": False, "blocks_to_swap": None}),
        ("builtin", "off", 1024, {"blocks_to_swap": 2, "vram": "off"}),
    ],
)
def test_the_node_fills_in_what_fits_and_shows_the_parts(
    words: Callable[[str, str], list[str]], part: Any, tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, engine: str, vram: str,
    side: int, changed: dict[str, Any],
) -> None:  # fmt: skip
    """6 GB are more than enough, so that nothing has to save memory any more; large samples (of `side` pixels) are phases of their own. The
    tool runs in this process. Our trainer is told the memory and chooses again when it starts, so that a training goes on with what it
    began with; musubi-tuner is told what to do."""

    async def run_tool(host: Any, name: str, arguments: list[str], **_: Any) -> None:
        assert main([name, *arguments]) == 0

    monkeypatch.setattr(part("nodes.memory_optimizer"), "run_tool", run_tool)
    (tmp_path / "home").mkdir()
    settings = {"interpreter": sys.executable, "engine": engine, "musubi_tuner": {"path": str(tmp_path), "python": sys.executable}}
    (tmp_path / "home" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    host = part("headless.terminal").TerminalHost(tmp_path / "home", screen=part("headless.terminal").Screen(io.StringIO()))
    config = {"network_dim": 8, "sdpa": True, "mixed_precision": "auto", "max_train_steps": 5, "gradient_checkpointing": True}
    coders = {name: str(file) for name, file in write_models(tmp_path / "models").items() if name in ("vae", "t5")}
    models = {"architecture": "wan", "task": "t2v-1.3B", "dit": words("wan", "plain")[1], **coders}
    prompt = {"prompt": "a cat", "width": side, "height": side, "frame_count": 9, "sample_steps": 2}
    sampling = {"settings": {"sample_every_n_steps": 2}, "prompts": [prompt]} if side else None
    dataset = {"toml": str(uncached(tmp_path, clip)), "datasets": []}
    node = part("nodes.memory_optimizer").MemoryOptimizer()
    given = {"models": models, "dataset": dataset, "lora_config": {**config, "blocks_to_swap": 2}, "vram": vram}
    result = asyncio.run(node.run(host, **given, sampling=sampling, optimizer=None))
    chosen, report, chart = result.values
    assert chosen == {**config, **changed}
    assert re.match(r"needs \d.* while decoding samples: .*VAE " if side else "needs 0.7 GB of 6.0 GB: driver and libraries 0.7", report)
    with Image.open(chart) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(100_000) or []}
    assert {(0x48, 0x78, 0xA8), (0x99, 0x99, 0x99)} <= colours, "a bar of weights and one of the driver"


def test_what_was_filled_in_stays_where_the_trainers_own_widget_is_off(part: Any) -> None:
    trainer = part("nodes.catalog").BY_NAME["HunyuanVideoLoRATrainer"]()
    models = {"architecture": "hv", "task": None, "dit": "model.safetensors"}
    given = {**{entry.name: entry.default for entry in trainer.spec.inputs}, "models": models, "lora_config": {"fp8_llm": True}}
    values = trainer.values({**given, "optimizer": {}, "sampling": None})
    assert values["fp8_llm"] is True and values["guidance_scale"] == trainer.spec.input("guidance_scale").default
