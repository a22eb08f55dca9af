"""All nodes of the pack: those that serve every family, and three of each family that has nodes.

A class with a specification in one of these modules is a node of the pack: nothing else lists it.
"""

from __future__ import annotations

from types import ModuleType

from . import (
    batch,
    cache,
    caption,
    compare,
    dataset,
    expert_settings,
    lora_tools,
    memory_optimizer,
    optimizer_settings,
    resource_monitor,
    system,
    tensorboard,
    training_monitor,
    training_settings,
    video,
    viewer,
)
from .families import families
from .generate import generator
from .models import model_paths
from .spec import Node
from .train import lora_trainer


def _of(*modules: ModuleType) -> tuple[type[Node], ...]:
    """The nodes that modules define, in that order."""
    found = (one for module in modules for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__)
    return tuple(one for one in found if issubclass(one, Node) and "spec" in vars(one))


_FAMILIES = families()

NODES: tuple[type[Node], ...] = (
    *_of(dataset, caption, viewer, cache),
    *(model_paths(*family) for family in _FAMILIES),
    *_of(training_settings, optimizer_settings, expert_settings, memory_optimizer),
    *(lora_trainer(*family) for family in _FAMILIES),
    *(generator(*family) for family in _FAMILIES),
    *_of(video, batch, compare, lora_tools, training_monitor, resource_monitor, tensorboard, system),
)
"""In the order of help and names."""

BY_NAME = {node.spec.id.removeprefix("MusubiTuner_"): node for node in NODES}
