"""The state of a run: everything `--resume` needs to go on as if nothing had happened.

Folder layout is accelerate's, as musubi-tuner uses it (`model.safetensors` with the network only, `optimizer.bin`, `scheduler.bin`),
plus our `training_state.json`, which says where in the run it was taken. No random state is kept: every random number is a
function of the seed and the micro-step.
"""

from __future__ import annotations

import json
import logging
import pickle
import secrets
import shutil
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import atomic
from ..errors import UserError
from ..weights.recognise import PREFIXES
from ..weights.safetensors_file import load, read_header, save_atomic

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ..architectures.protocol import Architecture
    from ..weights.lora_parts import Adapter
    from .schedules import Schedule

logger = logging.getLogger(__name__)

FORMAT = 1
POSITION_FILE, MODEL_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE = (
    "training_state.json", "model.safetensors", "optimizer.bin", "scheduler.bin", "scaler.pt",
)  # fmt: skip

# what has to be the same for the continued run to equal the uninterrupted one
COMPARED = (
    "task", "network_module", "network_dim", "network_alpha", "network_dropout", "network_args", "gradient_accumulation_steps",
    "optimizer_type", "optimizer_args", "learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "max_grad_norm",
    "mixed_precision", "timestep_sampling", "discrete_flow_shift", "sigmoid_scale", "weighting_scheme", "min_timestep", "max_timestep",
    "num_timestep_buckets", "scale_weight_norms", "timestep_boundary", "lora_per_expert",
    "fp8_base", "fp8_scaled", "guidance_scale", "f1", "one_frame", "preserve_distribution_shape",
)  # fmt: skip


@dataclass
class Position:
    """Where a run is. epoch is 0-based; batch counts the batches of this epoch that all processes together have used;
    micro_step counts all forward passes of one process; step counts optimizer steps."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    micro_step: int = 0


@dataclass
class TrainingState:
    """A state to be written, or the live objects to restore one into.

    losses: of the last epoch's batches, for the average shown; history: of every step so far, for the loss curve.
    """

    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scaler: Any
    position: Position
    losses: list[float]
    history: list[float]
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the folder beside and rename it, so that `folder` is always a whole state. OSError when the disk is full."""
        import torch

        token = secrets.token_hex(4)
        part, old = (folder.with_name(f".{folder.name}.{token}.{kind}") for kind in ("part", "old"))
        try:
            part.mkdir(parents=True)
            weights = {name: tensor.detach().to("cpu") for name, tensor in self.network.state_dict().items()}
            save_atomic(weights, part / MODEL_FILE, {"format": "pt"})
            _save_pickle(self.optimizer.state_dict(), part / OPTIMIZER_FILE)
            _save_pickle(self.schedule.state_dict(), part / SCHEDULER_FILE)
            if self.scaler is not None:
                _save_pickle(self.scaler.state_dict(), part / SCALER_FILE)
            place = {"format": FORMAT, **asdict(self.position), "seed": self.seed, "torch": torch.__version__}
            curves = {"losses": self.losses, "history": self.history}
            atomic.write_text(part / POSITION_FILE, json.dumps({**place, **self.facts, **curves}))
            replace_folder(part, folder, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def restore(self, saved: SavedState) -> None:
        """Load a checked state into the live objects. UserError when the parts do not fit this run after all."""
        folder = saved.folder
        try:
            self.network.load_state_dict(load(folder / MODEL_FILE))
            self.optimizer.load_state_dict(_load_pickle(folder / OPTIMIZER_FILE))
            if (folder / SCHEDULER_FILE).exists():
                _restore_schedule(self.schedule, _load_pickle(folder / SCHEDULER_FILE), own=saved.position is not None)
            if self.scaler is not None and (folder / SCALER_FILE).exists():
                self.scaler.load_state_dict(_load_pickle(folder / SCALER_FILE))
        except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"--resume {folder} does not fit this training: {error}. Use the settings it was saved with, or start anew with "
                f"--network_weights {folder / MODEL_FILE}"
            ) from error


@dataclass(frozen=True)
class SavedState:
    """What `read` found: position None means a state of musubi-tuner itself, which does not record one."""

    folder: Path
    position: Position | None
    seed: int | None
    losses: list[float]
    history: list[float]
    facts: dict[str, Any]


