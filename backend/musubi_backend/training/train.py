"""The train verb: from arguments to a trained LoRA.

What can be wrong is checked first, from headers; then text encoder, transformer, network and optimizer are built in this order,
each freed before the next where it is not needed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic, events, exhausted, job, place
from ..architectures.precision import asked_precision
from ..dataset.batches import CachedDataset, CachedItem
from ..dataset.config import load_config
from ..dataset.held_out import hold_out
from ..errors import UserError
from ..layers import offloaded
from ..lora import run_network
from ..memory import sharding
from ..memory.compiling import Compilation
from . import (
    agreement,
    checkpoints,
    continuing,
    course,
    distributed,
    launched,
    metadata,
    optimizers,
    output_lock,
    resuming,
    saved_states,
    show_timesteps,
    vram,
)
from .built import build
from .lean_torch import leave_compiler_out
from .leaving import say_who_is_gone
from .loop import Loop
from .rehearsal import rehearse
from .run import Run
from .samples import Samples
from .settings import TrainingSettings, ValidationSettings
from .trackers import Trackers, chosen

if TYPE_CHECKING:
    import torch

    from ..architectures.protocol import Architecture

logger = logging.getLogger(__name__)

_MUCH = 0.1  # of the RAM


@dataclass(frozen=True)
class Precision:
    """What the transformer computes in. name: as `--mixed_precision` says it, never "auto"."""

    name: str
    dtype: torch.dtype


def run(args: Namespace, architecture: Architecture) -> None:
    """Train a LoRA. UserError for bad input, StopRequested when asked to stop (after saving)."""
    settings, architecture = TrainingSettings.read(args), architecture.configured(vars(args))
    if settings.show_timesteps:
        show_timesteps.show(settings)
        return
    launched.check(os.environ, fsdp=settings.memory.fsdp)
    precision = check(settings, architecture)
    if Compilation.chosen(settings.memory.compilation) is None:
        leave_compiler_out()
    with stopping_on_signals():
        _set_cuda(settings)
        processes, ended = distributed.start(settings.computing.ddp_timeout), None
        try:
            with _output(settings) if processes.is_main else contextlib.nullcontext():
                loop = prepare(settings, vars(args), architecture, processes, precision)
                with _exhausted_in_words(loop, vars(args)):
                    _dry(loop, vars(args)) if settings.dry_step else loop.start()
        except BaseException as error:
            if distributed.lost_another(error):
                say_who_is_gone(processes, error)
            ended = error
            raise
        finally:
            offloaded.unpin()
            processes.close(ended)


@contextlib.contextmanager
def _exhausted_in_words(loop: Loop, given: Mapping[str, Any]) -> Iterator[None]:
    """What runs out is said with the settings that are in use by then, not with those that were given."""
    try:
        yield
    except Exception as error:
        now = loop.run.values()
        message = exhausted.in_words(error, {name: now.get(name, value) for name, value in given.items()})
        if not message:
            raise
        raise UserError(message) from error


def _dry(loop: Loop, given: Mapping[str, Any]) -> None:
    from . import dry_step

    dry_step.run(loop, given)


def check(settings: TrainingSettings, architecture: Architecture) -> Precision:
    """Reject what the rules of the options cannot know, before any model is loaded."""
    metadata.resolution(settings.metadata.metadata_reso)
    optimizers.check(settings.optimizer)
    run_network.check(settings.network, architecture.card)
    name = asked_precision(settings.computing.mixed_precision)
    dtype = architecture.training_dtype(name)
    if name == "auto":
        name = {"float16": "fp16", "bfloat16": "bf16"}.get(str(dtype).removeprefix("torch."), "no")
        logger.info("mixed precision auto: computing in %s", dtype)
    chosen(settings.logging)
    return Precision(name, dtype)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn Ctrl-C and the terminate signal into a graceful stop; a second Ctrl-C ends at once, but never inside of a save. A launcher
    that lost another process may send any number of terminate signals."""

    def request(number: int, frame: Any) -> None:
        if not job.stop_requested():
            logger.warning("stopping; what was learned will be saved. Ctrl-C once more to end at once")
            job.request_stop()
        elif number == signal.SIGINT:
            job.interrupt()

    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _output(settings: TrainingSettings) -> Iterator[None]:
    """The output folder, for this training alone, and without what a killed one left half-way; so the folder of `--resume`."""
    folder, name, resume = Path(settings.saving.output_dir), settings.saving.output_name, settings.resuming.resume
    place.try_folder(folder, saved_states.names_of_run(name), f"--output_dir {folder} --output_name {name}")
    with output_lock.held(folder, name):
        saved_states.clean_leftovers(folder, name)
        for place_of_files in (folder, folder / "sample"):
            atomic.sweep(place_of_files)
        if resume:
            origin, origin_name = Path(resume).parent, saved_states.run_name(Path(resume))
            if output_lock.holder(output_lock.lock_file(origin, origin_name)) is None:  # not where one is being written
                saved_states.clean_leftovers(origin, origin_name)
        yield


