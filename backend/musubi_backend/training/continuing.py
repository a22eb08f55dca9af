"""What a continued training takes from its state, and what from the command: compared before anything heavy is loaded.

The state has the network, the optimizer and its learning rate, and the seed. The command has everything else. What it would need another
network or optimizer for is rejected. Which settings are compared follows from the table of options (`effect`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UserError
from ..lora.settings import NetworkSettings, deciding
from ..optimizers import registry
from ..options.option import TRAIN, WEIGHTS, Option
from ..options.registry import options_for, tool_names
from ..weights.recognise import PREFIXES
from ..weights.safetensors_file import read_header
from .classes import keyword_arguments
from .saved_states import MODEL_FILE, SavedState
from .settings import ScheduleSettings, TrainingSettings
from .voided import sets_its_rate

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..architectures.protocol import Architecture
    from ..lora.parts import LoRAWeights

logger = logging.getLogger(__name__)

_REFUSED = ("network_module", "lora_per_expert", "optimizer_type")
_KEPT = ("network_alpha", "optimizer_args", "learning_rate")
_SCHEDULE = (
    "lr_scheduler", "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale",
    "lr_scheduler_min_lr_ratio", "lr_scheduler_type", "lr_scheduler_args",
)  # fmt: skip
_OF_EACH_STEP = ("rank_dropout", "module_dropout")  # the part of --network_args that the network is not built of
_ELSEWHERE = ("seed", "network_dim", "dataset_config")  # a value of the state itself, its tensors' rank, a digest of the items


def facts_of(values: Mapping[str, Any], card: Card, dataset: str, processes: int, run: str) -> dict[str, Any]:
    """What a state records about its run. values: of all options, as they are in effect; dataset: digest of the items in order; run: what
    all states of one training have in common."""
    return {
        "architecture": card.id,
        "dataset": dataset,
        "processes": processes,
        "run": run,
        "total_steps": values["max_train_steps"],
        "settings": {option.name: _recorded(option, values) for option in _compared(card)},
    }


def check(
    saved: SavedState, settings: TrainingSettings, values: Mapping[str, Any], architecture: Architecture, weight_file: str
) -> TrainingSettings:
    """Reject a state of another model, rank, network, optimizer or architecture; say what of the command is used from here on, and what
    is not because the state decides it. Returns the settings of the continued run.

    values: of all options, those of the architecture too; weight_file: the file behind `--dit`.
    """
    ours = architecture.card.id
    theirs = saved.facts.get("architecture", ours)
    if theirs != ours:
        raise UserError(f"--resume {saved.folder} is a training of {theirs}; this is {ours}")
    differing = dict(_differences(saved, values, architecture.card))
    for name in _REFUSED:
        if name in differing:
            _refuse(saved, name, differing[name])
    if "network_args" in differing and _built_of(saved.settings["network_args"]) != _built_of(settings.network.network_args):
        _refuse(saved, "network_args", differing["network_args"])
    _check_rank(saved, settings.network)
    _check_sizes(saved, settings.models.dit, architecture, weight_file)
    settings = _kept(saved, settings, differing)
    for name, (was, now) in differing.items():
        if name not in (*_KEPT, *_REFUSED):
            what = "from here on the schedule of this command is used" if name in _SCHEDULE else "it is used from here on"
            logger.warning(
                "--resume: --%s was %s when the state was saved and is %s now; %s, so the continued run differs from an uninterrupted one",
                name, was, now, what,
            )  # fmt: skip
    return settings


def has_new_schedule(saved: SavedState, settings: ScheduleSettings) -> bool:
    """True where the command has another schedule or learning rate than the state."""
    values = _plain(settings.values())
    return any((saved.settings[name] or None) != (value or None) for name, value in values.items() if name in saved.settings)


def _kept(saved: SavedState, settings: TrainingSettings, differing: Mapping[str, tuple[Any, Any]]) -> TrainingSettings:
    """The settings with what the state decides, which is said where the command has it otherwise."""
    kept: dict[str, Any] = {}
    rate = settings.resuming.resume_learning_rate
    if rate is not None:
        optimizer = settings.optimizer
        if sets_its_rate(optimizer.optimizer_type, keyword_arguments(optimizer.optimizer_args, "--optimizer_args")):
            raise UserError(f"--resume_learning_rate: {optimizer.optimizer_type} with relative_step chooses its rate itself")
        was = saved.settings.get("learning_rate", "another")
        logger.info("--resume: the learning rate was %s and is %s from here on; the schedule keeps its shape", was, rate)
        kept["learning_rate"] = rate
    for name in _KEPT:
        if name not in differing or name in kept:
            continue
        was, now = differing[name]
        change = "; --resume_learning_rate changes it" if name == "learning_rate" else ""
        logger.warning("--resume: --%s %s of the state is kept; %s is not used%s", name, was, now, change)
        kept[name] = was
    if settings.network.network_weights:
        logger.info("--resume: the network of the state continues; the weights of --network_weights are not used")
    return settings.changed(**kept)


def _compared(card: Card) -> list[Option]:
    return [
        option for option in options_for(tool_names(card)[TRAIN]).values() if option.effect == WEIGHTS and option.name not in _ELSEWHERE
    ]


def _differences(saved: SavedState, values: Mapping[str, Any], card: Card) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """name -> what it was in the state and what it is now, for what differs."""
    for option in _compared(card):
        name = option.name
        if name not in saved.settings:
            continue  # written before it was recorded
        was, now = saved.settings[name], _recorded(option, values)
        if _meant(name, was, card) != _meant(name, now, card):
            yield name, (was, now)


def _meant(name: str, value: Any, card: Card) -> Any:
    """The value with everything equal that means the same."""
    if name == "network_module":
        return value or card.network_module
    if name == "optimizer_type":
        entry = registry.find(str(value))
        return entry.name if entry else str(value).lower()
    if name == "network_args":
        return deciding(value) or None
    return value or None


def _recorded(option: Option, values: Mapping[str, Any]) -> Any:
    """The value as JSON gives it back. Of a file its name and size: where it lies may change."""
    value = values.get(option.name)
    if option.path in ("file", "any") and value:
        return [_file(Path(path)) for path in value] if isinstance(value, list) else _file(Path(value))
    return _plain(value)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _file(path: Path) -> str:
    return f"{path.name} ({path.stat().st_size} bytes)" if path.is_file() else path.name


def _built_of(network_args: Iterable[str] | None) -> list[str]:
    """The part of `--network_args` that decides the layers, their sizes and groups."""
    return sorted(pair for pair in deciding(network_args) if pair.partition("=")[0].strip() not in _OF_EACH_STEP)


def _refuse(saved: SavedState, name: str, values: tuple[Any, Any]) -> NoReturn:
    was, now = values
    raise UserError(
        f"--resume {saved.folder} does not fit this training: --{name} was {was} when it was saved and is {now} now. Use {was}, or start "
        f"anew with --network_weights {saved.folder / MODEL_FILE}"
    )


def _check_rank(saved: SavedState, network: NetworkSettings) -> None:
    weights = _lora_weights(saved.folder / MODEL_FILE)
    if network.dim_from_weights and network.network_weights:
        given = _lora_weights(Path(network.network_weights))
        if any(weights[layer].rank != given[layer].rank for layer in weights.keys() & given.keys()):
            raise UserError(
                f"--resume {saved.folder} has other ranks than --network_weights {network.network_weights}; use the file it began with"
            )
        return
    wanted = network.network_dim or 4
    if not weights:
        raise UserError(f"--resume {saved.folder}: {MODEL_FILE} holds no LoRA")
    ranks = {one.rank for one in weights.values()} - {0}  # a LoKr of whole matrices has none
    if ranks - {wanted}:
        raise UserError(
            f"--resume {saved.folder} has rank {', '.join(map(str, sorted(ranks)))}, but --network_dim is {wanted}; use the same rank"
        )


def _check_sizes(saved: SavedState, dit: str, architecture: Architecture, weight_file: str) -> None:
    """Compare the LoRA's layer names and sizes with the transformer file's header."""
    from ..weights.loader import open_weights

    sizes: dict[str, tuple[int, ...]] = {}
    for stored, info in open_weights(weight_file, PREFIXES).header.tensors.items():
        name = architecture.weight_name(stored)
        if name.endswith(".weight") and len(info.shape) == 2:
            sizes[name.removesuffix(".weight").replace(".", "_")] = info.shape
    for layer, one in _lora_weights(saved.folder / MODEL_FILE).items():
        size = one.size()
        if size is not None and (layer not in sizes or sizes[layer][1] != size[1]):
            is_now = f"has width {sizes[layer][1]}" if layer in sizes else "is not there"
            raise UserError(
                f"--resume {saved.folder} belongs to another model than --dit {dit}: its layer {layer} has width "
                f"{size[1]}, in the model it {is_now}"
            )


def _lora_weights(path: Path) -> dict[str, LoRAWeights]:
    """Layer -> its LoRA, LoHa or LoKr in a file, by its header alone. An expert's name may come before the layer's."""
    from ..lora.parts import LoRAWeights, Part

    parts: dict[str, dict[str, Part]] = {}
    for name, info in read_header(path).tensors.items():
        layer, dot, part = name.rpartition("lora_unet_")[2].partition(".")
        if dot:
            parts.setdefault(layer, {})[part] = Part(info.dtype, info.shape, _unread)
    weights = {layer: LoRAWeights(found, layer) for layer, found in parts.items()}
    return {layer: one for layer, one in weights.items() if one.kind}


def _unread() -> NoReturn:
    raise AssertionError("only shapes are looked at here")
