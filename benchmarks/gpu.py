"""What training takes on this GPU, and whether it is right there: one command, at most 8 minutes, results as they come.

    python -m benchmarks.gpu                  # on a GPU
    python -m benchmarks.gpu --device cpu     # the smallest shapes only, in seconds

Needs torch, numpy, safetensors and tqdm. Weights are random, made on the device, of real shapes. First every way of saving memory is
compared with the plain step (loss and LoRA gradients); then steps are measured, with whatever fits into the card and into 8, 12, 16 and
24 GB. `gpu.json` and `gpu.md` in `--out` are whole after every line, so a stop loses nothing; what there was no time for is named.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if "musubi_backend" not in sys.modules:  # on a machine without the environment
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))

from musubi_backend import atomic
from musubi_backend.device import let_memory_grow, pick_device

if __name__ == "__main__":
    let_memory_grow()  # before torch is imported

import torch

from .gpu_measure import distance, losses_and_gradients, measured
from .gpu_models import IMAGE, LONG, MODELS, SECTION, SHORT, SMALL, SMALLEST, Model, Setting, Size, build

BITS, ROUNDING, EIGHT_BITS, OTHER_DEVICE = 0.0, 2e-2, 0.2, 3e-2
"""Tolerances of gradients: equal; the same sums in another order, in bf16; 3 bits of mantissa; bf16 against float32."""
_LIMITS = (8, 12, 16, 24)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """A way of training and how far its gradients may be from those of `reference`. needs: a package."""

    setting: Setting
    tolerance: float
    reference: Setting = field(default_factory=Setting)
    needs: str = ""


CHECKS = (
    Check(Setting(), BITS),
    Check(Setting(checkpointing=True), BITS),
    Check(Setting(checkpointing=True, offload=True), BITS),
    Check(Setting(checkpointing=True, keep_attention=True), BITS),
    Check(Setting(blocks_to_swap=1), BITS),
    Check(Setting(blocks_to_swap=1, pinned=False), BITS),
    Check(Setting(blocks_to_swap=1, ring=1, checkpointing=True), BITS),
    Check(Setting(split=True), ROUNDING),
    Check(Setting(fp8_scaled=True), EIGHT_BITS),
    Check(Setting(fp8_scaled=True, blocks_to_swap=1, checkpointing=True, offload=True), BITS, Setting(fp8_scaled=True)),
    Check(Setting(compiled=True), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, checkpointing=True), ROUNDING, needs="triton"),
    Check(Setting(compiled=True, fp8_scaled=True, blocks_to_swap=1, checkpointing=True), ROUNDING, Setting(fp8_scaled=True), "triton"),
    Check(Setting(attention="flash"), ROUNDING, needs="flash_attn"),
    Check(Setting(attention="flash3"), ROUNDING, needs="flash_attn_interface"),
    Check(Setting(attention="xformers"), ROUNDING, needs="xformers"),
)  # fmt: skip

_SAVING = Setting(checkpointing=True)
_LADDER = (
    _SAVING,
    Setting(checkpointing=True, fp8_scaled=True),
    Setting(checkpointing=True, fp8_scaled=True, offload=True),
    Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=20),
    Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=36, ring=1),
)
"""From fast to small."""


@dataclass
class Results:
    """Everything found so far, in two files that are whole at any time."""

    folder: Path
    facts: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        rows.append(row)
        print(" · ".join(f"{key} {_short(value)}" for key, value in row.items() if value not in (None, "")), flush=True)
        self.write()

    def leave_out(self, what: str) -> None:
        self.left_out.append(what)
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {"facts": self.facts, "checks": self.checks, "steps": self.steps, "left_out": self.left_out}
        for name, text in (("gpu.json", json.dumps(whole, indent=1)), ("gpu.md", self._page())):
            with atomic.replacing(self.folder / name) as part:
                part.write_text(text, encoding="utf-8")

    def _page(self) -> str:
        lines = [f"# {self.facts['device']}", "", ", ".join(f"{name} {value}" for name, value in self.facts.items()), ""]
        for title, rows in (("Correctness", self.checks), ("Steps", self.steps)):
            names = list(dict.fromkeys(name for row in rows for name in row))
            if names:
                lines += [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
                lines += [f"| {' | '.join(_short(row.get(name)) for name in names)} |" for row in rows] + [""]
        if self.left_out:
            lines += ["## Not measured", "", *(f"- {what}" for what in self.left_out), ""]
        return "\n".join(lines)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class Clock:
    """How long there is."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def check(results: Results, model: Model, size: Size, device: torch.device, dtype: torch.dtype, clock: Clock) -> None:
    """Every way of saving memory against the plain step, on one model."""
    references: dict[Setting, dict[str, torch.Tensor]] = {}
    for one in CHECKS:
        label = f"{model.name} {size}, {one.setting}"
        if clock.left < 0:
            results.leave_out(f"{label}: no time")
            continue
        missing = _missing(one, device)
        if missing:
            results.leave_out(f"{label}: {missing}")
            continue
        row: dict[str, Any] = {"model": model.name, "size": str(size), "setting": str(one.setting), "tolerance": one.tolerance}
        try:
            if one.reference not in references:
                references[one.reference] = _gradients(model, one.reference, size, device, dtype)
            far = distance(_gradients(model, one.setting, size, device, dtype), references[one.reference])
            row |= {"distance": far, "right": "yes" if far <= one.tolerance else "NO"}
        except Exception as error:  # one setting must not cost the others
            row |= {"right": "NO", "error": _first_line(error)}
        results.add(results.checks, row)


