"""`--vram`: the settings with which a training fits into so much memory, and what to say where it cannot.

Savers are tried in the order of the table until the plan fits; what the user gave stays. A further way of saving memory is one more row.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..memory import gpus
from ..memory.estimate import DECODING, IMAGES, MARGIN, PROMPTS, SAMPLING, Estimate, size
from ..options.values import gigabytes

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
ATTENTIONS = ("sdpa", "flash_attn", "flash3", "xformers")
SWAP = "blocks_to_swap"
WAITING_TEXTS = "offload_text_encoder"

Given = dict[str, Any]
Plan = Callable[[Mapping[str, Any]], Estimate]


@dataclass(frozen=True)
class Saver:
    """changes: options and the values that save memory. cost: what it costs."""

    changes: Mapping[str, Any]
    cost: str


SAVERS = (
    Saver({"gradient_checkpointing": True}, "blocks are computed again in backward: about a third more computing"),
    Saver({"vae_cache_cpu": True}, "features of the VAE wait in system RAM while samples are decoded: slower samples"),
    Saver({"vae_chunk_size": 32}, "the VAE works on columns while samples are decoded: slower samples"),
    Saver({"vae_tiling": True}, "samples are decoded in tiles and blended: slower samples"),
    Saver({"vae_spatial_tile_sample_min_size": 128}, "samples are decoded in small tiles and blended: slower samples"),
    Saver(
        {"fp8_base": True, "fp8_scaled": True},
        "the frozen weights are rounded to 8 bits: a little less exact (--w8a8 instead takes about "
        "as much, multiplies faster and rounds activations too; it is never chosen)",
    ),
    Saver({"fp8_t5": True, "fp8_llm": True}, "the text encoder of samples is rounded to 8 bits, which changes them a little"),
    Saver({WAITING_TEXTS: True}, "the text encoder of samples waits in system RAM and comes layer by layer: seconds, once"),
    Saver({SWAP: 0}, "blocks wait in system RAM and are copied in each step: free while a copy is shorter than the computing"),
    Saver({"gradient_checkpointing_cpu_offload": True}, "inputs of blocks wait in system RAM: a little slower"),
)
"""What costs least first. Of `SWAP` as many are taken as are needed. One is taken where a phase that does not fit takes less with it."""

SPENDER = "keep_attention_blocks"
"""What is done with memory that is left: each of so many blocks runs its attention once instead of twice."""

RESTING = "offload_inactive_dit"
"""Keeps a whole expert on the device, so that none of its blocks can be swapped; gives way where a training fits, or takes less, with both
experts swapped."""

SPARE = 0.05
"""Of what is free on a GPU, what `auto` leaves: PyTorch's allocator cannot use every byte, and what is chosen goes up to the limit."""

CHOSEN = (*(name for saver in SAVERS for name in saver.changes), SPENDER)
"""All options that may be chosen, but for the attention."""


@dataclass(frozen=True)
class Chosen:
    """values: of all options. taken: those that were chosen, by name; costs: of each."""

    values: Given
    estimate: Estimate
    taken: Given = field(default_factory=dict)
    costs: tuple[str, ...] = ()

    @property
    def flags(self) -> str:
        """As on a command line."""
        return " ".join(_flag(name, value) for name, value in self.taken.items())


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"(without --{name})"
    return f"--{name} {value}"


def limit_of(vram: str | None, device: torch.device) -> int | None:
    """Bytes that a training may take: so many GB, or what is free on the device (of a CPU: of its RAM), for `auto` but for `SPARE`."""
    import torch

    if vram == OFF:
        return None
    number = None if vram is None else gigabytes(vram)
    if number is not None:
        return int(number * 1e9)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        there = int(free) + torch.cuda.memory_reserved(device)
        return int(there * (1 - SPARE)) if vram == AUTO else there
    import psutil

    return int(psutil.virtual_memory().available)


def choose(values: Mapping[str, Any], plan: Plan, limit: int) -> Chosen:
    """The cheapest savers with which the plan fits, or all of them where it never does. values: of all options of the trainer."""
    chosen = _cheapest(values, plan, limit)
    if chosen.estimate.fits(limit) or not values.get(RESTING):
        return chosen
    other = _cheapest({**values, RESTING: False}, plan, limit)
    if other.estimate.excess(limit) >= chosen.estimate.excess(limit):
        return chosen
    cost = f"without --{RESTING}: blocks of both experts are swapped instead, as one whole expert takes too much"
    return replace(other, taken={**other.taken, RESTING: False}, costs=(*other.costs, cost))


