"""What the optimizers of the table cost, and where they get to.

    python -m benchmarks.optimizers steps               time of a step and bytes of state, on 32 matrices of a LoRA (rank 16, width 768)
    python -m benchmarks.optimizers regression NAME ... where a training gets to, after an equal search of the learning rate; all by default
    python -m benchmarks.optimizers wan NAME ...        the same on a tiny Wan

Run with the backend's python, one thread, from the repository's root. Those whose package is not installed are left out and named.

Every optimizer gets the same budget on each task: eight learning rates in half decades, from a tenth of its usual one up, one seed, all
else as the table has it; then five other seeds with the best. Rates rise over a twentieth of the steps and fall with a cosine, but for
schedule-free ones.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from musubi_backend.errors import UserError
from musubi_backend.optimizers import registry
from musubi_backend.optimizers.entry import Entry
from musubi_backend.training import optimizers
from musubi_backend.training.settings import OptimizerSettings
from torch import Tensor

from .optimizer_tasks import TASKS, Task, lora

TUNING, FRESH = 0, (10, 11, 12, 13, 14)
HALF_DECADES = range(-2, 6)
EVERY, ROUNDS = 10, 40
DIVERGED = 10.0
GOAL = 1.5  # times the loss that AdamW ends with


def make(entry: Entry, named: Sequence[tuple[str, Tensor]], rate: float, *arguments: str) -> optimizers.Choice:
    """As a training makes it; Adafactor with a rate, as all others have one, and bitsandbytes with 8 bits for small weights too."""
    fixed: tuple[str, ...] = ("relative_step=False", "scale_parameter=False") if entry.name == "Adafactor" else ()
    fixed = ("min_8bit_size=0",) if entry.needs == "bitsandbytes" else fixed
    settings = OptimizerSettings(optimizer_type=entry.name, optimizer_args=(*fixed, *arguments))
    groups = [{"params": [weight for _, weight in named], "lr": rate}]
    return optimizers.build(settings, rate, groups, {id(weight): name for name, weight in named})


def held(choice: optimizers.Choice) -> int:
    """Bytes of all tensors in an optimizer's state."""
    values = [value for state in choice.optimizer.state.values() for value in state.values()]
    tensors = [one for value in values for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, Tensor)]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def cost(entry: Entry) -> tuple[float, float, float]:
    """CPU milliseconds of a step, over those of AdamW with foreach, and bytes of state for each weight. Steps of both are taken in turns,
    and the fastest count."""
    adamw = registry.find("AdamW")
    assert adamw is not None
    chance = torch.Generator().manual_seed(1)
    # As in a training, which frees large activations: until then glibc gives memory of more than 128 KB back to the system at once, and a
    # step would mostly measure how its pages are filled with zeros.
    torch.empty(30 << 18).zero_()
    sides = []
    for one, arguments in ((entry, ()), (adamw, ("foreach=True",))):
        named = lora([(768, 768)] * 16, 16, 0)
        choice = make(one, named, one.learning_rate, *arguments)
        choice.train()
        sides.append((choice, [weight for _, weight in named], list[float]()))
    for _ in range(ROUNDS):
        for choice, weights, times in sides:
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=chance) * 1e-3
            begin = time.process_time()
            choice.optimizer.step()
            times.append(time.process_time() - begin)
    (choice, weights, ours), (_, _, reference) = sides
    return min(ours) * 1e3, min(ours) / min(reference), held(choice) / sum(weight.numel() for weight in weights)


@dataclass(frozen=True)
class Training:
    """What came of one: the loss at the end, and step -> loss."""

    loss: float
    course: dict[int, float]

    def reached(self, goal: float) -> float:
        return next((step for step, loss in self.course.items() if loss <= goal), math.inf)


def train(entry: Entry, rate: float, task: Task, steps: int) -> Training:
    choice, course = make(entry, task.named, rate), {}
    choice.train()
    for step in range(1, steps + 1):
        if not choice.schedule_free:
            share = min(1.0, step / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            for group in choice.optimizer.param_groups:
                group["lr"] = rate * share
        task.loss().backward()
        choice.optimizer.step()
        choice.optimizer.zero_grad()
        if step % EVERY == 0:
            choice.eval()
            loss = task.held_out()
            choice.train()
            course[step] = loss if loss < DIVERGED else DIVERGED  # also what is no number
            if course[step] == DIVERGED:
                break
    return Training(course[max(course)], course)


def best_rate(entry: Entry, kind: Callable[[int], Task], steps: int) -> float:
    rates = [entry.learning_rate * 10 ** (power / 2) for power in HALF_DECADES]
    return min(rates, key=lambda rate: train(entry, rate, kind(TUNING), steps).loss)


def costs(entries: Sequence[Entry]) -> Iterator[str]:
    yield "| optimizer | step, ms | × AdamW (foreach) | state, bytes per weight |\n|---|---|---|---|"
    for entry in entries:
        milliseconds, ratio, size = cost(entry)
        yield f"| {entry.name} | {milliseconds:.2f} | {ratio:.2f} | {size:.2f} |"


def courses(entries: Sequence[Entry], what: str) -> Iterator[str]:
    """Lines of a table; the first entry is AdamW. Its loss with the same seed is what the others are over: how hard a task is differs much
    from seed to seed."""
    (kind, steps), reference = TASKS[what], list[float]()
    yield "| optimizer | best rate | loss at the end, ×1e-3 | over AdamW's of the same seed | steps to the goal (seeds) | CPU s |"
    yield "|---|---|---|---|---|---|"
    for entry in entries:
        begin = time.process_time()
        rate = best_rate(entry, kind, steps)
        trainings = [train(entry, rate, kind(seed), steps) for seed in FRESH]
        losses = [one.loss for one in trainings]
        reference = reference or losses
        over = [math.log(loss / usual) for loss, usual in zip(losses, reference, strict=True)]
        reached = sorted(one.reached(GOAL * statistics.fmean(reference)) for one in trainings)
        there = [step for step in reached if step < math.inf]
        yield " | ".join((
            f"| {entry.name}", f"{rate:.1e}", f"{statistics.fmean(losses) * 1e3:.2f} ± {statistics.stdev(losses) * 1e3:.2f}",
            f"{math.exp(statistics.fmean(over)):.2f} (× or ÷ {math.exp(statistics.stdev(over)):.2f})",
            f"{statistics.median(reached):.0f} ({len(there)}/{len(reached)})".replace("inf", "–"),
            f"{time.process_time() - begin:.1f} |",
        ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", *TASKS))
    parser.add_argument("names", nargs="*", help="of optimizers; all by default. AdamW, which sets the goal, always comes first")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    wanted = {registry.plain(name) for name in asked.names}
    chosen = []
    for entry in registry.ENTRIES:
        if entry.name.startswith("Paged") and registry.plain(entry.name) not in wanted:
            continue  # the same as the others on a CPU
        if entry.name != "AdamW" and wanted and registry.plain(entry.name) not in wanted:
            continue
        try:
            make(entry, lora([(8, 8)], 4, 0), entry.learning_rate)
        except UserError as error:
            print(f"{entry.name} is left out: {error}", file=sys.stderr)
        else:
            chosen.append(entry)
    for line in costs(chosen) if asked.what == "steps" else courses(chosen, asked.what):
        print(line, flush=True)


if __name__ == "__main__":
    main()
