"""What training takes on this GPU, and whether it is right there: one command, at most 8 minutes, results as they come.

    PYTHONPATH=backend python -m benchmarks.gpu                      # on a GPU
    PYTHONPATH=backend python -m benchmarks.gpu --musubi CHECKOUT    # with the same steps as musubi-tuner writes them
    PYTHONPATH=backend python -m benchmarks.gpu --device cpu         # the smallest shapes only, in seconds; --small: on a GPU too

Needs torch, numpy, safetensors and tqdm. Weights are random, made on the device, of real shapes. Parts, each with a share of the time
that is left; what one does not use is there for the next:

* how fast the card multiplies and copies
* every way of saving memory against the plain step (loss and LoRA gradients), and bf16 here against float32 on the CPU
* steps of each model and setting: seconds, share of the card's peak, memory, kernels, waits, copies
* what `--vram` chooses within 8, 12, 16 and 24 GB, with no more than that to be had
* both of compiled blocks, whose first step takes a minute
* musubi-tuner's steps, next to ours

Beside every step stands what the memory plan said before it. `gpu.json` and `gpu.md` in `--out` are whole after every line, so a stop loses
nothing; what there was no time for is named. A process of its own measures, so one that hangs or crashes costs its row (`gpu_process`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from pathlib import Path

if "musubi_backend" not in sys.modules:  # on a machine without the environment
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "backend"))

from musubi_backend.device import known_device, let_memory_grow, pick_device
from musubi_backend.errors import UserError

if __name__ == "__main__":
    let_memory_grow()  # before torch is imported
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products with the same bits each time

import torch
from musubi_backend.exhausted import out_of_memory
from musubi_backend.memory import gpus
from musubi_backend.memory.estimate import Estimate

from .gpu_checks import CHECKS, COMPILED, ROUNDING, Checking, check_devices, distance, free, gradients, judged
from .gpu_measure import arithmetic, available_ram, measured, stepper, traced
from .gpu_models import ALL, IMAGE, LONG, MODELS, SHORT, SMALL, SMALLEST, Model, Setting, Size, Trained, build, lacking
from .gpu_musubi import Musubi
from .gpu_plan import Plans, peak_gb
from .gpu_process import Part, Stopped, Watched, told_to_stop
from .gpu_results import Clock, Results, Row, first_line

CHECKED = Size(256, 256, 9)
LAYERS = 4
"""Of models that are checked."""
_LIMITS = (8, 12, 16, 24)
PARTS = (
    Part("speed", 0.15), Part("correctness", 0.3), Part("steps", 0.4), Part("limits", 0.35), Part("compiled", 0.7), Part("musubi", 1.0),
)  # fmt: skip
_MEASURED = 3.0
"""Seconds that steps are measured for."""
_LEAST = 5.0
"""Seconds that have to be left to begin with a configuration."""
_COMPILING = 60.0
"""The same of one that is compiled, until one was."""
_AT_MOST = 60.0
"""Seconds that a configuration may take beside its steps: more than drawing and pinning 28 GB does."""
_STEPS = 10
"""So many of the steps that were planned it may take beside."""
_TRACING = 40.0
_SPEED = "10^12 products and GB/s"
_OF_RAM = 0.8
"""Share of the free system RAM that a configuration may take."""

SAVING = Setting(checkpointing=True)
SETTINGS = (
    SAVING, Setting(checkpointing=True, fp8_scaled=True), Setting(), Setting(checkpointing=True, blocks_to_swap=20),
    Setting(checkpointing=True, keep_attention=ALL), Setting(checkpointing=True, w8a8="int8"), Setting(checkpointing=True, w8a8="fp8"),
    Setting(checkpointing=True, offload=True), Setting(checkpointing=True, fp8_scaled=True, offload=True, blocks_to_swap=20),
    Setting(checkpointing=True, keep_attention=10, attention_in_ram=ALL),
)  # fmt: skip
"""What matters most comes first."""
COMPILED_SETTINGS = (
    Setting(checkpointing=True, compiled=True), Setting(checkpointing=True, keep_attention=ALL, compiled=True),
    Setting(checkpointing=True, fp8_scaled=True, blocks_to_swap=20, compiled=True),
    Setting(checkpointing=True, w8a8="int8", compiled=True),
)  # fmt: skip
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
    compiling: float = _COMPILING
    _checking: Checking | None = None

    @property
    def parts(self) -> dict[str, Callable[[Clock], object]]:
        """What is measured, by the names of `PARTS`."""
        return {
            "speed": self.speed, "correctness": self.correctness, "steps": self.steps, "limits": self.limits, "compiled": self.compiled,
            "musubi": self.theirs,
        }  # fmt: skip

    @property
    def checking(self) -> Checking:
        """Of which size, and in which dtype."""
        if self._checking is None:
            size, dtype = (SMALLEST, torch.float32) if self.small else (CHECKED, torch.bfloat16)
            self._checking = Checking(self.results, size, self.device, dtype)
        return self._checking

    @property
    def checked(self) -> Sequence[Model]:
        return SMALL if self.small else [model.with_layers(LAYERS) for model in MODELS[1:]]

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

    def speed(self, clock: Clock) -> None:
        """What the card does at best; of its data sheet where that cannot be measured."""
        if self.device.type != "cuda":
            self.results.fact("speed", "not measured")
            return
        try:
            self.plans.speed = gpus.measured(self.device)
            why = ""
        except RuntimeError as error:
            self.plans.speed = gpus.of_sheet(torch.cuda.get_device_name(self.device))
            why = f", not measured: {first_line(error)}"
        found = self.plans.speed
        self.results.fact("speed", f"{found.source if found else 'not known'}{why}")
        if found is not None:
            self.results.fact(_SPEED, [found.multiplies, found.copies])

    def correctness(self, clock: Clock) -> None:
        check_devices(self.results, SMALL, SMALLEST, self.device)
        for one, model in product(CHECKS, self.checked):
            self.checking.check(one, model, clock)

    def steps(self, clock: Clock) -> None:
        for model, setting, size in self.configurations():
            self.measure(clock, model, setting, size)

    def compiled(self, clock: Clock) -> None:
        """A check and a setting of each model, then the next ones."""
        models = self.models if self.small else self.models[1:]
        for one, setting in zip_longest(COMPILED, COMPILED_SETTINGS):
            for model, checked in zip(models, self.checked, strict=True):
                self.checking.check(one, checked, clock)
                if setting is not None:
                    self.measure(clock, model, _smaller(setting) if self.small else setting, SMALLEST if self.small else SHORT)

    def limits(self, clock: Clock) -> None:
        """The best within a limit: what `--vram` chooses, and less where that does not fit."""
        total = torch.cuda.mem_get_info(self.device)[1] / 1e9 if self.device.type == "cuda" else max(_LIMITS)
        sizes = [SMALLEST] if self.small else [IMAGE, SHORT]
        for size in sizes:
            for limit in (limit for limit in _LIMITS if limit <= total):
                for model in self.models[:1] if self.small else self.models[1:]:
                    if clock.left < _LEAST:
                        self.results.leave_out(f"{model.name} {size} within {limit} GB: no time")
                        continue
                    try:
                        chosen = self.plans.within(model, size, int(limit * 1e9))
                    except Exception as error:
                        why = str(error) if isinstance(error, UserError) else first_line(error)
                        self.results.leave_out(f"{model.name} {size} within {limit} GB: {why}")
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
            ours = self._ours(model, setting, size)
            if self.musubi.lacks(model, setting) or (ours is None and not self.small):
                continue
            self.measure(clock, model, setting, size, make=self.musubi.build, whose="musubi-tuner", ours=ours)

    def _ours(self, model: Model, setting: Setting, size: Size) -> Row | None:
        """The row of this configuration, where there is one."""
        about = {"model": model.name, "size": str(size), "setting": str(setting), "whose": "ours", "within GB": None}
        return next((row for row in self.results.steps if about.items() <= row.items() and "seconds" in row), None)

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
        least = self.compiling if setting.compiled else _LEAST
        missing = lacking(setting, self.device, torch.bfloat16) if make is build else ""
        if missing:
            self.results.leave_out(f"{what}: {missing}")
            return None
        if clock.left < least:
            self.results.leave_out(f"{what}: no time")
            return None
        plan, why = self._plan(model, setting, size)
        seconds = None if plan is None else self.plans.seconds(plan)
        if clock.left < max(least, 3 * (seconds or 0.0)):
            self.results.leave_out(f"{what}: no time" + (f" for steps of about {seconds:.0f} s" if seconds and seconds > 1 else ""))
            return None
        waiting, there = 0 if plan is None else plan.ram, available_ram()
        if there is not None and waiting > _OF_RAM * there:  # the system would end this process, and all that was still to come
            self.results.leave_out(f"{what}: {waiting / 1e9:.1f} GB would wait in system RAM, of which {there / 1e9:.1f} GB are free")
            return None
        start, most = time.monotonic(), _AT_MOST + _STEPS * (seconds or 1.0) + (2 * self.compiling if setting.compiled else 0.0)
        if not self.results.begin("steps", row, most):
            return None
        if make is build:
            row |= {"planned_gb": None if plan is None else peak_gb(plan), "planned_seconds": seconds, "no plan": why or None}
        try:
            with _within(limit, self.device):
                self._measured(row, make(model, setting, self.device), model, size, 0.05 if self.small else min(_MEASURED, clock.left / 4))
        except Exception as error:  # one setting must not cost the others
            row["error"] = "does not fit" if out_of_memory(error) else first_line(error)
        if setting.compiled:
            self.compiling = max(self.compiling, time.monotonic() - start)
        if ours is not None and "seconds" in row:
            row["ours / theirs"] = ours["seconds"] / row["seconds"]
        self.results.add("steps", row)
        free(self.device)
        return row

    def _measured(self, row: Row, trained: Trained, model: Model, size: Size, seconds: float) -> None:
        """Into the row, what is worth most first."""
        step = stepper(trained, size)
        row |= measured(step, self.device, seconds).as_row()
        self.results.further("steps", row, _TRACING)
        try:
            row |= arithmetic(model, size, row["seconds"], self.device)
            if self.device.type == "cuda" and row["seconds"] < seconds:
                found = traced(step)
                row |= {} if found is None else found.as_row()
        except Exception as error:
            row["not traced"] = first_line(error)

    def _plan(self, model: Model, setting: Setting, size: Size) -> tuple[Estimate | None, str]:
        """The plan of a configuration, or why there is none."""
        try:
            return self.plans.of(model, setting, size), ""
        except Exception as error:
            return None, first_line(error)


def _smaller(setting: Setting) -> Setting:
    """For a model of three blocks."""
    return replace(setting, blocks_to_swap=min(1, setting.blocks_to_swap))


@dataclass(frozen=True)
class Given:
    """What the process that measures is told. device: its name; folder: for headers of weight files; musubi: a checkout."""

    device: str
    folder: Path
    small: bool
    musubi: Path | None


def prepared(results: Results, given: Given) -> dict[str, Callable[[Clock], object]]:
    """The parts, in the process that measures."""
    device = pick_device(given.device)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts = {"device": card.name, "memory GB": card.total_memory / 1e9, "capability": f"{card.major}.{card.minor}"}
        for name, value in facts.items():
            results.fact(name, value)
    known = results.facts.get(_SPEED)
    speed = None if known is None else gpus.Speed(*known, source="measured")
    musubi = None if given.musubi is None else Musubi(given.musubi)
    return Battery(device, results, Plans(device, given.folder, speed), given.small or device.type != "cuda", musubi).parts


def run(device: torch.device, minutes: float, out: Path, small: bool = False, musubi: Path | None = None) -> Results:
    """Everything there is time for. small: the smallest shapes; on a CPU always. The GPU is left to the process that measures: this one
    would take memory of it, and some GPUs take one process only."""
    results = Results(out, {"device": str(device), "torch": torch.__version__, "cuda": torch.version.cuda, "minutes": minutes})
    results.write()
    with tempfile.TemporaryDirectory() as folder, told_to_stop():
        watched = Watched(results, Clock(minutes), prepared, Given(str(device), Path(folder), small, musubi))
        try:
            watched.run(list(PARTS))
        except Stopped:
            results.fact("stopped", "before its end")
            raise
    return results


@contextlib.contextmanager
def _within(limit: int | None, device: torch.device) -> Iterator[None]:
    """limit: GB that the GPU may take; without one what is free there, as Windows would give system RAM for more and call it the GPU's."""
    if device.type != "cuda":
        yield
        return
    free_there, total = torch.cuda.mem_get_info(device)
    most = min(float(free_there + torch.cuda.memory_reserved(device)), float("inf") if limit is None else limit * 1e9)
    number = torch.cuda.current_device() if device.index is None else device.index  # it takes no "cuda" without one
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


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
        if given.musubi:
            Musubi(given.musubi)  # is it a checkout?
        results = run(known_device(given.device), given.minutes, given.out, given.small, given.musubi)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    wrong = sum(row["right"] == "NO" for row in results.checks)
    failed = sum("error" in row for row in results.steps)
    print(f"{len(results.checks)} checks, {wrong} wrong; {len(results.steps)} configurations, {failed} not to be had; {given.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
