"""What training takes on this GPU, and whether it is right there: one command, at most 8 minutes, results as they come.

    PYTHONPATH=backend python -m benchmarks.gpu                      # on a GPU
    PYTHONPATH=backend python -m benchmarks.gpu --musubi CHECKOUT    # with the same steps as musubi-tuner writes them
    PYTHONPATH=backend python -m benchmarks.gpu --device cpu         # the smallest shapes only, in seconds; --small: on a GPU too

Needs torch, numpy, safetensors and tqdm. Weights are random, made on the device, of real shapes. Four parts, each with a share of the time
that is left; what one does not use is there for the next:

* every way of saving memory against the plain step (loss and LoRA gradients), and bf16 here against float32 on the CPU
* steps of each model and setting: seconds, share of the card's peak, memory, kernels, waits, copies
* what `--vram` chooses within 8, 12, 16 and 24 GB, with no more than that to be had
* musubi-tuner's steps, next to ours

Beside every step stands what the memory plan said before it. `gpu.json` and `gpu.md` in `--out` are whole after every line, so a stop loses
nothing; what there was no time for is named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if "musubi_backend" not in sys.modules:  # on a machine without the environment
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))

from musubi_backend.device import let_memory_grow, pick_device
from musubi_backend.errors import UserError

if __name__ == "__main__":
    let_memory_grow()  # before torch is imported
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products with the same bits each time

import torch
from musubi_backend.memory import gpus
from musubi_backend.memory.estimate import Estimate

from .gpu_checks import ROUNDING, check, check_devices, distance, free, gradients, judged
from .gpu_measure import available_ram, measured
from .gpu_models import ALL, IMAGE, LONG, MODELS, SHORT, SMALL, SMALLEST, Model, Setting, Size, Trained, build
from .gpu_musubi import Musubi
from .gpu_plan import Plans, peak_gb
from .gpu_results import Clock, Results, Row, first_line

CHECKED = Size(256, 256, 9)
LAYERS = 4
"""Of models that are checked."""
_LIMITS = (8, 12, 16, 24)
_SHARES = {"correctness": 0.25, "steps": 0.55, "limits": 0.55, "musubi": 1.0}
"""Of the time that is left."""
_LEAST = 5.0
"""Seconds that a step is measured for, and that are needed to begin with one."""
_OF_RAM = 0.8
"""Share of the free system RAM that a configuration may take."""

SAVING = Setting(checkpointing=True)
SETTINGS = (
    SAVING, Setting(checkpointing=True, fp8_scaled=True), Setting(), Setting(checkpointing=True, blocks_to_swap=20),
    Setting(checkpointing=True, keep_attention=ALL), Setting(checkpointing=True, w8a8="int8"), Setting(checkpointing=True, w8a8="fp8"),
    Setting(checkpointing=True, compiled=True), Setting(checkpointing=True, offload=True),
    Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=20),
    Setting(checkpointing=True, fp8_scaled=True, blocks_to_swap=20, compiled=True),
    Setting(checkpointing=True, keep_attention=10, attention_in_ram=ALL), Setting(checkpointing=True, keep_attention=ALL, compiled=True),
)  # fmt: skip
"""What matters most comes first."""
THEIRS = (SAVING, Setting(checkpointing=True, fp8_scaled=True), Setting(checkpointing=True, blocks_to_swap=20), Setting())
_LADDER = (
    Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=20),
    Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=36, ring=1),
)
"""What is tried where the plan was wrong."""


@dataclass
class Battery:
    """One run of everything. small: the smallest shapes, on any device."""

    device: torch.device
    results: Results
    plans: Plans
    small: bool
    musubi: Musubi | None = None
    ours: dict[tuple[Model, Setting, Size], Row] = field(default_factory=dict)

    @property
    def models(self) -> Sequence[Model]:
        return SMALL if self.small else MODELS

    def configurations(self, settings: Sequence[Setting] = SETTINGS) -> Iterator[tuple[Model, Setting, Size]]:
        """Every model, setting and size: small clips of all models first, and the first settings of all sizes before the others."""
        if self.small:
            yield from ((model, _smaller(setting), SMALLEST) for setting in settings for model in SMALL)
            return
        order = [(round_, size_number) for round_ in range(len(settings)) for size_number in range(3)]
        for round_, size_number in sorted(order, key=lambda one: (one[0] + 2 * one[1], one[1])):
            for model in MODELS:
                size = (IMAGE, SHORT, LONG)[size_number]
                if model.card_id != "fp" or size is not LONG:
                    yield model, settings[round_], size

    def correctness(self, clock: Clock) -> None:
        check_devices(self.results, SMALL, SMALLEST, self.device)
        if self.small:
            check(self.results, SMALL, SMALLEST, self.device, torch.float32, clock)
        else:
            check(self.results, [model.with_layers(LAYERS) for model in MODELS[1:]], CHECKED, self.device, torch.bfloat16, clock)

    def steps(self, clock: Clock) -> None:
        for model, setting, size in self.configurations():
            row = self.measure(clock, model, setting, size)
            if row is not None:
                self.ours[model, setting, size] = row

    def limits(self, clock: Clock) -> None:
        """The best within a limit: what `--vram` chooses, and less where that does not fit."""
        total = torch.cuda.get_device_properties(self.device).total_memory / 1e9 if self.device.type == "cuda" else max(_LIMITS)
        sizes = [SMALLEST] if self.small else [IMAGE, SHORT]
        for size in sizes:
            for limit in (limit for limit in _LIMITS if limit <= total):
                for model in self.models[:1] if self.small else self.models[1:]:
                    try:
                        chosen = self.plans.within(model, size, int(limit * 1e9))
                    except UserError as error:
                        self.results.leave_out(f"{model.name} {size} within {limit} GB: {error}")
                        continue
                    for setting in (chosen, *_LADDER):
                        row = self.measure(clock, model, setting, size, limit)
                        if row is None or "error" not in row:
                            break

    def theirs(self, clock: Clock) -> None:
        """musubi-tuner: first whether its step is ours, then what it takes."""
        if self.musubi is None:
            self.results.leave_out("musubi-tuner's steps: no --musubi CHECKOUT")
            return
        for model in SMALL:
            missing = self.musubi.lacks(model, SAVING)
            if missing:
                self.results.leave_out(missing)
                continue
            row = {"model": model.name, "size": str(SMALLEST), "setting": "ours, float32", "against": "musubi-tuner's"}
            judged(self.results, row, ROUNDING, lambda model=model: self._apart(model))  # type: ignore[misc]
        for model, setting, size in self.configurations(THEIRS):
            if self.musubi.lacks(model, setting) or (not self.small and (model, setting, size) not in self.ours):
                continue
            make = self.musubi.build
            self.measure(clock, model, setting, size, make=make, whose="musubi-tuner", ours=self.ours.get((model, setting, size)))

    def _apart(self, model: Model) -> float:
        assert self.musubi is not None
        makers = (build, self.musubi.build)
        return distance(*(gradients(make(model, SAVING, self.device, torch.float32), SMALLEST) for make in makers))

    def measure(
        self, clock: Clock, model: Model, setting: Setting, size: Size, limit: int | None = None,
        make: Callable[..., Trained] = build, whose: str = "ours", ours: Row | None = None,
    ) -> Row | None:  # fmt: skip
        """One line of the table of steps; None where there is no time for it. limit: GB the GPU may take."""
        what = f"{model.name} {size}, {setting}{f' within {limit} GB' if limit else ''}{'' if make is build else ', as musubi-tuner'}"
        row: Row = {"model": model.name, "size": str(size), "setting": str(setting), "whose": whose, "within GB": limit}
        plan, why = self._plan(model, setting, size)
        seconds = None if plan is None else self.plans.seconds(plan)
        if clock.left < max(_LEAST, 3 * (seconds or 0.0)):
            self.results.leave_out(f"{what}: no time" + (f" for steps of about {seconds:.0f} s" if seconds and seconds > 1 else ""))
            return None
        waiting, there = 0 if plan is None else plan.ram, available_ram()
        if there is not None and waiting > _OF_RAM * there:  # the system would end this process, and all that was still to come
            self.results.leave_out(f"{what}: {waiting / 1e9:.1f} GB would wait in system RAM, of which {there / 1e9:.1f} GB are free")
            return None
        try:
            with _within(limit, self.device):
                trained = make(model, setting, self.device)
                row |= measured(trained, model, size, 0.05 if self.small else min(_LEAST, clock.left / 4)).as_row()
        except torch.OutOfMemoryError:
            row["error"] = "does not fit"
        except Exception as error:  # one setting must not cost the others
            row["error"] = first_line(error)
        trained = None  # type: ignore[assignment]
        free(self.device)
        if make is build:
            row |= {"planned_gb": None if plan is None else peak_gb(plan), "planned_seconds": seconds, "no plan": why or None}
        if ours is not None and "seconds" in row:
            row["ours / theirs"] = ours["seconds"] / row["seconds"]
        self.results.add(self.results.steps, row)
        return row

    def _plan(self, model: Model, setting: Setting, size: Size) -> tuple[Estimate | None, str]:
        """The plan of a configuration, or why there is none."""
        try:
            return self.plans.of(model, setting, size), ""
        except Exception as error:
            return None, first_line(error)


def _smaller(setting: Setting) -> Setting:
    """For a model of three blocks."""
    return replace(setting, blocks_to_swap=min(1, setting.blocks_to_swap))


def run(device: torch.device, minutes: float, out: Path, small: bool = False, musubi: Musubi | None = None) -> Results:
    """Everything there is time for. small: the smallest shapes; on a CPU always."""
    gpu, clock = device.type == "cuda", Clock(minutes)
    results = Results(out, {"device": torch.cuda.get_device_name(device) if gpu else "CPU", "torch": torch.__version__, "minutes": minutes})
    speed = gpus.measured(device) if gpu else None
    results.facts["speed"] = speed.source if speed else "not measured"
    results.write()
    with tempfile.TemporaryDirectory() as folder:
        battery = Battery(device, results, Plans(device, Path(folder), speed), small or not gpu, musubi)
        parts: dict[str, Callable[[Clock], Any]] = {
            "correctness": battery.correctness, "steps": battery.steps, "limits": battery.limits, "musubi": battery.theirs,
        }  # fmt: skip
        for name, part in parts.items():
            with clock.part(_SHARES[name]) as budget:
                part(budget)
    return results


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


def main(words: list[str] | None = None) -> int:
    """The command line. 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--out", type=Path, default=Path("gpu_benchmark"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--musubi", type=Path, help="a musubi-tuner checkout")
    parser.add_argument("--small", action="store_true", help="the smallest shapes only, as on a CPU")
    given = parser.parse_args(words)
    try:
        musubi = Musubi(given.musubi) if given.musubi else None
        results = run(pick_device(given.device), given.minutes, given.out, given.small, musubi)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = sum(row["right"] == "NO" for row in results.checks)
    failed = sum("error" in row for row in results.steps)
    print(f"{len(results.checks)} checks, {wrong} wrong; {len(results.steps)} configurations, {failed} not to be had; {given.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
