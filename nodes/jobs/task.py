"""What a job is to do, as `task.json` in its folder has it: enough to start it, to start it again, and to go on with its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.options.argv import to_argv

NEVER, AUTO = "never", "auto"


@dataclass(frozen=True)
class Training:
    """Of a trainer's job.

    name       of its LoRA
    run        name of the folder in `<home>/runs`; endings: see `runs.Run`
    values     option name -> value, without `resume`
    resume     AUTO (the furthest state of the run), NEVER, or the folder of a state; `AUTO` comes first where there is one
    results    the values that name its result in the run
    loras_dir  where the finished LoRA goes; converted: the architecture whose form ComfyUI takes, or ""
    """

    name: str
    run: str
    endings: tuple[str, ...]
    values: dict[str, Any]
    resume: tuple[str, ...] = (AUTO,)
    results: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, Any] = field(default_factory=dict)
    loras_dir: str = ""
    converted: str = ""

    def from_newest(self) -> Training:
        """The same, from its furthest state where there is one."""
        return replace(self, resume=tuple(dict.fromkeys((AUTO, *(one for one in self.resume if one != NEVER)))))

    def longer(self, values: dict[str, Any]) -> Training:
        """The same with other values of what its length follows from."""
        results = {name: values.get(name) for name in self.results}
        lengths = {name: values.get(name) for name in self.lengths}
        return replace(self.from_newest(), values=values, results=results, lengths=lengths)


@dataclass(frozen=True)
class Machines:
    """How many train together, which of them this one is (0 is the main one), and where the main one waits for the others."""

    count: int = 1
    rank: int = 0
    address: str = ""
    port: int = 29500


@dataclass(frozen=True)
class Task:
    """What a tool is to do.

    arguments   of a tool that is no trainer; a trainer's follow from `training`
    foreign     musubi-tuner has this tool too, so the chosen engine runs it
    gpu         it runs alone on the GPU, which ComfyUI's models leave first
    launch      it is a trainer, which `accelerate launch` starts where there are several processes, and always for musubi-tuner
    processes   on each of the machines
    background  the keeper runs it; gpus: those it may use there
    attempt     from 1, rises when it is started again
    """

    tool: str
    arguments: tuple[str, ...] = ()
    foreign: bool = True
    gpu: bool = True
    launch: bool = False
    processes: int = 1
    mixed_precision: str = "no"
    machines: Machines = Machines()
    training: Training | None = None
    background: bool = False
    gpus: tuple[str, ...] = ()
    attempt: int = 1

    def argv(self, resume: Path | None = None) -> list[str]:
        """Its arguments. resume: the state that a training continues from."""
        if self.training is None:
            return list(self.arguments)
        return to_argv(self.tool, {**self.training.values, **({"resume": str(resume)} if resume else {})})

    def changed(self, **changes: Any) -> Task:
        return replace(self, **changes)

    def noted(self) -> dict[str, Any]:
        """For `JobFolder.write_task`."""
        return asdict(self)


def read(noted: Mapping[str, Any]) -> Task | None:
    """What was noted; None where it is nothing of the kind."""
    try:
        training = noted.get("training")
        values = {one.name: _like(noted[one.name]) for one in fields(Task) if one.name in noted}
        values["machines"] = Machines(**noted.get("machines", {}))
        values["training"] = Training(**{name: _like(value) for name, value in training.items()}) if training else None
        return Task(**values)
    except (TypeError, AttributeError):
        return None


def _like(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