def prepare(
    settings: TrainingSettings,
    given: Mapping[str, Any],
    architecture: Architecture,
    processes: distributed.Processes,
    precision: Precision,
) -> Loop:
    """Everything that is done once; the loop is at the place where it continues.

    given: the values of all options, which states and trackers record. precision: as `check` found it.
    """
    processes.wait()
    if settings.memory.fsdp:
        sharding.check(settings.memory.fsdp_sharding_strategy)
    saved = resuming.read(settings.resuming, processes)
    seed = processes.agreed(_seed(settings, saved))
    dataset, held = _held_out(open_dataset(settings, architecture), settings.validation, seed)
    given = _fitted(settings, given, architecture, precision, dataset, processes, saved)
    settings, architecture = TrainingSettings.read(given), architecture.configured(given)
    if saved is not None:
        weight_file = architecture.weight_file()
        settings = continuing.check(saved, settings, {**given, "mixed_precision": precision.name}, architecture, weight_file)
    agreement.check(processes, given, architecture, dataset, saved)
    samples = Samples(settings.sampling, settings.saving, architecture)
    every, digest = len(dataset.batches(seed, 1)), dataset.digest()
    batches, by_epochs = math.ceil(every / processes.count), settings.length.max_train_epochs
    begin = resuming.begin(saved, digest)
    total, epochs = astuple(course.plan(begin, every, processes.count, settings.length))
    settings = settings.changed(seed=seed, max_train_steps=total, mixed_precision=precision.name)  # as they are recorded
    rehearse(settings, run_network.rates(settings.network, settings.schedule.learning_rate, architecture.card), total, processes.device)
    if processes.is_main:
        print(f"accelerator device: {processes.device}", flush=True)
    logger.info("DiT precision: %s, weight precision: %s", precision.dtype, precision.dtype)
    if samples.come_late(total, epochs):
        logger.warning("--sample_prompts has no effect: the training ends at step %d, in epoch %d, before samples are due", total, epochs)
    samples.encode(processes.device)

    built = build(settings, architecture, processes.device, precision.dtype, seed, total)
    if by_epochs is not None:
        print(f"override steps. steps for {by_epochs} epochs is: {total}", flush=True)
    logger.info("use optimizer %s", built.choice.recorded)

    run_id = (saved.facts.get("run") if saved else None) or secrets.token_hex(8)
    values = {**given, **{name: value for name, value in settings.values().items() if name in given}}
    facts = metadata.RunFacts(len(dataset.items), batches, epochs, built.choice.recorded, built.acting, dataset.metadata(), len(held))
    files = checkpoints.Checkpoints(settings, architecture.card, metadata.training_metadata(settings, architecture.card, facts))
    recorded = continuing.facts_of(values, architecture.card, digest, processes.count, run_id)
    training = Run(
        settings, architecture, dataset, processes, precision.dtype, built.transformer, built.network, built.choice, built.schedule, seed,
        total, epochs, files, samples, Trackers(settings.logging, values, processes.is_main), recorded,
        held,
    )  # fmt: skip
    loop = Loop(training)
    processes.wait()  # a slow disk takes longer than the group for gradients waits
    if saved is not None:
        resuming.bring_to(loop, saved, begin, batches)
    _announce(training, batches)
    if processes.is_main:
        job.emit(events.Start(training.total_steps, loop.position.step, epochs, len(dataset.items)))
    return loop


