"""Is every way of training right on this device: loss and LoRA gradients of one step against those of the plain step."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .gpu_models import ALL, Model, Setting, Size, Trained, build, latents
from .gpu_results import Clock, Results, Row, first_line

T = 0.6
"""Share of noise in every step."""

BITS, ROUNDING, EIGHT_BITS, OTHER_DEVICE = 0.0, 2e-2, 0.2, 3e-2
"""Tolerances of gradients: equal; the same sums in another order, in bf16; 3 bits of mantissa; bf16 against float32."""

_CPU = torch.device("cpu")
_SMALLEST = 1e-12
_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


@dataclass(frozen=True)
class Check:
    """A way of training and how far its gradients may be from those of `reference`. needs: a package."""

    setting: Setting
    tolerance: float
    reference: Setting = field(default_factory=Setting)
    needs: str = ""


_EIGHT: Any = {"fp8_scaled": True}
_SWAP: Any = {"blocks_to_swap": 1}
_AGAIN: Any = {"checkpointing": True}
CHECKS = (
    Check(Setting(), BITS),
    Check(Setting(**_AGAIN), BITS),
    Check(Setting(**_SWAP), BITS),
    Check(Setting(fp8_scaled=True), EIGHT_BITS),
    Check(Setting(**_AGAIN, offload=True), BITS),
    Check(Setting(**_AGAIN, keep_attention=ALL), BITS),
    Check(Setting(**_AGAIN, keep_attention=1, attention_in_ram=ALL), BITS),
    Check(Setting(**_SWAP, pinned=False), BITS),
    Check(Setting(**_SWAP, ring=1, checkpointing=True), BITS),
    Check(Setting(w8a8="int8"), EIGHT_BITS),
    Check(Setting(w8a8="fp8"), EIGHT_BITS),
    Check(Setting(**_EIGHT, **_SWAP, **_AGAIN, offload=True, keep_attention=1, attention_in_ram=1), BITS, Setting(**_EIGHT)),
    Check(Setting(w8a8="int8", **_SWAP, **_AGAIN, keep_attention=1), BITS, Setting(w8a8="int8")),
    Check(Setting(w8a8="fp8", **_SWAP, **_AGAIN, keep_attention=1), BITS, Setting(w8a8="fp8")),
    Check(Setting(split=True), ROUNDING),
    Check(Setting(compiled=True), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, **_AGAIN), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, **_AGAIN, keep_attention=1, attention_in_ram=ALL), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, **_EIGHT, **_SWAP, **_AGAIN), ROUNDING, Setting(**_EIGHT), "triton"),
    Check(Setting(compiled=True, **_EIGHT, **_SWAP, **_AGAIN, keep_attention=ALL), ROUNDING, Setting(**_EIGHT), "triton"),
    Check(Setting(compiled=True, w8a8="int8", **_SWAP, **_AGAIN), ROUNDING, Setting(w8a8="int8"), "triton"),
    Check(Setting(attention="flash"), ROUNDING, needs="flash_attn"),
    Check(Setting(attention="flash", **_AGAIN, keep_attention=1), ROUNDING, needs="flash_attn"),
    Check(Setting(attention="flash3"), ROUNDING, needs="flash_attn_interface"),
    Check(Setting(attention="xformers"), ROUNDING, needs="xformers"),
)  # fmt: skip

Gradients = dict[str, Tensor]
"""With the loss."""


def check(results: Results, models: Sequence[Model], size: Size, device: torch.device, dtype: torch.dtype, clock: Clock) -> None:
    """Every check with every model, the first checks of all models first."""
    references: dict[tuple[Model, Setting], Gradients] = {}
    for one, model in product(CHECKS, models):
        label = f"{model.name} {size}, {one.setting}"
        missing = "no time" if clock.left < 0 else _missing(one, device)
        if missing:
            results.leave_out(f"{label}: {missing}")
            continue

        def distances(one: Check = one, model: Model = model) -> float:
            key = model, one.reference
            if key not in references:
                references[key] = gradients(build(model, one.reference, device, dtype), size)
            return distance(gradients(build(model, one.setting, device, dtype), size), references[key])

        row = {"model": model.name, "size": str(size), "setting": str(one.setting), "against": str(one.reference)}
        judged(results, row, one.tolerance, distances)


def check_devices(results: Results, models: Sequence[Model], size: Size, device: torch.device) -> None:
    """bf16 on the device against float32 on the CPU, with the same weights."""
    for model in models:

        def distances(model: Model = model) -> float:
            places = ((device, torch.bfloat16), (_CPU, torch.float32))
            return distance(*(gradients(build(model, Setting(), place, dtype, drawn_on=_CPU), size) for place, dtype in places))

        row = {"model": model.name, "size": str(size), "setting": f"{device.type} bf16", "against": "CPU float32"}
        judged(results, row, OTHER_DEVICE, distances)


def judged(results: Results, row: Row, tolerance: float, distances: Callable[[], float]) -> None:
    """One line of the table. An error is its own line's only."""
    try:
        with _same_bits():
            far = distances()
        row |= {"tolerance": tolerance, "distance": far, "right": "yes" if far <= tolerance else "NO"}
    except Exception as error:
        row |= {"tolerance": tolerance, "right": "NO", "error": first_line(error)}
    results.add(results.checks, row)


def gradients(trained: Trained, size: Size) -> Gradients:
    """Loss and LoRA gradients of one step, on the CPU in float32."""
    first, noise = latents(size, trained.device)
    trained.network.zero_grad(set_to_none=True)
    with trained.casting():
        loss = trained.loss(first, noise, T)
        loss.backward()
    found = {name: one.grad.float().cpu() for name, one in trained.network.named_parameters() if one.grad is not None}
    free(trained.device)
    return {"loss": loss.detach().float().cpu(), **found}


def distance(one: Gradients, other: Gradients) -> float:
    """|one - other| / |other| over all gradients, or of the loss where that is more; infinite where one is not finite or another set."""
    if one.keys() != other.keys() or not all(tensor.isfinite().all() for tensor in one.values()):
        return float("inf")
    names = [name for name in other if name != "loss"]
    return max(_apart(one, other, names), _apart(one, other, ["loss"]))


def _apart(one: Gradients, other: Gradients, names: Sequence[str]) -> float:
    apart = sum(float((one[name] - other[name]).double().square().sum()) for name in names)
    size = sum(float(other[name].double().square().sum()) for name in names)
    return float((apart / max(size, _SMALLEST)) ** 0.5)


@contextmanager
def _same_bits() -> Iterator[None]:
    """Kernels that add up in the same order each time: attention's backward does not by itself."""
    os.environ.setdefault(*_DETERMINISTIC)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def free(device: torch.device) -> None:
    """What nothing refers to any more, on a GPU, where it would be in the way."""
    if device.type == "cuda":
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _missing(one: Check, device: torch.device) -> str:
    if one.needs and (device.type == "cpu" or importlib.util.find_spec(one.needs) is None):
        return f"needs {one.needs}" + (" and a GPU" if device.type == "cpu" else "")
    return ""
