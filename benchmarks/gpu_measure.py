"""Training steps and what they take: seconds, floating point operations, memory, copies, kernels and waits."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .gpu_checks import T
from .gpu_models import Model, Size, Trained, latents

_PEAKS = {  # dense bf16 products, 10^12 per second
    "3090": 71, "4090": 165, "5090": 210, "A6000": 155, "A100": 312, "H100 PCIe": 756, "H100": 989, "H200": 989, "L40": 181, "L40S": 362,
    "A10": 125, "T4": 65,
}  # fmt: skip
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize")


@dataclass(frozen=True)
class Traced:
    """One step as PyTorch's profiler saw it. copied_gb: between system RAM and the GPU, both ways; hidden: the share of that time in
    which the GPU computed; None where nothing was copied."""

    kernels: int
    waits: int
    copied_gb: float
    hidden: float | None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """Of one configuration. seconds: the median; peaks in GB, None where there are none."""

    seconds: float
    steps: int
    peak_allocated: float | None
    peak_reserved: float | None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@cache
def operations(model: Model, size: Size) -> float:
    """Of a training step that computes nothing twice: products forward and for the gradient of their input, attention forward and twice
    backward. Counted on the device "meta", with few layers: every further one is like the last."""
    one, *more = _few_layers(model)
    first = _counted(one, size)
    return first + sum((_counted(fewer, size) - first) * further for fewer, further in more)


def _few_layers(model: Model) -> Iterator[Any]:
    """The model with one layer of each kind; then with a second one of each kind, and how many of it there are beside the first."""
    kinds = [name for name in ("num_layers", "num_double_layers", "num_single_layers") if hasattr(model.geometry, name)]
    yield replace(model, geometry=replace(model.geometry, **dict.fromkeys(kinds, 1)))
    for kind in kinds:
        fewer = {**dict.fromkeys(kinds, 1), kind: 2}
        yield replace(model, geometry=replace(model.geometry, **fewer)), getattr(model.geometry, kind) - 1


def _counted(model: Model, size: Size) -> float:
    with torch.device("meta"):
        planned = model.make(model.geometry).to(torch.bfloat16).eval()
    first, _ = latents(size, torch.device("meta"))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.call(planned, first.to(torch.bfloat16), torch.tensor([1000 * T]))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    attention = sum(count for what, count in counts.items() if "bmm" in str(what) or "attention" in str(what))
    return 2.0 * (sum(counts.values()) - attention) + 3.0 * attention


def available_ram(folder: Path = Path("/")) -> int | None:
    """Bytes of system RAM that are to be had, in a container no more than it may take; None where this is not Linux.

    folder: that has `proc` and `sys`."""
    try:
        lines = (folder / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    limit = folder / "sys/fs/cgroup/memory.max"
    allowed = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return free if allowed == "max" else min(free, int(allowed))


def peak_of(name: str) -> float | None:
    """10^12 bf16 operations per second of a card; None for one that is not in the table."""
    return next((float(peak) for part, peak in _PEAKS.items() if re.search(rf"\b{part}\b(?! Laptop)", name)), None)


def stepper(trained: Trained, size: Size) -> Callable[[], None]:
    """What does a step with AdamW."""
    optimizer = torch.optim.AdamW(trained.network.parameters(), lr=1e-4)
    first, noise = latents(size, trained.device)

    def step() -> None:
        with trained.casting():
            trained.loss(first, noise, T).backward()
        torch.nn.utils.clip_grad_norm_(trained.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measured(step: Callable[[], None], device: torch.device, seconds: float) -> Step:
    """Steps for about `seconds`, at least one after the warm-up; the first ones are not counted."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()  # what the weights were made with
        torch.cuda.reset_peak_memory_stats(device)
    if _seconds(step, device) < seconds / 3:
        _seconds(step, device)
    times, end = [_seconds(step, device)], time.perf_counter() + seconds
    while time.perf_counter() + times[-1] < end and len(times) < 20:
        times.append(_seconds(step, device))
    allocated, reserved = (
        (torch.cuda.max_memory_allocated(device) / 1e9, torch.cuda.max_memory_reserved(device) / 1e9) if gpu else (None, None)
    )
    return Step(sorted(times)[len(times) // 2], len(times), allocated, reserved)


def arithmetic(model: Model, size: Size, seconds: float, device: torch.device) -> dict[str, float | None]:
    """What a step of so many seconds multiplies, and what share of the card's peak that is, where the peak is known."""
    tera = operations(model, size) / 1e12
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {"tera_operations": tera, "mfu": tera / seconds / peak if peak else None}


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def traced(step: Callable[[], None]) -> Traced | None:
    """One step. None where the profiler does not see GPUs."""
    from torch.profiler import ProfilerActivity, profile, supported_activities

    if ProfilerActivity.CUDA not in supported_activities():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        return of_trace(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def of_trace(events: Sequence[Mapping[str, Any]]) -> Traced:
    """Of Kineto's events. Waits after the last launch are the measurement's own. RuntimeError where it saw nothing: a driver may keep its
    counters from containers and virtual machines, which is said on the console only."""
    timed = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in timed if event.get("cat") == "kernel"]
    if not kernels:
        raise RuntimeError("the profiler saw no kernels")
    copies = [event for event in timed if event.get("cat") == "gpu_memcpy" and ("HtoD" in event["name"] or "DtoH" in event["name"])]
    asked = [event for event in timed if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    last = max((event["ts"] for event in asked if "Launch" in event["name"]), default=0.0)
    waits = sum(event["ts"] < last and event["name"] in _WAITS for event in asked)
    busy = joined([(event["ts"], event["ts"] + event["dur"]) for event in kernels])
    covered = sum(overlap((event["ts"], event["ts"] + event["dur"]), busy) for event in copies)
    copying = sum(event["dur"] for event in copies)
    moved = sum(event.get("args", {}).get("bytes", 0) for event in copies)
    return Traced(len(kernels), waits, moved / 1e9, covered / copying if copying else None)


def joined(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of time without overlaps, in order."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def overlap(span: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """How long `span` lies within `others`, which do not overlap."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in others)
