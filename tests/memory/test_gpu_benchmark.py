"""The benchmark of GPUs, with its smallest shapes on the CPU: what it says is right, whole at any time, and wrong where a step is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.memory import streaming

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import gpu, gpu_checks, gpu_measure, gpu_plan
from benchmarks.gpu_checks import BITS, CHECKS, COMPILED, ROUNDING, Check, Checking, check_devices, judged
from benchmarks.gpu_models import IMAGE, LONG, MODELS, SMALL, SMALLEST, Setting
from benchmarks.gpu_musubi import Musubi
from benchmarks.gpu_results import Clock, Results

CPU = gpu.pick_device("cpu")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path, {"device": "CPU"})


@pytest.fixture
def battery(results: Results, tmp_path: Path) -> gpu.Battery:
    return gpu.Battery(CPU, results, gpu_plan.Plans(CPU, tmp_path), small=True)


def _checking(results: Results) -> Checking:
    return Checking(results, SMALLEST, CPU, gpu.torch.float32)


def test_every_way_of_saving_memory_gives_the_gradients_of_the_plain_step(results: Results) -> None:
    checking = _checking(results)
    for one in (*CHECKS, *COMPILED):
        checking.check(one, SMALL[0], Clock(600))  # the others: tests/contract
    assert {row["right"] for row in results.checks} == {"yes"}, results.checks
    assert len({(row["model"], row["setting"]) for row in results.checks}) == 16
    eight_bits = [row for row in results.checks if row["setting"] in ("fp8 scaled", "w8a8 int8", "w8a8 fp8")]
    assert len(eight_bits) == 3 and all(0 < row["distance"] < 0.2 for row in eight_bits)
    assert sum("needs triton" in line for line in results.left_out) == 6


def test_the_cpu_checks_a_device_with_the_same_weights(results: Results) -> None:
    check_devices(results, SMALL[:1], SMALLEST, CPU)
    assert [row["right"] for row in results.checks] == ["yes"] and results.checks[0]["distance"] > 0


def _zeros(buffer: Any) -> None:
    buffer.zero_()


def test_a_wrong_step_is_called_wrong(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming._Transfers, "_copy", lambda self, memory, buffer, done: _zeros(buffer))
    for minutes in (600, -1):
        _checking(results).check(Check(Setting(blocks_to_swap=1), BITS), SMALL[0], Clock(minutes))
    kept = json.loads((results.folder / "gpu.json").read_text(encoding="utf-8"))
    assert [row["right"] for row in kept["checks"]] == ["NO"] and kept["left_out"] == ["small Wan 64x64x5, swap 1: no time"]
    assert "| right |" in (results.folder / "gpu.md").read_text(encoding="utf-8")


def test_bits_are_compared_only_where_the_plain_step_has_the_same_ones_each_time(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def moving(trained: Any, size: Any) -> gpu_checks.Gradients:
        calls.append(1)
        return {name: gpu.torch.tensor(1 + 1e-3 * len(calls)) for name in ("loss", "one")}

    monkeypatch.setattr(gpu_checks, "gradients", moving)
    for one in (CHECKS[0], Check(Setting(checkpointing=True), BITS)):  # each in another process, as after one that ended
        _checking(results).check(one, SMALL[0], Clock(600))
    assert [(row["tolerance"], row["right"]) for row in results.checks] == [(ROUNDING, "yes")] * 2
    assert all(row["distance"] > 0 for row in results.checks) and "equal bits" in results.left_out[0]


def test_kernels_with_the_same_bits_are_insisted_on_where_there_are_any(results: Results) -> None:
    """PyTorch's attention has them, and uses others where it may only warn."""
    seen: list[bool] = []

    def distances() -> float:
        seen.append(gpu.torch.is_deterministic_algorithms_warn_only_enabled())
        if len(seen) == 1:
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        return 0.0

    judged(results, {"model": "one"}, BITS, distances)
    judged(results, {"model": "other"}, BITS, distances, usual=True)
    assert seen == [False, True, False] and [row["right"] for row in results.checks] == ["yes", "yes"]
    assert not gpu.torch.are_deterministic_algorithms_enabled()