def _cheapest(values: Mapping[str, Any], plan: Plan, limit: int) -> Chosen:
    chosen: Given = dict(values)
    taken: Given = {}
    if not any(chosen.get(name) for name in ATTENTIONS):
        taken["sdpa"] = chosen["sdpa"] = True
    free = {name for saver in SAVERS for name in saver.changes if name in chosen and (chosen[name] is None or chosen[name] is False)}
    found = plan(chosen)
    for saver in SAVERS:
        if found.fits(limit):
            break
        changes = {name: value for name, value in saver.changes.items() if name in free}
        better = _with(chosen, changes, plan, limit, found) if changes else None
        if better is not None:
            changes, found = better
            chosen |= changes
            taken |= changes
    if found.fits(limit):
        found = _taken_back(values, chosen, taken, plan, limit, found)
    given = ((saver, {name: taken[name] for name in saver.changes if name in taken}) for saver in SAVERS)
    costs = [f"{_words(changes)}: {saver.cost}" for saver, changes in given if changes]
    if chosen.get("gradient_checkpointing") and found.fits(limit) and _can_keep(chosen) and not chosen.get(SPENDER, True):
        spent = _most(chosen, plan, limit)
        if spent is not None:
            changes, found = spent
            chosen |= changes
            taken |= changes
            costs.append(f"{_words(changes)}: memory that is left, so that these blocks run their attention once")
    return Chosen(chosen, found, taken, tuple(costs))


def _taken_back(values: Mapping[str, Any], chosen: Given, taken: Given, plan: Plan, limit: int, found: Estimate) -> Estimate:
    """The plan with fewer savers: a later one may have made room, so those go, from the last to the first, without which it fits too.
    values: before any was taken."""
    if SWAP in taken:
        changes, found = _fewest(chosen, plan, lambda one: one.excess(limit), 1, found.swappable) or ({}, found)
        chosen |= changes
        taken |= changes
    for saver in reversed(SAVERS):
        before = {name: values[name] for name in saver.changes if name in taken}
        without = plan({**chosen, **before}) if before else None
        if without is not None and without.fits(limit):
            found = without
            chosen |= before
            for name in before:
                del taken[name]
    return found


def _can_keep(values: Given) -> bool:
    """Compiled blocks keep PyTorch's attention only (`layers.attention.with_compiler`)."""
    compiled = values.get("compile") or values.get("dynamo_backend", "NO") != "NO"
    return not compiled or bool(values.get("sdpa") and not values.get("split_attn"))


LESS = 0.15
"""Of what a phase that ran out takes by its plan, what stepping down saves if it can: its plan was wrong, or others use the GPU."""

STEPS_DOWN: tuple[Given, ...] = (
    {"vae_cache_cpu": True}, {"vae_chunk_size": 32}, {"vae_tiling": True}, {"vae_spatial_tile_sample_min_size": 128},
    {SPENDER: 0}, {"accumulate_by_block": False}, {"gradient_checkpointing": True}, {SWAP: 0}, {"gradient_checkpointing_cpu_offload": True},
)  # fmt: skip
"""What saves memory and changes nothing that is learned. Those that a phase gains nothing from are left out."""


def lowered(values: Mapping[str, Any], plan: Plan, phase: str) -> Chosen | None:
    """The settings with which that phase takes less by `LESS`, or by as much as can be; None where nothing takes less. What was given
    does not stay."""

    def needed(found: Estimate) -> int:
        return next((one.total for one in found.phases if one.name == phase), found.peak)

    chosen: Given = dict(values)
    taken: Given = {}
    found = plan(chosen)
    goal = int(needed(found) * (1 - LESS))
    for changes in STEPS_DOWN:
        if needed(found) <= goal:
            break
        if any(name not in chosen for name in changes) or (SWAP not in changes and changes.items() <= chosen.items()):
            continue
        if SWAP in changes:
            better = _fewest(chosen, plan, lambda one: max(0, needed(one) - goal), (chosen[SWAP] or 0) + 1, found.swappable)
        else:
            better = changes, plan({**chosen, **changes})
        if better is not None and needed(better[1]) < needed(found):
            changes, found = better
            chosen |= changes
            taken |= changes
    return Chosen(chosen, found, taken) if taken else None


def _with(values: Given, changes: Given, plan: Plan, limit: int, before: Estimate) -> tuple[Given, Estimate] | None:
    """What of the changes helps, and the plan with it; None where nothing does."""
    if SWAP in changes:
        return _fewest(values, plan, lambda one: one.excess(limit), 1, before.swappable, before.excess(limit))
    for some in (changes, dict(list(changes.items())[:1])):
        try:
            found = plan({**values, **some})
        except UserError:  # this file or model cannot have it
            continue
        return (some, found) if found.excess(limit) < before.excess(limit) else None
    return None


