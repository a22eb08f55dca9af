"""Processes that train one LoRA must train the same thing: on several machines each reads its own files and its own command.

Compared before a model is loaded, by digests: items of the dataset, model files, and every setting that decides what is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import UserError
from ..options.option import LENGTH, START, TRAIN, WEIGHTS
from ..options.registry import options_for, tool_names

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture
    from ..dataset.batches import CachedDataset
    from .distributed import Processes
    from .saved_states import SavedState

_STATE = "the state to continue from (--resume)"
_DATASET = "the items of the dataset and their caches"


def check(
    processes: Processes, values: Mapping[str, Any], architecture: Architecture, dataset: CachedDataset, saved: SavedState | None
) -> None:
    """UserError, in every process alike, that names who differs from the main process and in what. values: of all options; saved: the
    state it continues from."""
    if processes.count == 1:
        return
    found = _differing(processes, {f"the version of the backend ({__version__} here)": __version__})
    if not found:
        state = "none" if saved is None else f"{saved.folder.name} {saved.facts.get('run')} {saved.step}"
        found = _differing(processes, {_STATE: state, **_facts(values, architecture, dataset)})
    if found:
        who = "; ".join(f"process {rank} of {processes.count} has another one of: {', '.join(what)}" for rank, what in found.items())
        raise UserError(
            f"the processes do not train the same: {who}. On every machine give the same command, and copy the dataset with its cache "
            "folder, the models and the state to continue from there"
        )


def _facts(values: Mapping[str, Any], architecture: Architecture, dataset: CachedDataset) -> dict[str, str]:
    """What is to be the same -> its value here. Files are known by their names and sizes: where they lie may differ."""
    facts = {_DATASET: f"{len(dataset.items)} {dataset.digest()}"}
    for option in options_for(tool_names(architecture.card)[TRAIN]).values():
        if option.effect in (WEIGHTS, LENGTH, START) and option.name != "dataset_config":
            value = values.get(option.name)
            if option.path and value:
                value = [_file(Path(path)) for path in (value if isinstance(value, (list, tuple)) else [value])]
            facts[f"--{option.name}"] = repr(value)
    return facts


def _file(path: Path) -> str:
    return f"{path.name} {path.stat().st_size if path.is_file() else ''}"


def _differing(processes: Processes, facts: Mapping[str, str]) -> dict[int, list[str]]:
    """Process -> in what it differs from the main one; the same in every process."""
    own = b"".join(hashlib.sha256(value.encode("utf-8")).digest() for value in facts.values())
    every = processes.gathered(torch.frombuffer(bytearray(own), dtype=torch.uint8).view(len(facts), -1))
    same = (every == every[0]).all(-1).tolist()
    names = list(facts)
    found = {rank: [name for name, equal in zip(names, row, strict=True) if not equal] for rank, row in enumerate(same)}
    return {rank: what for rank, what in found.items() if what}
