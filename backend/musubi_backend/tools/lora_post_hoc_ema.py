"""`lora_post_hoc_ema`: the checkpoints of one training averaged into one LoRA.

An exponential moving average over the files, oldest first: with a fixed decay, one that goes evenly from beta to beta2, or the power
function of arXiv 2312.02696 (section 3.1 and algorithm 2). It runs in float32, one tensor at a time; torch is never imported.
"""

from __future__ import annotations

import contextlib
import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..counted import counted
from ..errors import UserError
from ..lora.ema_schedule import averaged_name, counted_once, linear_betas, power_betas
from ..weights.arrays import TensorFile, as_bytes, from_float32, is_float
from ..weights.safetensors_file import TensorInfo, read_header
from ..weights.streamed_file import Target, refuse_inputs, write
from .settings import AverageSettings

logger = logging.getLogger(__name__)

_ALPHA = ".alpha"


@dataclass(frozen=True)
class _Average:
    """One LoRA to write: the decay before each file after the first, and where it goes."""

    betas: tuple[float, ...]
    output: Path


def run(args: Namespace) -> None:
    """Average `--path` into `--output_file`. UserError names the files and the key that do not fit each other."""
    settings = AverageSettings.read(args)
    paths = [Path(path) for path in settings.path]
    if not settings.no_sort:
        print("Sorting files by modification time...")
        paths.sort(key=lambda path: path.stat().st_mtime)
    paths = _once_each(paths)
    averages = _averages(settings, len(paths) - 1)
    refuse_inputs([average.output for average in averages], paths, "--output_file")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in paths]
        print(f"Loading metadata from {paths[-1]}")
        print("Metadata found, using metadata from the last file.")
        _check(files, averages)
        _write(files, averages, settings.cpu_threads)
    print("Merging completed successfully.", flush=True)


def _once_each(paths: list[Path]) -> list[Path]:
    """Without files that are the same step as a later one: the end of a training is often there under a second name."""
    kept = counted_once([read_header(path).metadata for path in paths])
    for index in sorted({*range(len(paths))} - {*kept}):
        print(f"{paths[index]} is the same step as a later file and is left out, so that it counts once")
    return [paths[index] for index in kept]


def _averages(settings: AverageSettings, steps: int) -> list[_Average]:
    output = Path(settings.output_file)
    if settings.sigma_rels:
        if settings.sigma_rel is not None:
            raise UserError("--sigma_rel and --sigma_rels exclude each other: give one width, or a list of them")
        return [_Average(power_betas(width, steps), averaged_name(output, width)) for width in dict.fromkeys(settings.sigma_rels)]
    if settings.sigma_rel is not None:
        return [_Average(power_betas(settings.sigma_rel, steps), output)]
    return [_Average(linear_betas(settings.beta, settings.beta2, steps), output)]


def _check(files: Sequence[TensorFile], averages: Sequence[_Average]) -> None:
    """Print what musubi-tuner prints while it works, and reject files that do not belong together."""
    first = files[0]
    print(f"Loading weights from {first.path}")
    for key, info in first.tensors.items():
        if not is_float(info.dtype):
            print(f"Skipping non-floating point tensor: {key}")
    for index, file in enumerate(files[1:]):
        shown = ", ".join(f"{average.betas[index]:.4f}" for average in averages)
        print(f"Loading weights from {file.path} for merging with beta={shown}", flush=True)
        for key, info in file.tensors.items():
            _check_tensor(first, file, key, info)
        missing = [key for key in first.tensors if key not in file.tensors]
        if missing:
            logger.warning("%s lacks %s, such as %s: those are averaged without it", file.path, counted(len(missing), "tensor"), missing[0])


def _check_tensor(first: TensorFile, file: TensorFile, key: str, info: TensorInfo) -> None:
    known = first.tensors.get(key)
    if key.endswith(_ALPHA):
        if known is not None and not np.isclose(first.number(key), file.number(key)):
            raise UserError(
                f"Alpha tensors for key {key} do not match across files: {first.number(key):g} in {first.path}, {file.number(key):g} in "
                f"{file.path}. Only checkpoints of one training can be averaged"
            )
    elif not is_float(info.dtype):
        print(f"Skipping non-floating point tensor: {key}")
    elif known is None:
        raise UserError(
            f"Key {key} of {file.path} is not found in the first file, {first.path}. Only checkpoints of one training can be averaged"
        )
    elif known.shape != info.shape:
        raise UserError(
            f"{key} is {list(known.shape)} in {first.path} and {list(info.shape)} in {file.path}. Only checkpoints of one training, "
            "with one rank, can be averaged"
        )


def _write(files: Sequence[TensorFile], averages: Sequence[_Average], threads: int | None) -> None:
    first = files[0]
    specs = {key: (info.dtype, info.shape) for key, info in first.tensors.items()}
    targets = [Target(average.output, files[-1].header.metadata, hashed=True) for average in averages]
    all_betas = [average.betas for average in averages]
    print("Updating metadata with new hashes.")
    for target in targets:
        print(f"Saving merged weights to {target.path}", flush=True)
    write(targets, specs, lambda key: _average(files, key, all_betas), "averaging", threads)


def _average(files: Sequence[TensorFile], key: str, all_betas: Sequence[Sequence[float]]) -> list[memoryview]:
    """The averages of one tensor, one for each schedule."""
    first = files[0]
    dtype = first.tensors[key].dtype
    if key.endswith(_ALPHA) or not is_float(dtype):
        return [as_bytes(first.array(key))] * len(all_betas)
    start = first.float32(key)
    states = [start.copy() for _ in all_betas[1:]] + [start]
    for index, file in enumerate(files[1:]):
        if key not in file.tensors or not is_float(file.tensors[key].dtype):
            continue
        value = file.float32(key)
        for state, betas in zip(states, all_betas, strict=True):
            beta = betas[index]
            state *= np.float32(beta)
            state += value * np.float32(1 - beta)
    return [as_bytes(from_float32(state, dtype)) for state in states]
