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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic, events, job, place
from ..dataset.batches import CachedDataset
from ..dataset.config import load_config
from ..errors import UserError
from ..lora import run_network
from ..memory.compiling import Compilation
from . import checkpoints, continuing, distributed, metadata, optimizers, output_lock, saved_states, schedules, show_timesteps
from .lean_torch import leave_compiler_out
from .loop import Loop, Run
from .rehearsal import rehearse
from .samples import Samples
from .trackers import Trackers
from .voided import in_effect

if TYPE_CHECKING:
    import torch

    from ..architectures.protocol import Architecture

logger = logging.getLogger(__name__)


def run(args: Namespace, architecture: Architecture) -> None:
    """Train a LoRA. UserError for bad input, StopRequested when asked to stop (after saving)."""
    if args.show_timesteps:
        show_timesteps.show(args)
        return
    dtype = check(args, architecture)
    if Compilation.from_args(args) is None:
        leave_compiler_out()
    with stopping_on_signals():
        _set_cuda(args)
        processes = distributed.start(args)
        try:
            with _output(args) if processes.is_main else contextlib.nullcontext():
                prepare(args, architecture, processes, dtype).start()
        finally:
            processes.close()


def check(args: Namespace, architecture: Architecture) -> torch.dtype:
    """Reject what the rules of the options cannot know, before any model is loaded. Returns what the transformer computes in.

    Fills `args.mixed_precision` in where the launcher decides it, or the file ("auto"): what is recorded is what is done.
    """
    if args.mixed_precision is None:
        args.mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    metadata.resolution(args.metadata_reso)
    optimizers.check(args)
    run_network.check(args, architecture.card)
    dtype = architecture.compute_dtype(args)
    if args.mixed_precision == "auto":
        args.mixed_precision = {"float16": "fp16", "bfloat16": "bf16"}.get(str(dtype).removeprefix("torch."), "no")
        logger.info("mixed precision auto: computing in %s", dtype)
    return dtype


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
def _output(args: Namespace) -> Iterator[None]:
    """The output folder, for this training alone, and without what a killed one left half-way; so the folder of `--resume`."""
    folder, name = Path(args.output_dir), args.output_name
    place.try_folder(folder, saved_states.names_of_run(name), f"--output_dir {folder} --output_name {name}")
    with output_lock.held(folder, name):
        saved_states.clean_leftovers(folder, name)
        for place_of_files in (folder, folder / "sample"):
            atomic.sweep(place_of_files)
        if args.resume:
            origin, origin_name = Path(args.resume).parent, saved_states.run_name(Path(args.resume))
            if output_lock.holder(output_lock.lock_file(origin, origin_name)) is None:  # not where one is being written
                saved_states.clean_leftovers(origin, origin_name)
        yield


def prepare(args: Namespace, architecture: Architecture, processes: distributed.Processes, dtype: torch.dtype) -> Loop:
    """Everything that is done once; the loop is at the place where it continues. dtype: of `check`."""
    processes.wait()
    saved = _saved_state(args, architecture, processes)
    seed = args.seed = processes.agreed(_seed(args, saved))
    trackers, samples = Trackers(args, processes.is_main), Samples(args, architecture)
    dataset = _dataset(args, architecture)
    batches = math.ceil(len(dataset.batches(seed, 1)) / processes.count)
    steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    if args.max_train_epochs is not None:
        args.max_train_steps = args.max_train_epochs * steps_per_epoch
    rehearse(args, run_network.rates(args, architecture.card), args.max_train_steps, processes.device)
    if processes.is_main:
        print(f"accelerator device: {processes.device}", flush=True)
    logger.info("DiT precision: %s, weight precision: %s", dtype, dtype)
    samples.encode(processes.device)

    logger.info("Loading DiT model from %s", args.dit)
    job.phase("loading the transformer")
    transformer = architecture.transformer(args, processes.device, dtype).requires_grad_(False)
    lora = run_network.build(args, architecture.card, transformer, seed, processes.device)
    if args.gradient_checkpointing:
        switches: Any = transformer
        switches.gradient_checkpointing = True
        switches.gradient_checkpointing_cpu_offload = args.gradient_checkpointing_cpu_offload
        print(f"gradient checkpointing enabled. Activation CPU offloading: {args.gradient_checkpointing_cpu_offload}", flush=True)

    print("prepare optimizer, data loader etc.", flush=True)
    job.phase("preparing the optimizer")
    run_id = (saved.facts.get("run") if saved else None) or secrets.token_hex(8)
    settings = continuing.facts_of(args, architecture.card, dataset.digest(), processes.count, run_id)
    choice = optimizers.build(args, lora.parameter_groups(args.learning_rate))
    if args.max_train_epochs is not None:
        print(f"override steps. steps for {args.max_train_epochs} epochs is: {args.max_train_steps}", flush=True)
    logger.info("use optimizer %s", choice.recorded)
    acting = in_effect(args, choice)
    schedule = schedules.build(acting, choice.optimizer, args.max_train_steps, choice.schedule_free)
    epochs = math.ceil(args.max_train_steps / steps_per_epoch)

    facts = metadata.RunFacts(len(dataset.items), batches, epochs, choice.recorded, dataset.metadata())
    files = checkpoints.Checkpoints(args, architecture.card, metadata.training_metadata(acting, architecture.card, facts))
    training = Run(
        args, architecture, dataset, processes, dtype, transformer, lora, choice, schedule, seed, args.max_train_steps, epochs,
        files, samples, trackers, settings,
    )  # fmt: skip
    loop = Loop(training)
    if saved is not None:
        _resume(loop, saved)
    _announce(training, batches)
    if processes.is_main:
        job.emit(events.Start(training.total_steps, loop.position.step, epochs, len(dataset.items)))
    return loop


