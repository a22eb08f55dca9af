"""Training, generating and caching on a simulated GPU: no tensor on another device, no dtype that CUDA rejects, no copy overtaken, and no
wait in a step but for the loss. Values are made up there, so nothing is said about them; that is `tests/contract --device cuda`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.optimizers.registry import ENTRIES

ROOT = Path(__file__).resolve().parents[2]
Gpu = Callable[..., Any]
LOSS = "read: training/loop.py:Loop._checked"
VALIDATION = "read: training/validation.py:Validation.measure"
ONCE = "copy to device: layers/rope.py:rope_tables"
"""Made for the first batch of each size."""
SCALER = "read: training/loop.py:Loop._update"
"""torch's gradient scaler looks whether a gradient overflowed; for files in fp16."""

minutes = pytest.mark.skipif("not config.getoption('--full', False)", reason="whole runs take minutes: with --full (and tests/contract)")
TRAININGS = [
    ("wan", "fp8 scaled swap pinned offload", {LOSS, ONCE}),
    ("wan22", "lora per expert offload", {LOSS, ONCE, SCALER}),
    ("hv", "fp8 swap pinned offload", {LOSS, ONCE}),
    ("fp", "fp8 scaled swap pinned offload", {LOSS, ONCE}),
]


def test_a_step_waits_once_for_its_losses_and_a_training_leaves_nothing_pinned(gpu: Gpu) -> None:
    one_layer = ("--network_args", "exclude_patterns=['.*']", "include_patterns=['.*blocks.0.self_attn.q']")
    report = gpu("training", "wan", "checkpointing offload", "--max_train_steps", "1", "--gradient_accumulation_steps", "2", *one_layer)
    waits = report["waits in steps"]
    assert report["races"] == [] and set(waits) - {ONCE} == {LOSS} and waits[LOSS] == 1
    assert report["copied"]["to device, pinned"] > 0 and report["still pinned"] == 0


@minutes
@pytest.mark.slow
@pytest.mark.parametrize(("family", "setting", "waits"), TRAININGS, ids=[family for family, *_ in TRAININGS])
def test_a_training_with_less_memory_waits_for_nothing_more(family: str, setting: str, waits: set[str], gpu: Gpu) -> None:
    report = gpu("training", family, setting, "--max_train_steps", "1", "--validation_split", "0.3")
    assert report["races"] == [] and set(report["waits in steps"]) <= waits
    assert LOSS in report["waits in steps"]
    assert report["validating"] == {VALIDATION: 2}, "once for all items, before and after training"


@minutes
@pytest.mark.slow
def test_experts_are_quantised_on_the_gpu(gpu: Gpu) -> None:
    report = gpu("training", "wan22", "fp8 scaled offload inactive", "--max_train_steps", "1")
    assert report["quantised on"] == ["cuda"]


@minutes
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["wan22-auto-offload_inactive-straight", "hv-auto-swap_pinned-straight", "fp-auto-fp8_scaled_swap_pinned-straight"]
)
def test_generating_runs(name: str, gpu: Gpu) -> None:
    assert gpu("cell", name)["races"] == []


LATENTS = ("wan_cache_latents --vae_cache_cpu", "cache_latents", "fpack_cache_latents")
TEXTS = ("wan_cache_text_encoder_outputs", "cache_text_encoder_outputs")


@minutes
@pytest.mark.slow
@pytest.mark.parametrize("words", [*LATENTS, *(f"{tool} --offload_text_encoder" for tool in TEXTS)])
def test_latents_and_texts_are_cached(words: str, gpu: Gpu) -> None:
    assert gpu("caching", *words.split())["races"] == []


FEW = ("--network_args", "exclude_patterns=['.*']", "include_patterns=['.*blocks.0.*']")
ALL = ("--network_args",)
AGAIN = ("--gradient_checkpointing",)
OPTIONS = {
    "adamw, two micro-steps": (*FEW, "--optimizer_type", "adamw", "--max_grad_norm", "1", "--gradient_accumulation_steps", "2"),
    "chosen noise levels": (*FEW, "--weighting_scheme", "logit_normal", "--timestep_sampling", "sigma", "--min_timestep", "100"),
    "int8": (*FEW, *AGAIN, "--w8a8", "int8"),
    "fp8": (*FEW, *AGAIN, "--w8a8", "fp8"),
    "swap without pinned memory": (*FEW, *AGAIN, "--blocks_to_swap", "1"),
    "compiled": (*FEW, *AGAIN, "--compile", "--compile_backend", "eager"),
    "kept attention": (*FEW, *AGAIN, "--keep_attention_blocks", "2"),
    "by block": (*FEW, *AGAIN, "--accumulate_by_block", "--gradient_accumulation_steps", "2", "--blocks_to_swap", "1"),
    "dropout, LoRA+": ("--network_dropout", "0.1", *ALL, "loraplus_lr_ratio=4", "rank_dropout=0.2", "--optimizer_type", "adamw"),
    "loha": ("--network_module", "networks.loha"),
    "lokr": ("--network_module", "networks.lokr"),
    "limited norms": (*FEW, "--scale_weight_norms", "1.0", "--optimizer_type", "adamw"),
    "a dry step": (*FEW, "--dry_step"),
    "chosen for 12 GB": (*FEW, "--vram", "12"),
    "a state": (*FEW, "--optimizer_type", "adamw", "--save_state", "--save_every_n_steps", "1"),
}
REMEMBERED = "copy to host: training/state.py:_copied"
"""Now and then, for stepping down: by the clock."""
NORMS = "read: lora/network.py:LoRANetwork.apply_max_norm"
"""Once, for all modules."""