def _fitted(
    settings: TrainingSettings,
    given: Mapping[str, Any],
    architecture: Architecture,
    precision: Precision,
    dataset: CachedDataset,
    processes: distributed.Processes,
    saved: saved_states.SavedState | None,
) -> Mapping[str, Any]:
    """The values of all options, with what `--vram` chose; where the training cannot fit, it ends here."""
    if not _is_planned(settings, architecture, processes.device):
        return given
    from .planned_batch import largest_batch
    from .planning import Planner

    job.phase("planning the memory")
    try:
        plan = Planner(largest_batch(dataset), precision.dtype, processes.device).of(architecture)
        return vram.fitted(given, plan, processes.device, saved.settings if saved else {}, processes.agreed)
    except UserError:
        raise
    except Exception as error:  # a training that would have fitted is not to fail for its plan
        logger.warning(
            "the memory could not be planned (%s: %s), so nothing is chosen for it; the training starts with the settings it was given",
            type(error).__name__, error,
        )  # fmt: skip
        return given


def _is_planned(settings: TrainingSettings, architecture: Architecture, device: torch.device) -> bool:
    """On a GPU always; on a CPU where it is asked for, or its model is no small part of the RAM: a plan takes a second or two."""
    if settings.vram is not None or device.type == "cuda":
        return settings.vram != vram.OFF
    import psutil

    files = sum(Path(path).stat().st_size for path in architecture.weight_files().values())
    return files > _MUCH * int(psutil.virtual_memory().total)


def _set_cuda(settings: TrainingSettings) -> None:
    """`--cuda_allow_tf32` and `--cuda_cudnn_benchmark`: only ever turned on, as their defaults are PyTorch's to choose."""
    import torch

    if settings.computing.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if settings.computing.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


def _seed(settings: TrainingSettings, saved: saved_states.SavedState | None) -> int:
    """The seed of the run: the state's, `--seed`, or a random one."""
    given = settings.length.seed
    if saved is not None and saved.seed is not None:
        if given is not None and given != saved.seed:
            logger.warning("--resume: the state's seed %d is used instead of --seed %d", saved.seed, given)
        return saved.seed
    return secrets.randbelow(2**32) if given is None else given


def open_dataset(settings: TrainingSettings, architecture: Architecture) -> CachedDataset:
    """The cached items. UserError where there are none."""
    path, buckets = settings.batches.dataset_config, settings.batches.num_timestep_buckets
    if buckets is not None:
        logger.info("Using timestep bucketing. Number of buckets: %d", buckets)
    logger.info("Load dataset config from %s", path)
    job.phase("reading the dataset")
    split = settings.validation.validation_split or None
    config = load_config(path, {"validation_split": split})
    dataset = CachedDataset.open(config, architecture.card, architecture.cache_forms(), num_timestep_buckets=buckets)
    if not dataset.items:
        raise UserError(f"no training items found for {path}: cache latents and text encoder outputs first, with the same dataset file")
    return dataset


def _held_out(dataset: CachedDataset, settings: ValidationSettings, seed: int) -> tuple[CachedDataset, tuple[CachedItem, ...]]:
    """What is trained on, and what is not. UserError where that cannot be."""
    trained, held = hold_out(dataset, seed if settings.validation_seed is None else settings.validation_seed)
    asked = [f"--{name}" for name, value in settings.values().items() if value and not held]
    if asked:
        logger.warning(
            "%s: nothing is held out, so there is no validation loss; give --validation_split, or validation_split in the dataset file",
            ", ".join(asked),
        )
    return trained, held


def _announce(run: Run, batches: int) -> None:
    if not run.processes.is_main:
        return
    sizes = ", ".join(str(dataset.batch_size) for dataset in run.dataset.config.datasets)
    print(
        "running training / 学習開始\n"
        f"  num train items / 学習画像、動画数: {len(run.dataset.items)}\n"
        + (f"  num validation items / 検証データ数: {len(run.held)}\n" if run.held else "")
        + f"  num batches per epoch / 1epochのバッチ数: {batches}\n"
        f"  num epochs / epoch数: {run.epochs}\n"
        f"  batch size per device / バッチサイズ: {sizes}\n"
        f"  gradient accumulation steps / 勾配を合計するステップ数 = {run.settings.length.gradient_accumulation_steps}\n"
        f"  total optimization steps / 学習ステップ数: {run.total_steps}",
        flush=True,
    )
    precision = run.settings.saving.save_precision
    reason = f"--save_precision {precision}" if precision else "default"
    logger.info("network weights will be saved as %s (%s)", run.checkpoints.dtype, reason)
    logger.info("DiT dtype: %s, device: %s", run.dtype, run.processes.device)
