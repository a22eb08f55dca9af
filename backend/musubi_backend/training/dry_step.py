"""`--dry_step`: one real step of the largest batch, measured beside its plan. Nothing is saved."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .. import job
from ..layers.experts import experts_of
from ..lora.working import copies_at_work
from ..memory.estimate import KEPT, LORA, STEP, UPDATE, WEIGHTS, WORKING, Estimate, size
from ..memory.live_bytes import LiveBytes
from ..memory.plan import MemoryPlan
from . import vram
from .planned_batch import largest, on_meta
from .planning import Planner

if TYPE_CHECKING:
    from .loop import Loop

logger = logging.getLogger(__name__)


def run(loop: Loop, given: Mapping[str, Any]) -> None:
    """The second of two steps is measured: the first makes the optimizer's state and warms up. given: the values of all options as they
    were given; with `--vram` among them it is chosen again by what was measured."""
    job.phase("one dry step")
    run, device = loop.run, loop.device
    run.choice.train()
    chosen = largest(run.dataset)
    _step(loop, [loop._load(chosen)] * loop.at_once, 0)
    batches = [loop._load(chosen)] * loop.at_once
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # else it would still be at the first step
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    found = _step(loop, batches, loop.at_once)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found = torch.cuda.max_memory_allocated(device)
    seconds = (time.perf_counter() - start) * run.settings.length.gradient_accumulation_steps / loop.at_once
    planner = Planner(on_meta(run.dataset.collate(chosen)), run.dtype, device)
    plan = planner.estimate(run.settings, run.architecture)
    parts = next(phase for phase in plan.phases if phase.name == STEP).parts
    planned = _planned(loop, plan)
    what = "took" if device.type == "cuda" else "made tensors of"
    logger.info(
        "dry step: %s %s, planned %s (%+.0f%%), in %.1f s; the training will take %.1f hours. Nothing was saved",
        what, size(found), size(planned), 100 * (planned / found - 1), seconds, seconds * run.total_steps / 3600,
    )  # fmt: skip
    limit = vram.limit_of(given["vram"], device)
    if given["vram"] is not None and limit is not None:
        work = parts[KEPT] + parts[WORKING]
        share = (found - planned + work) / work
        again = vram.choose(given, lambda values: corrected(planner.of(run.architecture)(values), share), limit)
        logger.info("--vram %s, by what was measured: %s; %s", given["vram"], again.flags, again.estimate.sentence(limit))


def _planned(loop: Loop, plan: Estimate) -> int:
    """Bytes of what is measured: on a GPU of all, on a CPU of what a step makes, which is no less than the LoRA's gradients at its end."""
    step, update = (next(phase for phase in plan.phases if phase.name == name).parts for name in (STEP, UPDATE))
    if loop.device.type == "cuda":
        return max(sum(parts.get(name, 0) for name in (WEIGHTS, LORA, KEPT, WORKING)) for parts in (step, update))
    memory = MemoryPlan.chosen(loop.run.settings.memory)
    buffers = sum(memory.buffers(model) for model in experts_of(loop.run.transformer).values())
    return buffers + max(step[KEPT] + step[WORKING], update[LORA] - step[LORA] + update[WORKING])


def corrected(plan: Estimate, share: float) -> Estimate:
    """With so much of what a training step keeps and makes as was measured: 1.1 for a tenth more than planned."""
    phases = [
        replace(phase, parts={name: int(part * share) if name in (KEPT, WORKING) else part for name, part in phase.parts.items()})
        if phase.name == STEP
        else phase
        for phase in plan.phases
    ]
    return replace(plan, phases=tuple(phases))


def _step(loop: Loop, batches: list[dict[str, Any]], micro_step: int) -> int:
    """Bytes of tensors on a CPU that the step made at its worst; 0 on a GPU, which counts by itself."""
    if loop.device.type == "cuda":
        loop.forward_and_backward(batches, micro_step)
        peak = 0
    else:
        with loop.run.network.working_in(loop.run.dtype):  # copies that stay from step to step
            copies = copies_at_work(loop.run.network)
        there = [*loop.run.transformer.parameters(), *loop.run.transformer.buffers(), *loop.parameters, *copies]
        count = LiveBytes(loop.device, there)
        with count:
            loop.forward_and_backward(batches, micro_step)
        peak = count.peak
    loop.run.choice.optimizer.step()
    loop.run.choice.optimizer.zero_grad(set_to_none=True)
    return peak
