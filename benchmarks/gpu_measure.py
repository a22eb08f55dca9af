"""Training steps and what they take: seconds, floating point operations, memory, copies, kernels and waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .gpu_models import Model, Setting, Size, Trained, build, latents

T = 0.6
"""Share of noise in every step."""
_PEAKS = {  # dense bf16 products, 10^12 per second
    "3090": 71, "4090": 165, "5090": 210, "A6000": 155, "A100": 312, "H100": 989, "H200": 989, "L40": 181, "A10": 125, "T4": 65,
}  # fmt: skip
_DIFFERENCE = 1e-12


@dataclass(frozen=True)
class Step:
    """Of one configuration. seconds: the median; mfu: model operations (no recomputation) against the card's peak, where that is known.
    hidden: the share of the copies' time in which the GPU computed. None: not known here."""

    seconds: float
    steps: int
    tera_operations: float
    mfu: float | None
    peak_allocated: float | None
    peak_reserved: float | None
    copied_gb: float
    hidden: float | None
    kernels: int | None
    waits: int | None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def losses_and_gradients(trained: Trained, size: Size) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and LoRA gradients of one step, on the CPU in float32."""
    first, noise = latents(size, trained.device)
    trained.network.zero_grad(set_to_none=True)
    loss = trained.loss(first, noise, T)
    loss.backward()
    gradients = {name: one.grad.float().cpu() for name, one in trained.network.named_parameters() if one.grad is not None}
    return loss.detach().float().cpu(), gradients


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors; infinite where one is not finite or another set."""
    if one.keys() != other.keys() or not all(tensor.isfinite().all() for tensor in one.values()):
        return float("inf")
    apart = sum(float((one[name] - other[name]).double().square().sum()) for name in other)
    size = sum(float(tensor.double().square().sum()) for tensor in other.values())
    return float((apart / max(size, _DIFFERENCE)) ** 0.5)


def operations(model: Model, size: Size) -> float:
    """Of a training step that computes nothing twice: products forward and for the gradient of their input, attention forward and twice
    backward. Counted on the device "meta"."""
    with torch.device("meta"):
        planned = model.make(model.geometry).to(torch.bfloat16).eval()
    first, _ = latents(size, torch.device("meta"))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.call(planned, first.to(torch.bfloat16), torch.tensor([1000 * T]))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    attention = sum(count for what, count in counts.items() if "bmm" in str(what) or "attention" in str(what))
    return 2.0 * (sum(counts.values()) - attention) + 3.0 * attention


def peak_of(name: str) -> float | None:
    """10^12 bf16 operations per second of a card; None for one that is not in the table."""
    return next((float(peak) for part, peak in _PEAKS.items() if part in name), None)


def measured(model: Model, setting: Setting, size: Size, device: torch.device, seconds: float) -> Step:
    """Steps with AdamW for about `seconds`, at least one after the warm-up; the first ones are not counted."""
    trained = build(model, setting, device)
    optimizer = torch.optim.AdamW(trained.network.parameters(), lr=1e-4)
    first, noise = latents(size, device)

    def step() -> None:
        with trained.network.working_in(torch.bfloat16):
            loss = trained.loss(first, noise, T)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    warm_up = time.perf_counter()
    step()
    if time.perf_counter() - warm_up < seconds / 3:
        step()
    with _copies(trained) as copied:
        times = _timed(step, seconds)
        bytes_per_step = copied[0] / len(times)
    peaks = (torch.cuda.max_memory_allocated(device) / 1e9, torch.cuda.max_memory_reserved(device) / 1e9) if gpu else (None, None)
    kernels, waits, hidden = _traced(step) if gpu else (None, None, None)
    median, tera = sorted(times)[len(times) // 2], operations(model, size) / 1e12
    peak = peak_of(torch.cuda.get_device_name(device)) if gpu else None
    return Step(
        seconds=median, steps=len(times), tera_operations=tera, mfu=tera / median / peak if peak else None, peak_allocated=peaks[0],
        peak_reserved=peaks[1], copied_gb=bytes_per_step / 1e9, hidden=hidden, kernels=kernels, waits=waits,
    )  # fmt: skip


def _timed(step: Callable[[], None], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 20):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


@contextlib.contextmanager
def _copies(trained: Trained) -> Iterator[list[int]]:
    """Bytes of swapped blocks that are copied to the device meanwhile."""
    total = [0]

    def counting(start: Callable[..., Any]) -> Callable[..., Any]:
        def counted(memory: Tensor, buffer: Tensor) -> Any:
            total[0] += memory.nbytes
            return start(memory, buffer)

        return counted

    before = [stream.transfers.start for stream in trained.streams]
    for stream, start in zip(trained.streams, before, strict=True):
        stream.transfers.start = counting(start)
    try:
        yield total
    finally:
        for stream in trained.streams:
            del stream.transfers.start


def _traced(step: Callable[[], None]) -> tuple[int, int, float | None]:
    """(kernels, waits of the host, share of the copying time in which kernels ran) of one step, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    events = list(trace.events() or [])
    on_device = [event for event in events if str(event.device_type).endswith("CUDA")]
    copies = [event for event in on_device if "HtoD" in event.name]
    kernels = [event for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    waits = sum(event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize") for event in events)
    busy = _joined([(event.time_range.start, event.time_range.end) for event in kernels])
    total = sum(event.time_range.elapsed_us() for event in copies)
    covered = sum(_overlap((event.time_range.start, event.time_range.end), busy) for event in copies)
    return len(kernels), waits, covered / total if total else None


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _overlap(span: tuple[float, float], others: list[tuple[float, float]]) -> float:
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in others)