def replace_folder(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`. Killed in between, `old` holds the former content (see `checkpoints.clean_leftovers`)."""
    if target.exists():
        target.replace(old)
    try:
        new.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> SavedState:
    """Look at a state folder without loading it. UserError when it is missing, incomplete or damaged."""
    if not folder.is_dir():
        hint = ""
        if folder.parent.is_dir() and (near := sorted(path.name for path in folder.parent.glob("*-state"))):
            hint = f"; states there: {', '.join(near)}"
        raise UserError(f"--resume {folder} does not exist{hint}")
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"--resume {folder} is not a training state: {name} is missing. Give a folder that --save_state wrote (its "
                "name ends in -state)"
            )
    read_header(folder / MODEL_FILE)
    if not (folder / POSITION_FILE).is_file():
        return SavedState(folder, None, None, [], [], {})
    try:
        values = json.loads((folder / POSITION_FILE).read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise UserError(f"--resume {folder} was written by a newer version of this program (format {values['format']}); update it")
        position = Position(*(int(values[key]) for key in ("step", "epoch", "batch", "micro_step")))
        losses, history = ([float(loss) for loss in values[key]] for key in ("losses", "history"))
        return SavedState(folder, position, int(values["seed"]), losses, history, values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--resume {folder}: {POSITION_FILE} is damaged ({error!r}); use an older state") from error


def check(saved: SavedState, args: Namespace, architecture: Architecture) -> None:
    """Refuse a state of another model, rank or architecture before anything heavy is loaded; warn of other differences."""
    ours = architecture.card.id
    theirs = saved.facts.get("architecture", ours)
    if theirs != ours:
        raise UserError(f"--resume {saved.folder} is a training of {theirs}; this is {ours}")
    _check_rank(saved, args)
    _check_sizes(saved, args, architecture)
    settings = saved.facts.get("settings", {})
    for key in COMPARED:
        if key in settings and settings[key] != _plain(getattr(args, key, None)):
            logger.warning(
                "--resume: --%s was %s when the state was saved and is %s now; the continued run differs from an uninterrupted one",
                key, settings[key], getattr(args, key, None),
            )  # fmt: skip
    if "learning_rate" in settings and settings["learning_rate"] != _plain(args.learning_rate):
        logger.warning("--resume: the learning rate and schedule of the state go on; to change them, start anew with --network_weights")


def facts_of(args: Namespace, architecture: str, dataset: str, processes: int) -> dict[str, Any]:
    """What a state records about its run. dataset: digest of the items in order."""
    return {
        "architecture": architecture,
        "dataset": dataset,
        "processes": processes,
        "settings": {key: _plain(getattr(args, key, None)) for key in COMPARED},
    }


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _check_rank(saved: SavedState, args: Namespace) -> None:
    if args.dim_from_weights:
        return
    wanted = args.network_dim or 4
    adapters = _adapters(saved)
    if not adapters:
        raise UserError(f"--resume {saved.folder}: {MODEL_FILE} holds no LoRA")
    ranks = {adapter.rank for adapter in adapters.values()} - {0}  # a LoKr of whole matrices has none
    if ranks - {wanted}:
        raise UserError(
            f"--resume {saved.folder} has rank {', '.join(map(str, sorted(ranks)))}, but --network_dim is {wanted}; use the same rank"
        )


def _check_sizes(saved: SavedState, args: Namespace, architecture: Architecture) -> None:
    """Compare the LoRA's layer names and sizes with the transformer file's header."""
    from ..weights.loader import open_weights

    sizes: dict[str, tuple[int, ...]] = {}
    for stored, info in open_weights(architecture.weight_file(args), PREFIXES).header.tensors.items():
        name = architecture.weight_name(stored)
        if name.endswith(".weight") and len(info.shape) == 2:
            sizes[name.removesuffix(".weight").replace(".", "_")] = info.shape
    for layer, adapter in _adapters(saved).items():
        size = adapter.size()
        if size is not None and (layer not in sizes or sizes[layer][1] != size[1]):
            is_now = f"has width {sizes[layer][1]}" if layer in sizes else "is not there"
            raise UserError(
                f"--resume {saved.folder} belongs to another model than --dit {args.dit}: its layer {layer} has width "
                f"{size[1]}, in the model it {is_now}"
            )


def _adapters(saved: SavedState) -> dict[str, Adapter]:
    """Layer -> its LoRA, LoHa or LoKr in a state, by its header alone. An expert's name may come before the layer's."""
    from ..weights.lora_parts import Adapter, Part

    parts: dict[str, dict[str, Part]] = {}
    for name, info in read_header(saved.folder / MODEL_FILE).tensors.items():
        layer, dot, part = name.rpartition("lora_unet_")[2].partition(".")
        if dot:
            parts.setdefault(layer, {})[part] = Part(info.dtype, info.shape, _unread)
    adapters = {layer: Adapter(found, layer) for layer, found in parts.items()}
    return {layer: adapter for layer, adapter in adapters.items() if adapter.kind}


def _unread() -> NoReturn:
    raise AssertionError("only shapes are looked at here")


def _restore_schedule(schedule: Schedule, values: dict[str, Any], own: bool) -> None:
    """Bring a schedule to a saved point. Of a foreign state only the counters are taken: its formulas have other names."""
    from torch.optim.lr_scheduler import LambdaLR

    counters: dict[str, Any] = {key: values[key] for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr") if key in values}
    if own or type(schedule) is not LambdaLR:
        schedule.load_state_dict(values)
    else:
        vars(schedule).update(counters)


def _save_pickle(values: dict[str, Any], path: Path) -> None:
    import torch

    with atomic.replacing(path) as part, part.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # torch reports a failed write as an unexpected position in its zip file
            raise error.__context__ if isinstance(error.__context__, OSError) else OSError(f"{path.name}: {error}") from error


def _load_pickle(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