@minutes
@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan", "wan22", "hv", "fp"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_users_choose_waits_for_nothing_more(family: str, options: tuple[str, ...], gpu: Gpu) -> None:
    report = gpu("training", family, "plain", "--max_train_steps", "1", *options)
    assert report["races"] == []
    assert set(report["waits in steps"]) <= {
        LOSS,
        ONCE,
        REMEMBERED,
        *([SCALER] if family == "wan22" else []),
        *([NORMS] if "1.0" in options else []),
    }


@minutes
@pytest.mark.slow
def test_the_time_of_a_dry_step_is_that_of_one(gpu: Gpu) -> None:
    """The device has done the first step when the second one's time begins, and the second when it ends."""
    report = gpu("training", "wan", "plain", "--dry_step", *FEW)
    assert report["for the whole device"]["training/dry_step.py:run"] == 2


RESUMED = [("wan", "fp8 scaled swap pinned offload", "adamw"), ("wan22", "lora per expert offload", "adamw"),
           ("wan", "checkpointing", "AdaptiveHinaAdamW")]  # fmt: skip


@minutes
@pytest.mark.slow
@pytest.mark.parametrize(("family", "setting", "optimizer"), RESUMED, ids=[f"{family} {name}" for family, _, name in RESUMED])
def test_a_resumed_training_waits_for_nothing_more(family: str, setting: str, optimizer: str, gpu: Gpu) -> None:
    report = gpu("resumed", family, setting, "--optimizer_type", optimizer, *FEW)
    assert report["races"] == [] and set(report["waits in steps"]) <= {LOSS, ONCE, SCALER}


@minutes
@pytest.mark.slow
def test_a_step_without_memory_is_done_again_with_less(gpu: Gpu) -> None:
    report = gpu("stepped_down", "wan", "checkpointing offload", "--optimizer_type", "adamw", *FEW)
    assert report["races"] == [] and report["tried"] == 3 and report["still pinned"] == 0


@minutes
@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES if entry.ours or entry.where.startswith("torch.")])
def test_an_optimizer_stays_on_the_device_and_waits_for_nothing(name: str, gpu: Gpu) -> None:
    report = gpu("optimizer", name)
    assert report["races"] == [] and report["waits"] == []


SIZES_FROM_VALUES = "captioning"
"""transformers takes sizes from what is in its tensors, and there is nothing in them here."""
LOOKS_AT_JOBS = "compare_checkpoints"
"""One of its nodes looks for a training among the jobs, and tools that run in this process are none."""


@minutes
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({path.stem for path in (ROOT / "workflows").glob("*.json")} - {SIZES_FROM_VALUES}))
def test_a_shipped_template_runs(name: str, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With its own values, on small models; caches and LoRAs of one home, so that those of generating find what a training made."""
    home = tmp_path_factory.getbasetemp() / "simulated home"
    home.mkdir(exist_ok=True)
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}))
    if (name.startswith("lora_") or name == LOOKS_AT_JOBS) and not any((home / "models").rglob("my_lora*")):
        gpu("template", "wan_lora_training", str(home))
    report = gpu("template", name, str(home))
    assert report["wrong"] == (name == LOOKS_AT_JOBS) and report["tools"]
    assert all(one["code"] == 0 and one["races"] == [] for one in report["tools"])


@minutes
@pytest.mark.slow
def test_8_bit_products_wait_for_nothing_more(gpu: Gpu) -> None:
    report = gpu("training", "wan", "checkpointing offload", "--max_train_steps", "1", "--w8a8", "int8")
    assert report["races"] == [] and set(report["waits in steps"]) <= {LOSS, ONCE}


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_8_bit_products_get_the_layout_that_cuda_multiplies(name: str, gpu: Gpu) -> None:
    assert gpu("eight_bit_product", name)["waits in steps"] == {}


def test_several_gpus_train_together_where_pytorch_lacks_nccl(gpu: Gpu) -> None:
    assert gpu("a_group_without_nccl") == ["cuda:0", True, [[1.0, 1.0]]]


def test_refused_pinning_is_said_once_and_copies_go_through_ordinary_memory(gpu: Gpu) -> None:
    report = gpu("refused_pinning")
    assert report["races"] == [] and report["said"].count("pins no more system RAM") == 1
    assert "to device, pinned" not in report["copied"]


def test_pinned_memory_is_as_large_as_what_it_holds(gpu: Gpu) -> None:
    assert gpu("pinned_sizes") == [5, 9]


def test_the_benchmark_of_gpus_checks_and_measures_there(gpu: Gpu) -> None:
    report = gpu("benchmark")
    assert report["races"] == [] and not [row["error"] for row in report["rows"] if "error" in row]
    assert [row.get("right") for row in report["rows"]] == ["yes", "yes", None] and report["rows"][2]["peak_reserved"] > 0
    assert ["triton" in line for line in report["left out"]] == [True]
    assert report["waits"] == []