def _fewest(
    values: Given, plan: Plan, excess: Callable[[Estimate], int], least: int, most: int, before: int | None = None
) -> tuple[Given, Estimate] | None:
    """The fewest blocks to swap, from `least` to `most`, with which as little is too much as can be: nothing, where it fits; None where
    none helps. Each one more takes no more memory, so halves are looked at. excess: bytes; before: those without any."""
    if least > most:
        return None
    try:
        best = most, plan({**values, SWAP: most})
    except UserError:  # a setting does not go together with swapped blocks
        return None
    goal = excess(best[1])
    if before is not None and goal >= before:
        return None

    def enough(count: int) -> bool:
        nonlocal best
        found = plan({**values, SWAP: count})
        if excess(found) > goal:
            return False
        best = count, found
        return True

    bisect_left(range(least, most), True, key=enough)
    return {SWAP: best[0]}, best[1]


def _most(values: Given, plan: Plan, limit: int) -> tuple[Given, Estimate] | None:
    """The most blocks whose attention can be kept so that it fits; None where that makes none faster. Each one more takes more memory, so
    halves are looked at."""
    before = plan(values)
    plans: dict[int, Estimate] = {}

    def too_many(count: int) -> bool:
        plans[count] = plan({**values, SPENDER: count})
        return not plans[count].fits(limit)

    count = bisect_left(range(1, before.blocks), True, key=too_many)
    return ({SPENDER: count}, plans[count]) if count and plans[count].operations < before.operations else None


def _words(changes: Mapping[str, Any]) -> str:
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in changes.items())


def fitted(values: Mapping[str, Any], plan: Plan, device: torch.device, kept: Mapping[str, Any], agreed: Callable[[int], int]) -> Given:
    """The values of all options with what `--vram` chose, after saying what the training needs. kept: what a state was
    trained with. agreed: the main process' number.

    UserError where it cannot fit, which names what would; on a CPU without a number of GB that is a warning, as its RAM can be extended.
    """
    vram = values.get("vram")
    limit = limit_of(vram, device)
    if limit is None:
        return dict(values)
    limit = agreed(limit)
    if vram is None:
        found = plan(values)
        _say(found, limit, device)
        if not found.fits(limit):
            _cannot(found, limit, choose(values, plan, limit), device, certain=found.cannot_fit(limit))
        return dict(values)
    start = {**values, **{name: kept[name] for saver in SAVERS for name in saver.changes if kept.get(name)}}
    chosen = choose(start, plan, limit)
    logger.info("--vram %s: %s", vram, chosen.flags or "nothing had to be chosen")
    for cost in chosen.costs:
        logger.info("  %s", cost)
    _say(chosen.estimate, limit, device)
    if not chosen.estimate.fits(limit):
        _cannot(chosen.estimate, limit, chosen, device, certain=chosen.estimate.cannot_fit(limit), number=vram != AUTO)
    return chosen.values


def _say(found: Estimate, limit: int, device: torch.device) -> None:
    """What it needs; on a GPU also how long a step takes."""
    speed = gpus.of_device(device)
    pace = "" if speed is None else f"; a step takes about {speed.seconds(found.operations, found.to_device):.1f} s ({speed.source})"
    logger.info("%s%s", found.sentence(limit), pace)


_SMALLER = {
    PROMPTS: "the text encoder of samples alone is too large, so leave --sample_prompts out",
    **dict.fromkeys((IMAGES, SAMPLING, DECODING), "use smaller or shorter samples, or leave --sample_prompts out"),
}
"""What helps where the training itself is not what takes most."""


def _cannot(found: Estimate, limit: int, better: Chosen, device: torch.device, *, certain: bool, number: bool = False) -> None:
    if better.estimate.fits(limit) and better.flags:
        advice = f"It would fit with {better.flags} ({size(better.estimate.peak)}), which --vram auto chooses"
    else:
        rest = _SMALLER.get(better.estimate.worst.name, "use fewer frames, a smaller resolution, or a batch_size of 1")
        less = better.estimate.peak < found.peak
        advice = f"{f'With all savers it needs {size(better.estimate.peak)}' if less else 'Nothing saves more'}: {rest}"
    text = f"this training {found.sentence(limit)}. {advice}"
    if certain and (number or device.type == "cuda"):
        raise UserError(f"{text}. --vram off starts it anyway: a plan may be wrong by {MARGIN:.0%}, and this one misses by more")
    logger.warning("%s", text)
