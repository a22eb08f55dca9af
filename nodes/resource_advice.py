"""What the numbers of a machine mean for a training, in words: what is full, who takes it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 1 << 30
_FULL, _ROOMY = 0.95, 0.6  # shares of a memory
_NOTABLE = GB // 2
_SWAPPED = 2 * GB


@dataclass(frozen=True)
class Working:
    """A job that goes on. held: GPU memory that it says it holds, in bytes; swaps: it offloads blocks to system RAM."""

    name: str
    pid: int
    held: int | None = None
    swaps: bool = False


def advice(seen: Mapping[str, Any], working: Sequence[Working], own_pid: int) -> Iterator[str]:
    """seen: the report of the tool `resources`; own_pid: the process that runs the nodes. One sentence each, the worst first."""
    ours = {pid: job for job in working for pid in _tree(seen, job.pid)}
    gpus = seen["gpus"]
    if seen["system"] == "Windows" and len(gpus) == 1:
        yield from _spilled(gpus[0], working)
    for gpu in gpus:
        yield from _of_gpu(gpu, ours, own_pid)
    ram, swap = seen["ram"], seen["swap"]
    if ram["used"] > _FULL * ram["total"]:
        more = ", lower blocks_to_swap (what is swapped lies there)" if any(job.swaps for job in working) else ""
        yield f"System RAM is full ({_of(ram)}): close programs, lower max_data_loader_n_workers{more}."
    elif swap["used"] > _SWAPPED and ram["used"] > _ROOMY * ram["total"]:
        yield f"{_gb(swap['used'])} of RAM were moved to the disk: what needs them waits for the disk. Close programs."


def _spilled(gpu: Mapping[str, Any], working: Sequence[Working]) -> Iterator[str]:
    """Windows gives out more GPU memory than there is, in system RAM: what a process holds then is more than the card has in use."""
    for job in working:
        if job.held is not None and job.held - gpu["used"] > _NOTABLE:
            yield (
                f"{job.name} holds {_gb(job.held)} of GPU memory and only {_gb(gpu['used'])} of {gpu['name']} are in use: the rest, at "
                f"least {_gb(job.held - gpu['used'])}, lies in shared memory (system RAM), which makes each step many times slower. "
                "Lower frames or size, or raise blocks_to_swap, until it fits."
            )
            return
    if gpu["used"] > _FULL * gpu["total"]:
        yield (
            "Windows moves GPU memory into system RAM once the card is full, which makes each step many times slower. The NVIDIA control "
            "panel can forbid it (CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback); then there is an error instead."
        )


def _of_gpu(gpu: Mapping[str, Any], ours: Mapping[int, Working], own_pid: int) -> Iterator[str]:
    name = gpu["name"]
    trains = [job for pid, job in ours.items() if any(one["pid"] == pid for one in gpu["processes"])]
    if gpu["peak"] > _FULL * gpu["total"]:
        yield f"{name} is full ({_of(gpu)}): fewer frames or a smaller size, fp8_base, or more blocks_to_swap."
    elif trains and any(job.swaps for job in trains) and gpu["peak"] < _ROOMY * gpu["total"]:
        yield f"{_gb(gpu['total'] - gpu['peak'])} of {name} stay free: with fewer blocks_to_swap the training is faster."
    for one in gpu["processes"]:
        if one["used"] is None or one["used"] < _NOTABLE or one["pid"] in ours:
            continue
        if one["pid"] == own_pid:
            if ours:
                yield f"ComfyUI's own models take {_gb(one['used'])} of {name}: unload them (Edit, Unload Models) while a training goes on."
        else:
            yield f"{one['name'] or 'another program'} ({one['pid']}) takes {_gb(one['used'])} of {name}; closing it frees them."
    if gpu["hot"]:
        yield f"{name} is slowed by heat ({gpu['temperature']} °C): see to its fans, or lower its power limit."


def lines(seen: Mapping[str, Any], working: Sequence[Working], own_pid: int, own_name: str = "ComfyUI") -> Iterator[str]:
    """The numbers, a line for each thing."""
    named = {pid: job.name for job in working for pid in _tree(seen, job.pid)} | {own_pid: own_name}
    for gpu in seen["gpus"]:
        told = [f"{gpu['busy']} % busy" if gpu["busy"] is not None else "", f"{gpu['temperature']} °C" if gpu["temperature"] else ""]
        yield " · ".join([f"GPU {gpu['index']}, {gpu['name']}: {_of(gpu)}, at most {_gb(gpu['peak'])}", *filter(None, told)])
        for one in gpu["processes"]:
            used = "not told by the driver" if one["used"] is None else f"{_gb(one['used'])}, at most {_gb(one['peak'])}"
            yield f"  {named.get(one['pid'], one['name'])} ({one['pid']}): {used}"
    if seen["gpu_problem"]:
        yield seen["gpu_problem"]
    yield f"system RAM: {_of(seen['ram'])}, at most {_gb(seen['ram']['peak'])}"
    for one in seen["processes"]:
        yield f"  {named.get(one['pid'], one['name'])} ({one['pid']}): {_gb(one['used'])}, at most {_gb(one['peak'])}"
    if seen["swap"]["used"]:
        yield f"moved to the disk: {_of(seen['swap'])}"


def _tree(seen: Mapping[str, Any], pid: int) -> list[int]:
    """A process with all that it started."""
    return next((one["pids"] for one in seen["processes"] if one["pid"] == pid), [pid])


def _of(memory: Mapping[str, Any]) -> str:
    return f"{_gb(memory['used'])} of {_gb(memory['total'])}"


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"
