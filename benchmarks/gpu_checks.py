"""Is every way of training right on this device: loss and LoRA gradients of one step against those of the plain step."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from musubi_backend.exhausted import out_of_memory
from musubi_backend.layers import offloaded
from torch import Tensor

from .gpu_models import ALL, Model, Setting, Size, Trained, build, lacking, latents
from .gpu_results import Clock, Results, Row, first_line

T = 0.6
"""Share of noise in every step."""

BITS, ROUNDING, EIGHT_BITS, OTHER_DEVICE = 0.0, 2e-2, 0.2, 3e-2
"""Tolerances of gradients: equal; the same sums in another order, in bf16; 3 bits of mantissa; bf16 against float32."""

_SECONDS, _SECONDS_COMPILED = 60.0, 180.0
"""That one check may take; far more than it does where nothing hangs."""

_CPU = torch.device("cpu")
_SMALLEST = 1e-12
_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


@dataclass(frozen=True)
class Check:
    """A way of training and how far its gradients may be from those of `reference`. needs: a package. usual: with the kernels that a
    training has, which may add up in another order each time."""

    setting: Setting
    tolerance: float
    reference: Setting = field(default_factory=Setting)
    needs: str = ""
    usual: bool = False

    @property
    def limit(self) -> float:
        """Seconds that it may take."""
        return _SECONDS_COMPILED if self.setting.compiled else _SECONDS


_EIGHT: Any = {"fp8_scaled": True}
_SWAP: Any = {"blocks_to_swap": 1}
_AGAIN: Any = {"checkpointing": True}
CHECKS = (
    Check(Setting(), ROUNDING),  # whether its bits are the same each time
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
    Check(Setting(**_AGAIN, keep_attention=ALL), ROUNDING, usual=True),
    Check(Setting(attention="flash"), ROUNDING, needs="flash_attn"),
    Check(Setting(attention="flash", **_AGAIN, keep_attention=1), ROUNDING, needs="flash_attn"),
    Check(Setting(attention="flash3"), ROUNDING, needs="flash_attn_interface"),
    Check(Setting(attention="xformers"), ROUNDING, needs="xformers"),
)  # fmt: skip
COMPILED = (
    Check(Setting(compiled=True, **_AGAIN), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, **_AGAIN, keep_attention=1, attention_in_ram=ALL), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, **_EIGHT, **_SWAP, **_AGAIN), ROUNDING, Setting(**_EIGHT), "triton"),
    Check(Setting(compiled=True, **_EIGHT, **_SWAP, **_AGAIN, keep_attention=ALL), ROUNDING, Setting(**_EIGHT), "triton"),
    Check(Setting(compiled=True, w8a8="int8", **_SWAP, **_AGAIN), ROUNDING, Setting(w8a8="int8"), "triton"),
    Check(Setting(compiled=True), ROUNDING, needs="triton"),
)  # fmt: skip

Gradients = dict[str, Tensor]
"""With the loss."""


@dataclass
class Checking:
    """Checks on one device. took: seconds of the longest one that compiled, as its cold start is most of it."""

    results: Results
    size: Size
    device: torch.device
    dtype: torch.dtype
    took: float = 60.0
    references: dict[tuple[Model, Setting, bool], Gradients] = field(default_factory=dict)

    def check(self, one: Check, model: Model, clock: Clock) -> None:
        """One check with one model, where there is time."""
        least = self.took if one.setting.compiled else 0.0
        label = f"{model.name} {self.size}, {one.setting}"
        missing = _missing(one, self.device, self.dtype) or ("no time" if clock.left < least else "")
        if missing:
            self.results.leave_out(f"{label}: {missing}")
            return
        usual = one.usual or one.setting.compiled
        kernels = ", usual kernels" if one.usual else ""
        row = {"model": model.name, "size": str(self.size), "setting": f"{one.setting}{kernels}", "against": str(one.reference)}
        start = time.monotonic()
        tolerance = ROUNDING if one.tolerance == BITS and self._moves(model) else one.tolerance
        judged(self.results, row, tolerance, lambda: self._apart(one, model, usual), one.limit, usual, self.device)
        if one.setting == one.reference and self._moves(model):
            self.results.leave_out(f"{model.name}: equal bits, as its plain step has other ones each time on this device")
        if one.setting.compiled:
            self.took = max(self.took, time.monotonic() - start)

    def _moves(self, model: Model) -> bool:
        """Has its plain step other bits each time? The row says so, which a process knows that goes on behind another one."""
        rows = (row for row in self.results.checks if row["model"] == model.name and row["setting"] == row["against"])
        return any(row.get("distance", BITS) > BITS for row in rows)

    def _apart(self, one: Check, model: Model, usual: bool) -> float:
        key = model, one.reference, usual
        if key not in self.references:
            self.references[key] = gradients(build(model, one.reference, self.device, self.dtype), self.size)
        return distance(gradients(build(model, one.setting, self.device, self.dtype), self.size), self.references[key])


def check_devices(results: Results, models: Sequence[Model], size: Size, device: torch.device) -> None:
    """bf16 on the device against float32 on the CPU, with the same weights."""
    for model in models:

        def distances(model: Model = model) -> float:
            places = ((device, torch.bfloat16), (_CPU, torch.float32))
            return distance(*(gradients(build(model, Setting(), place, dtype, drawn_on=_CPU), size) for place, dtype in places))

        row = {"model": model.name, "size": str(size), "setting": f"{device.type} bf16", "against": "CPU float32"}
        judged(results, row, OTHER_DEVICE, distances, device=device)


def judged(
    results: Results,
    row: Row,
    tolerance: float,
    distances: Callable[[], float],
    seconds: float = _SECONDS,
    usual: bool = False,
    device: torch.device = _CPU,
) -> None:
    """One line of the table, for so many seconds at most. An error is its own line's only. usual: see `Check`."""
    if not results.begin("checks", row, seconds):
        return
    row |= {"tolerance": tolerance}
    try:
        far = distances() if usual else _with_same_bits(distances)
        row |= {"distance": far, "right": "yes" if far <= tolerance else "NO"}
    except Exception as error:  # memory that is too small says nothing of what is right
        row |= {"right": "no memory"} if out_of_memory(error) else {"right": "NO", "error": first_line(error)}
    results.add("checks", row)
    free(device)


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


def _with_same_bits(distances: Callable[[], float]) -> float:
    """With kernels that add up in the same order each time. PyTorch chooses those of attention only where nothing else is allowed, so
    what has no such kernel is allowed only after it was asked for."""
    os.environ.setdefault(*_DETERMINISTIC)
    before, fills = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        for lenient in (False, True):
            torch.use_deterministic_algorithms(True, warn_only=lenient)
            try:
                return distances()
            except RuntimeError as error:
                if lenient or "deterministic" not in str(error):
                    raise
        raise AssertionError("the second time nothing is refused")
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def free(device: torch.device) -> None:
    """What nothing refers to any more, on a GPU and in pinned system RAM, where it would be in the way. RuntimeError where a kernel that
    failed has made the GPU useless to this process, which then has to end for another one to go on (`gpu_process`)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        offloaded.unpin()
        gc.collect()
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            torch.compiler.reset()
        torch.cuda.empty_cache()


def _missing(one: Check, device: torch.device, dtype: torch.dtype) -> str:
    """What the device or its environment has not got for a check; "" where it can be done."""
    if one.needs and (device.type == "cpu" or importlib.util.find_spec(one.needs) is None):
        return f"needs {one.needs}" + (" and a GPU" if device.type == "cpu" else "")
    return lacking(one.setting, device, dtype)