def _set_cuda(args: Namespace) -> None:
    """`--cuda_allow_tf32` and `--cuda_cudnn_benchmark`: only ever turned on, as their defaults are PyTorch's to choose."""
    import torch

    if args.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if args.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


def _saved_state(args: Namespace, architecture: Architecture, processes: distributed.Processes) -> saved_states.SavedState | None:
    if not args.resume:
        return None
    folder = Path(args.resume)
    try:
        saved = saved_states.read(folder, whole=processes.is_main)
    except saved_states.DamagedState as error:
        older = saved_states.before(folder)
        hint = f"the one before it is whole, at step {older.step}: --resume {older.folder}" if older else "there is no other whole one"
        raise UserError(f"{error}; {hint}") from error
    continuing.check(saved, args, architecture)
    return saved


def _seed(args: Namespace, saved: saved_states.SavedState | None) -> int:
    """The seed of the run: the state's, `--seed`, or a random one."""
    if saved is not None and saved.seed is not None:
        if args.seed is not None and args.seed != saved.seed:
            logger.warning("--resume: the state's seed %d is used instead of --seed %d", saved.seed, args.seed)
        return saved.seed
    return secrets.randbelow(2**32) if args.seed is None else int(args.seed)


def _dataset(args: Namespace, architecture: Architecture) -> CachedDataset:
    if args.num_timestep_buckets is not None:
        logger.info("Using timestep bucketing. Number of buckets: %d", args.num_timestep_buckets)
    logger.info("Load dataset config from %s", args.dataset_config)
    job.phase("reading the dataset")
    dataset = CachedDataset.open(
        load_config(args.dataset_config), architecture.card, architecture.cache_forms(args), num_timestep_buckets=args.num_timestep_buckets
    )
    if not dataset.items:
        raise UserError(
            f"no training items found for {args.dataset_config}: cache latents and text encoder outputs first, with the same dataset file"
        )
    return dataset


def _resume(loop: Loop, saved: saved_states.SavedState) -> None:
    """Bring a built run to a saved point."""
    run = loop.run
    logger.info("resume training from local state: %s", saved.folder)
    job.phase(f"resuming from {saved.folder.name}")
    loop.state().restore(saved, new_schedule=continuing.has_new_schedule(saved, run.args))
    if saved.position is None:
        logger.warning(
            "%s was saved by musubi-tuner and does not say how far it was: weights, optimizer and schedule continue, but epochs and "
            "steps count from the start",
            saved.folder,
        )
        return
    position = saved.position
    if saved.facts.get("dataset") != run.facts["dataset"]:
        logger.warning(
            "--resume: the dataset changed since the state was saved; epoch %d starts again with the new items",
            position.epoch + 1,
        )
        position.batch = 0
    if saved.facts.get("processes") != run.processes.count:
        logger.warning(
            "--resume: the state was saved by %s processes and %d continue: they share the batches in another way, so the continued run "
            "differs from an uninterrupted one",
            saved.facts.get("processes"), run.processes.count,
        )  # fmt: skip
    planned = saved.facts.get("total_steps", run.total_steps)
    if planned != run.total_steps:
        logger.warning(
            "--resume: the state was on its way to %d steps, this training is to have %d; from step %d on the learning rate follows the "
            "schedule of %d steps",
            planned, run.total_steps, position.step, run.total_steps,
        )  # fmt: skip
    loop.go_to(position, saved.losses, saved.history)
    if position.step >= run.total_steps:
        logger.warning(
            "--resume: the state is at step %d, and --max_train_steps is %d: nothing is left to train",
            position.step,
            run.total_steps,
        )


def _announce(run: Run, batches: int) -> None:
    if not run.processes.is_main:
        return
    sizes = ", ".join(str(dataset.batch_size) for dataset in run.dataset.config.datasets)
    print(
        "running training / 学習開始\n"
        f"  num train items / 学習画像、動画数: {len(run.dataset.items)}\n"
        f"  num batches per epoch / 1epochのバッチ数: {batches}\n"
        f"  num epochs / epoch数: {run.epochs}\n"
        f"  batch size per device / バッチサイズ: {sizes}\n"
        f"  gradient accumulation steps / 勾配を合計するステップ数 = {run.args.gradient_accumulation_steps}\n"
        f"  total optimization steps / 学習ステップ数: {run.total_steps}",
        flush=True,
    )
    reason = f"--save_precision {run.args.save_precision}" if run.args.save_precision else "default"
    logger.info("network weights will be saved as %s (%s)", run.checkpoints.dtype, reason)
    logger.info("DiT dtype: %s, device: %s", run.dtype, run.processes.device)
