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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import job
from ..dataset.batches import CachedDataset
from ..dataset.config import load_config
from ..errors import UserError
from ..memory.compiling import Compilation
from . import checkpoints, distributed, metadata, network, optimizers, schedules, show_timesteps, state
from .lean_torch import leave_compiler_out
from .loop import Loop, Run
from .samples import Samples
from .trackers import Trackers

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture

logger = logging.getLogger(__name__)


def run(args: Namespace, architecture: Architecture) -> None:
    """Train a LoRA. UserError for bad input, StopRequested when asked to stop (after saving)."""
    if args.show_timesteps:
        show_timesteps.show(args)
        return
    check(args, architecture)
    if Compilation.from_args(args) is None:
        leave_compiler_out()
    with stopping_on_signals():
        _set_cuda(args)
        processes = distributed.start(args)
        try:
            _train(args, architecture, processes)
        finally:
            processes.close()


def check(args: Namespace, architecture: Architecture) -> None:
    """Refuse what the rules of the options cannot know, before any model is loaded. Fills `args.mixed_precision` in where the
    launcher decides it."""
    if args.mixed_precision is None:
        args.mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    metadata.resolution(args.metadata_reso)
    optimizers.check(args)
    network.check(args, architecture.card)
    architecture.compute_dtype(args)


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turn the first Ctrl-C or terminate signal into a graceful stop; the second one ends at once."""

    def request(number: int, frame: Any) -> None:
        if job.stop_requested():
            raise KeyboardInterrupt
        logger.warning("stopping after the current step; the state will be saved. Once more to stop at once")
        job.request_stop()

    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _train(args: Namespace, architecture: Architecture, processes: distributed.Processes) -> None:
    output = Path(args.output_dir)
    if processes.is_main:
        output.mkdir(parents=True, exist_ok=True)
        checkpoints.clean_leftovers(output, args.output_name)
        if args.resume:
            state_folder = Path(args.resume)
            checkpoints.clean_leftovers(state_folder.parent, state_folder.name.removesuffix(checkpoints.STATE_SUFFIX))
    processes.wait()
    saved = _saved_state(args, architecture)
    seed = args.seed = processes.agreed(_seed(args, saved))
    trackers, samples = Trackers(args, processes.is_main), Samples(args, architecture)
    dataset = _dataset(args, architecture)
    batches = math.ceil(len(dataset.batches(seed, 1)) / processes.count)
    steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    if args.max_train_epochs is not None:
        args.max_train_steps = args.max_train_epochs * steps_per_epoch
    schedules.check(args, args.max_train_steps)
    if processes.is_main:
        print(f"accelerator device: {processes.device}", flush=True)
    dtype = architecture.compute_dtype(args)
    logger.info("DiT precision: %s, weight precision: %s", dtype, dtype)
    samples.encode(processes.device)

    logger.info("Loading DiT model from %s", args.dit)
    transformer = architecture.transformer(args, processes.device, dtype).requires_grad_(False)
    lora = network.build(args, architecture.card, transformer, seed, processes.device)
    if args.gradient_checkpointing:
        switches: Any = transformer
        switches.gradient_checkpointing = True
        switches.gradient_checkpointing_cpu_offload = args.gradient_checkpointing_cpu_offload
        print(f"gradient checkpointing enabled. Activation CPU offloading: {args.gradient_checkpointing_cpu_offload}", flush=True)

    print("prepare optimizer, data loader etc.", flush=True)
    settings = state.facts_of(args, architecture.card.id, dataset.digest(), processes.count)  # before an optimizer changes them
    choice = optimizers.build(args, lora.parameter_groups(args.learning_rate))
    if args.max_train_epochs is not None:
        print(f"override steps. steps for {args.max_train_epochs} epochs is: {args.max_train_steps}", flush=True)
    schedule = schedules.build(args, choice.optimizer, args.max_train_steps, choice.schedule_free)
    epochs = math.ceil(args.max_train_steps / steps_per_epoch)

    facts = metadata.RunFacts(len(dataset.items), batches, epochs, choice.recorded, dataset.metadata())
    files = checkpoints.Checkpoints(args, architecture.card, metadata.training_metadata(args, architecture.card, facts))
    training = Run(
        args, architecture, dataset, processes, dtype, transformer, lora, choice, schedule, seed, args.max_train_steps, epochs,
        files, samples, trackers, settings,
    )  # fmt: skip
    loop = Loop(training)
    if saved is not None:
        _resume(loop, saved)
    _announce(training, batches)
    if processes.is_main:
        job.event("start", total=training.total_steps, epochs=epochs, items=len(dataset.items), step=loop.position.step)
    loop.start()


def _set_cuda(args: Namespace) -> None:
    """`--cuda_allow_tf32` and `--cuda_cudnn_benchmark`: only ever turned on, as their defaults are PyTorch's to choose."""
    import torch

    if args.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if args.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True


def _saved_state(args: Namespace, architecture: Architecture) -> state.SavedState | None:
    if not args.resume:
        return None
    saved = state.read(Path(args.resume))
    state.check(saved, args, architecture)
    return saved


def _seed(args: Namespace, saved: state.SavedState | None) -> int:
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
    dataset = CachedDataset.open(
        load_config(args.dataset_config), architecture.card, num_timestep_buckets=args.num_timestep_buckets,
        unfit=partial(architecture.cache_problem, args=args),
    )  # fmt: skip
    if not dataset.items:
        raise UserError(
            f"no training items found for {args.dataset_config}: cache latents and text encoder outputs first, with the same dataset file"
        )
    return dataset


def _resume(loop: Loop, saved: state.SavedState) -> None:
    """Bring a built run to a saved point."""
    run = loop.run
    logger.info("resume training from local state: %s", saved.folder)
    loop.state().restore(saved)
    if saved.position is None:
        logger.warning(
            "%s was saved by musubi-tuner and does not say how far it was: weights, optimizer and schedule go on, but epochs and "
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
            "--resume: the state was saved by %s processes and %d go on: they share the batches in another way, so the continued run "
            "differs from an uninterrupted one",
            saved.facts.get("processes"), run.processes.count,
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