def check_devices(results: Results, model: Model, size: Size, device: torch.device) -> None:
    """bf16 on the GPU against float32 on the CPU."""
    row: dict[str, Any] = {"model": model.name, "size": str(size), "setting": f"{device.type} bf16 against CPU float32"}
    far = distance(
        *(_gradients(model, Setting(), size, place, dtype) for place, dtype in ((device, torch.bfloat16), (_CPU, torch.float32)))
    )
    results.add(results.checks, {**row, "tolerance": OTHER_DEVICE, "distance": far, "right": "yes" if far <= OTHER_DEVICE else "NO"})


def measure(
    results: Results, model: Model, setting: Setting, size: Size, device: torch.device, seconds: float, limit: int | None = None
) -> bool:
    """One line of the table of steps. limit: GB the GPU may take. False where it did not fit or failed."""
    row: dict[str, Any] = {"model": model.name, "size": str(size), "setting": str(setting), "within GB": limit}
    fits = False
    try:
        with _within(limit, device):
            row |= measured(model, setting, size, device, seconds).as_row()
        fits = True
    except torch.OutOfMemoryError:
        row["error"] = "does not fit"
    except Exception as error:
        row["error"] = _first_line(error)
    _free(device)
    results.add(results.steps, row)
    return fits


def plan_of(device: torch.device) -> list[tuple[Model, Size, tuple[Setting, ...], int | None]]:
    """What is measured, in this order: model, size, settings (the first that fits where there is a limit), GB."""
    wan_small, wan, hunyuan, framepack = MODELS
    plan: list[tuple[Model, Size, tuple[Setting, ...], int | None]] = [
        (wan_small, IMAGE, (Setting(), _SAVING, Setting(fp8_scaled=True, checkpointing=True), Setting(compiled=True)), None),
        (wan_small, SHORT, (_SAVING,), None),
        (wan, IMAGE, (_SAVING, Setting(fp8_scaled=True, checkpointing=True), Setting(blocks_to_swap=20, checkpointing=True)), None),
        (hunyuan, IMAGE, (_SAVING, Setting(fp8_scaled=True, checkpointing=True)), None),
        (framepack, SECTION, (_SAVING,), None),
    ]
    total = torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else 0.0
    plan += [(model, IMAGE, _LADDER, limit) for limit in _LIMITS if limit <= total for model in (wan, hunyuan)]
    plan += [(wan, SHORT, (_SAVING,), None), (wan_small, LONG, (_SAVING,), None), (wan, LONG, (_SAVING,), None)]
    return plan


def run(device: torch.device, minutes: float, out: Path) -> Results:
    """Everything there is time for. On a CPU the smallest shapes."""
    gpu, clock = device.type == "cuda", Clock(minutes)
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    results = Results(out, {"device": name, "torch": torch.__version__, "minutes": minutes})
    if not gpu:
        for model in SMALL:
            check(results, model, SMALLEST, device, torch.float32, clock)
            measure(results, model, _SAVING, SMALLEST, device, 0.1)
        return results
    for model in SMALL:
        check_devices(results, model, SMALLEST, device)
    for model in MODELS[1:]:
        check(results, model.with_layers(4), Size(256, 256, 9), device, torch.bfloat16, Clock(min(1.2, clock.left / 60)))
    for model, size, settings, limit in plan_of(device):
        for setting in settings:
            if clock.left < 20:
                results.leave_out(f"{model.name} {size}, {setting}{f' within {limit} GB' if limit else ''}: no time")
            elif measure(results, model, setting, size, device, min(8.0, clock.left / 8), limit) and limit:
                break
    return results


def _gradients(model: Model, setting: Setting, size: Size, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    loss, gradients = losses_and_gradients(build(model, setting, device, dtype), size)
    _free(device)
    return {"loss": loss, **gradients}


def _missing(one: Check, device: torch.device) -> str:
    if one.needs and (device.type == "cpu" or importlib.util.find_spec(one.needs) is None):
        return f"needs {one.needs}" + (" and a GPU" if device.type == "cpu" else "")
    return ""


@contextlib.contextmanager
def _within(limit: int | None, device: torch.device) -> Iterator[None]:
    """limit: GB that the GPU may take."""
    if limit is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 1e9 / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def main(words: list[str] | None = None) -> int:
    """The command line. 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--out", type=Path, default=Path("gpu_benchmark"), help="folder of gpu.json and gpu.md")
    given = parser.parse_args(words)
    results = run(pick_device(given.device), given.minutes, given.out)
    wrong = sum(row["right"] == "NO" for row in results.checks)
    print(f"{len(results.checks)} checks, {wrong} wrong; {len(results.steps)} configurations; results in {given.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