def test_a_limit_is_set_for_a_numbered_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes no other, and `--device` may name none."""
    asked: list[tuple[float, object]] = []
    answers = {
        "mem_get_info": lambda _: (40e9, 80e9), "memory_reserved": lambda _: 20e9, "current_device": lambda: 0,
        "memory._lazy_init": lambda: None,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(f"torch.cuda.{name}", answer)
    monkeypatch.setattr(gpu.torch._C, "_cuda_setMemoryFraction", lambda *given: asked.append(given), raising=False)
    for device in ("cuda", "cuda:1"):
        with gpu._within(8, gpu.torch.device(device)):
            pass
    with gpu._within(None, gpu.torch.device("cuda")):
        assert asked == [(0.1, 0), (1.0, 0), (0.1, 1), (1.0, 1), (0.75, 0)], "what is free, and what this process has"


def test_what_the_gpu_cannot_do_is_neither_wrong_nor_a_row(battery: gpu.Battery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda _: "RTX 3090")
    fp8, cuda = Setting(w8a8="fp8"), gpu.torch.device("cuda")
    Checking(battery.results, SMALLEST, cuda, gpu.torch.bfloat16).check(Check(fp8, BITS), SMALL[0], Clock(600))
    battery.device = cuda
    assert battery.measure(Clock(600), SMALL[0], fp8, IMAGE) is None
    assert not battery.results.checks and not battery.results.steps
    assert [line.partition(": ")[2] for line in battery.results.left_out] == [
        "--w8a8 fp8 needs a GPU that multiplies fp8 (RTX 40 or later); RTX 3090 does not"
    ] * 2


def test_a_gpu_that_is_too_small_for_a_check_is_not_wrong(results: Results) -> None:
    def full() -> float:
        raise gpu.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    judged(results, {"model": "one"}, BITS, full)
    assert [row["right"] for row in results.checks] == ["no memory"]


@pytest.mark.parametrize("table", ["checks", "steps"])
def test_a_process_whose_gpu_is_lost_ends_behind_its_row(table: str, battery: gpu.Battery, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access every further kernel fails: the rows to come are another process's."""

    def lost(*_: object, **__: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("synchronize", "mem_get_info"):
        monkeypatch.setattr(gpu.torch.cuda, name, lost)
    battery.device = gpu.torch.device("cuda")
    with pytest.raises(RuntimeError, match="illegal"):
        if table == "checks":
            judged(battery.results, {"model": "one"}, BITS, lost, device=battery.device)
        else:
            battery.measure(Clock(600), SMALL[0], Setting(), SMALLEST)
    assert [row["error"] for row in getattr(battery.results, table)] == [
        "RuntimeError: CUDA error: an illegal memory access was encountered"
    ]


def test_a_gpu_is_looked_for_without_being_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    for name, answer in {"is_available": lambda: True, "device_count": lambda: 2, "set_device": used.append}.items():
        monkeypatch.setattr(gpu.torch.cuda, name, answer)
    assert gpu.known_device("cuda:1") == gpu.torch.device("cuda", 1) and not used
    assert used == [gpu.pick_device("cuda:1")]


def test_a_card_whose_speed_cannot_be_measured_has_that_of_its_data_sheet(battery: gpu.Battery, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(gpu.gpus, "measured", refused)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    battery.device = gpu.torch.device("cuda")
    battery.speed(Clock(1))
    assert battery.plans.speed == gpu.gpus.of_sheet("H100")
    assert battery.results.facts["speed"].endswith("H100, not measured: RuntimeError: CUDA error: out of memory")


def test_memory_that_runs_out_is_a_row(battery: gpu.Battery, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    row = battery.measure(Clock(600), SMALL[0], Setting(), SMALLEST, make=full)
    assert row is not None and row["error"] == "does not fit" and battery.results.steps == [row]
    assert battery.measure(Clock(600), SMALL[0], Setting(), SMALLEST, make=full) is None, "begun before"


def test_a_step_is_measured_beside_its_plan(battery: gpu.Battery) -> None:
    setting = Setting(blocks_to_swap=1, checkpointing=True)
    row = battery.measure(Clock(600), SMALL[0], setting, SMALLEST)
    assert row is not None and row["seconds"] > 0
    plan = battery.plans.of(SMALL[0], setting, SMALLEST)
    assert row["planned_gb"] == plan.peak / 1e9 > 0 and plan.to_device > 0
    assert row["tera_operations"] > 0 and row["mfu"] is None
    assert battery.measure(Clock(0), SMALL[0], setting, SMALLEST) is None
    assert battery.results.left_out == ["small Wan 64x64x5, swap 1 + checkpointing: no time"]


def test_a_configuration_that_fails_costs_only_itself(battery: gpu.Battery) -> None:
    row = battery.measure(Clock(600), SMALL[0], Setting(blocks_to_swap=99), SMALLEST)
    assert row is not None and "at most 2" in row["error"] and "at most 2" in row["no plan"]


def test_what_the_system_has_no_ram_for_is_not_begun(battery: gpu.Battery, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(blocks_to_swap=1, checkpointing=True)
    monkeypatch.setattr(gpu, "available_ram", lambda: battery.plans.of(SMALL[0], setting, SMALLEST).ram)
    assert battery.measure(Clock(600), SMALL[0], setting, SMALLEST) is None
    assert "would wait in system RAM" in battery.results.left_out[0]
    assert battery.measure(Clock(600), SMALL[0], Setting(), SMALLEST) is not None


def test_free_ram_is_no_more_than_a_container_may_take(tmp_path: Path) -> None:
    assert gpu_measure.available_ram(tmp_path) is None
    meminfo, limit = tmp_path / "proc/meminfo", tmp_path / "sys/fs/cgroup/memory.max"
    for file, text in ((meminfo, "MemTotal: 9 kB\nMemAvailable:  5 kB\n"), (limit, "max\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="ascii")
    assert gpu_measure.available_ram(tmp_path) == 5 * 1024
    limit.write_text("4096\n", encoding="ascii")
    assert gpu_measure.available_ram(tmp_path) == 4096


def test_what_vram_chooses_is_a_setting(battery: gpu.Battery) -> None:
    plans, wan = battery.plans, SMALL[0]
    plain = gpu_plan.peak_gb(plans.of(wan, Setting(), SMALLEST))
    chosen = plans.within(wan, SMALLEST, int(0.96e9 * plain))
    assert chosen.fp8_scaled
    assert gpu_plan.setting_of(plans._values(wan, chosen)) == chosen
    assert gpu_plan.peak_gb(plans.of(wan, chosen, SMALLEST)) < 0.96 * plain


def test_a_checkout_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--musubi", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "not a checkout of musubi-tuner" in capsys.readouterr().err


def test_what_musubi_tuner_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src" / "musubi_tuner").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    theirs = Musubi(tmp_path)
    assert theirs.lacks(MODELS[2], Setting(fp8_scaled=True)) != "" and theirs.lacks(MODELS[1], Setting(w8a8="int8")) != ""
    assert theirs.lacks(MODELS[1], Setting(fp8_scaled=True)) == ""


@pytest.mark.full(reason="a benchmark's count, by the plan that other tests compare with real steps")
def test_operations_are_those_of_the_formula() -> None:
    """spec: forward products, once more for the gradient of their input, attention three times; the text's share and LoRA left aside."""
    wan: Any = MODELS[0]
    for size, tera in ((IMAGE, 6.6), (LONG, 774)):  # of 512 text tokens, of which we leave out the padding, and a LoRA
        assert 0.88 < gpu_measure.operations(wan, size) / 1e12 / tera < 1


def test_the_peak_of_a_card_is_that_of_its_own_chip() -> None:
    cards = {
        "NVIDIA GeForce RTX 4090": 165,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
    }
    assert {card: gpu_measure.peak_of(card) for card in cards} == cards


def test_a_trace_says_what_was_launched_waited_for_and_copied() -> None:
    """As Kineto writes it: microseconds. A wait after the last launch is not the step's."""

    def event(category: str, name: str, start: float, length: float, **more: Any) -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "args": more}

    events = [
        {"ph": "M", "name": "process_name"}, event("cuda_runtime", "cudaLaunchKernel", 1, 1), event("kernel", "gemm", 10, 10),
        event("cuda_runtime", "cudaStreamSynchronize", 3, 5), event("cuda_runtime", "cudaLaunchKernel", 12, 1),
        event("kernel", "norm", 18, 6),
        event("cuda_runtime", "cudaDeviceSynchronize", 14, 20), event("gpu_memset", "Memset (Device)", 25, 1),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20, 8, bytes=3 * 10**9), event("gpu_memcpy", "Memcpy DtoD", 0, 1, bytes=9),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 10, 8, bytes=10**9),
    ]  # fmt: skip
    assert gpu_measure.of_trace(events) == gpu_measure.Traced(kernels=2, waits=1, copied_gb=4.0, hidden=12 / 16)
    with pytest.raises(RuntimeError, match="saw no kernels"):
        gpu_measure.of_trace(events[3:4])
