"""The command line of a tool for the chosen engine: our backend, or a registered musubi-tuner checkout."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.dataset import schema
from ...backend.musubi_backend.errors import UserError
from ...backend.musubi_backend.optimizers import registry
from ...backend.musubi_backend.options.argv import to_argv
from ...backend.musubi_backend.options.registry import options_for
from ...backend.musubi_backend.threads import COUNT
from .config import PACK_ROOT, Config
from .environment import GPU_VARIABLE, child_environment
from .folder import JobFolder
from .home import HOME_VARIABLE
from .runner import Command
from .task import Task
from .wording import in_widgets

_BACKEND = PACK_ROOT / "backend"
_GUARDED, _MEETING = (Path(__file__).with_name(name) for name in ("guarded.py", "meeting.py"))


def engine_for(config: Config, tool: str, foreign: bool) -> str:
    """Tools that musubi-tuner does not have (`foreign` False) always run in our backend."""
    return config.engine if foreign else "builtin"


def command(config: Config, folder: JobFolder, task: Task, *, resume: Path | None = None, gpu: str | None = None) -> Command:
    """The command for a task. resume: the state that a training continues from; gpu: the only one it sees. UserError if nothing is
    installed."""
    tool, arguments = task.tool, task.argv(resume)
    visible = {} if gpu is None else {GPU_VARIABLE: gpu}
    if engine_for(config, tool, task.foreign) == "builtin":
        python = _existing(config.interpreter, "the backend is not installed yet")
        target = ["-m", "musubi_backend", tool]
        if config.cpu_threads and "cpu_threads" in options_for(tool):
            arguments += to_argv(tool, {"cpu_threads": config.cpu_threads})
        through_launcher = task.launch and task.processes * task.machines.count > 1
        environment = child_environment(str(folder.path), {"PYTHONPATH": str(_BACKEND), **visible})
        engine, listens = "builtin", True
    else:
        checkout = config.musubi_path
        if checkout is None or not (checkout / f"{tool}.py").is_file():
            raise UserError(
                f"the musubi-tuner checkout {checkout} has no {tool}.py. Register one with: python install.py --musubi-tuner PATH"
            )
        refuse_own(config, tool, {argument.removeprefix("--").split("=")[0] for argument in arguments if argument.startswith("--")})
        python = _existing(config.musubi_python, "the python of the musubi-tuner checkout is missing")
        target = [str(_GUARDED), str(checkout / f"{tool}.py")]
        through_launcher = task.launch
        threads = {COUNT: str(config.cpu_threads)} if config.cpu_threads else {}
        environment = child_environment(str(folder.path), {"PYTHONPATH": str(checkout / "src"), **visible, **threads})
        engine, listens = "musubi-tuner", False
    launcher = _launcher(folder, task, config.cpu_threads or 1) if through_launcher else []
    if launcher:
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or it tells in C++ whom it waits for
    if launcher and sys.platform == "win32":
        environment.setdefault("USE_LIBUV", "0")  # PyTorch's builds for Windows lack the store that its launcher prefers
    head = [str(python), *launcher]
    return Command([*head, *target, *arguments], environment, folder.path, engine, listens, gpu.split(",") if gpu is not None else None)


def refuse_own(config: Config, tool: str, names: Collection[str]) -> None:
    """UserError for options (by name) that only our backend has, where musubi-tuner is to run `tool`."""
    known = options_for(tool)
    ours = [in_widgets(tool, f"--{name}") for name in sorted(names) if name in known and known[name].own]
    if ours and config.engine != "builtin":
        raise UserError(f"{' and '.join(ours)}: musubi-tuner's {tool} has no such setting; turn it off, or choose the engine builtin")


def refuse_own_keys(config: Config, datasets: Iterable[Mapping[str, Any]]) -> None:
    """UserError for a key of a dataset that only our backend knows, where musubi-tuner is to read the dataset file."""
    ours = [key for key in schema.OWN if any(one.get(key) for one in datasets)]
    if ours and config.engine != "builtin":
        raise UserError(f"{' and '.join(ours)}: musubi-tuner's dataset files have no such key; set it to 0, or choose the engine builtin")


def refuse_own_optimizer(config: Config, name: str) -> None:
    """UserError for an optimizer that has this name in our backend only, where musubi-tuner is to train with it."""
    entry = registry.find(name) if config.engine != "builtin" and name else None
    if entry is not None and not entry.where.startswith("torch.optim:") and entry.name not in ("AdamW8bit", "Adafactor"):
        raise UserError(f"optimizer_type: musubi-tuner has no {name}; choose adamw, adamw8bit or adafactor, or the engine builtin")


def doctor(home: Path, folder: JobFolder) -> Command:
    """The installer's report on what is installed, run by this process's own python: the backend may be what is missing."""
    environment = child_environment(str(folder.path), {HOME_VARIABLE: str(home)})
    return Command([sys.executable, str(PACK_ROOT / "install.py"), "--doctor"], environment, folder.path, listens=False)


def _launcher(folder: JobFolder, task: Task, threads: int) -> list[str]:
    """`accelerate launch` with every setting given, so that it neither asks nor reads the user's own defaults."""
    settings, machines = folder.path / "accelerate.json", task.machines
    precision, every = task.mixed_precision or "no", task.processes * machines.count
    where = {"main_process_ip": machines.address, "main_process_port": machines.port} if machines.count > 1 else {}
    values = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "MULTI_GPU" if every > 1 else "NO",
        "machine_rank": machines.rank,
        "main_training_function": "main",
        "mixed_precision": precision,
        "num_machines": machines.count,
        "num_processes": every,
        "same_network": True,
        "use_cpu": False,
        **where,
    }
    settings.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    flags = ["--config_file", str(settings), "--num_processes", str(every), "--num_machines", str(machines.count)]
    if where:
        flags += ["--machine_rank", str(machines.rank), *(word for name, value in where.items() for word in (f"--{name}", str(value)))]
    flags += ["--mixed_precision", precision]
    meeting = [_MEETING, machines.count, machines.rank, machines.address, machines.port, task.processes] if where else []
    flags += ["--num_cpu_threads_per_process", str(threads), "--dynamo_backend", "no"]
    return [*map(str, meeting), "-m", "accelerate.commands.launch", *flags]


def _existing(python: Path | None, problem: str) -> Path:
    if python is None or not python.is_file():
        raise UserError(f"{problem} ({python or 'no config.json'}). Run `python install.py` in {PACK_ROOT}, then run the workflow again.")
    return python
