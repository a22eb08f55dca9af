"""One of several processes of a training (`group`): plays one scene after the other, so that they start only once.

Arguments: a file with the scenes, in JSON; the folder for what happened. A scene is a command line, or "means" or "gradients"; the first
processes play it, as many as it says.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from accelerate import PartialState
from musubi_backend import __main__, durations, job
from musubi_backend.architectures import protocol
from musubi_backend.atomic import write_text
from musubi_backend.errors import UserError
from musubi_backend.options.parser import parse
from musubi_backend.training import distributed, stepping_down, train
from musubi_backend.training.loop import Loop
from musubi_backend.training.samples import Samples
from musubi_backend.training.settings import TrainingSettings
from musubi_backend.training.stepping_down import SteppingDown
from musubi_backend.weights.safetensors_file import save_atomic

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def means() -> list[Any]:
    group = distributed.start(None)
    used, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    used.grad = torch.tensor([1.0, 2.0]) + 10 * group.rank
    if group.rank == 1:
        other.grad = torch.tensor([4.0, 4.0])
    group.average_gradients([used, other])
    assert used.grad is not None and other.grad is not None
    mean = group.mean(torch.tensor(float(group.rank))).item()
    found = [used.grad.tolist(), other.grad.tolist(), mean, group.agreed(40 + group.rank), group.any(group.rank == 1), group.any(False)]
    found += [group.gathered(torch.tensor([group.rank, 5])).tolist(), group.is_main]
    group.close()
    return found


def gradients(words: Sequence[str], folder: Path) -> list[int]:
    """Gradients of the first step go to a file. Returns bytes of the blocks' matrices: of all, and of what this process keeps."""
    args = parse(words[0], list(words[1:]))
    architecture = protocol.load("wan").configured(vars(args))
    settings = TrainingSettings.read(args)
    group = distributed.start(None)
    loop = train.prepare(settings, vars(args), architecture, group, train.check(settings, architecture))
    loop._backward(loop._load(loop._own_batches(0)[0]), 0)
    group.average_gradients(loop.parameters)
    save_atomic({str(number): _gradient(one) for number, one in enumerate(loop.parameters)}, folder / f"gradients{RANK}.safetensors")
    matrices = [one for name, one in loop.run.transformer.named_parameters() if "blocks." in name and one.ndim == 2 and "norm" not in name]
    kept = [one.to_local() if hasattr(one, "to_local") else one for one in matrices]
    group.close()
    return [sum(one.nbytes for one in matrices), sum(one.nbytes for one in kept)]


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def asked_to_stop(micro_step: int, rank: int = 1, ask: Callable[[], object] = job.request_stop) -> None:
    """In the middle of a micro-step (1-based), in one process."""
    backward, done = Loop._backward, []

    def stepping(self: Loop, *arguments: Any) -> torch.Tensor:
        done.append(1)
        if len(done) == micro_step and rank == RANK:
            ask()
        return backward(self, *arguments)

    Loop._backward = stepping  # type: ignore[method-assign]


def stop_sampling() -> None:
    sample = Samples._sample

    def asked(self: Samples, *arguments: Any) -> torch.Tensor:
        if RANK == 1:
            job.request_stop()
        return sample(self, *arguments)

    Samples._sample = asked  # type: ignore[method-assign]


def run_out(times: int) -> None:
    """In the second process the memory is full in the second step, and as often as it is tried again."""
    backward, done = Loop._backward, []

    def stepping(self: Loop, *arguments: Any) -> torch.Tensor:
        done.append(1)
        loss = backward(self, *arguments)
        if RANK == 1 and 2 <= len(done) < 2 + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 15.60 GiB")
        return loss

    Loop._backward = stepping  # type: ignore[method-assign]


def not_finite() -> None:
    """In the second process the loss of the second step is no number."""
    backward, done = Loop._backward, []

    def stepping(self: Loop, *arguments: Any) -> torch.Tensor:
        done.append(1)
        loss = backward(self, *arguments)
        return loss * torch.nan if RANK == 1 and len(done) == 2 else loss

    Loop._backward = stepping  # type: ignore[method-assign]


def build_fails() -> None:
    """In the second process there is no memory for less either."""
    run_out(1)

    def build(*_: Any) -> NoReturn:
        raise UserError("the weight file is gone")

    if RANK == 1:
        stepping_down.build = build


def nothing_helps() -> None:
    """The first process finds nothing that needs less."""
    run_out(1)
    if RANK == 0:
        SteppingDown._lowered = lambda self, phase: None  # type: ignore[method-assign]


def record(learned: list[list[str]]) -> None:
    """Of each step, the items it learned from."""
    checked = Loop._checked

    def checking(self: Loop) -> list[float]:
        learned.append([name for one in self._window for name in one.names])
        return checked(self)

    Loop._checked = checking  # type: ignore[method-assign]


def port_of(file: Path) -> str:
    """Where the two meet: chosen when the first one is there, as what was free at the start of the test may be taken by then."""
    if RANK == 0:
        with socket.create_server(("127.0.0.1", 0)) as free:
            write_text(file, str(free.getsockname()[1]))
    while not file.is_file():
        time.sleep(0.02)
    return file.read_text(encoding="utf-8")


def play(scene: dict[str, Any], folder: Path, learned: list[list[str]]) -> Any:
    if torch.distributed.is_initialized():  # a process that parted from the other one ends with its group
        torch.distributed.destroy_process_group()
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(scene.get("count") or WORLD)
    os.environ["MASTER_PORT"] = port_of(folder / scene["name"] / "port")
    PartialState._reset_state()
    job._stop.clear()
    if scene.get("story") == "means":
        return means()
    words = scene["words"][RANK > 0]
    if scene.get("story") == "gradients":
        return gradients(words, folder / scene["name"])
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Loop, "_backward"),
            (Samples, "_sample"),
            (stepping_down, "build"),
            (SteppingDown, "_lowered"),
            (Loop, "_checked"),
        ):
            patch.setattr(owner, name, getattr(owner, name))  # what stories put in their places goes with the scene
        record(learned)
        STORIES.get(scene.get("story", ""), lambda: None)()
        try:
            return __main__.main(words)
        except SystemExit as left:
            return left.code


def hang(micro_step: int) -> None:
    """The second process stands still, as a machine does that is out of reach."""
    asked_to_stop(micro_step, 1, told(signal.SIGSTOP))
    pytest.MonkeyPatch().setattr(durations, "SILENCE", 4.0)


def fails(micro_step: int) -> None:
    """The second process cannot read a cache."""

    def fail() -> NoReturn:
        raise UserError("the cache of clip 3 is gone")

    asked_to_stop(micro_step, 1, fail)


def told(signal_number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal_number)


def killed(micro_step: int, rank: int) -> Callable[[], None]:
    return lambda: asked_to_stop(micro_step, rank, told(signal.SIGKILL))


STORIES: dict[str, Callable[[], None]] = {
    "stop": lambda: asked_to_stop(3), "stop sampling": stop_sampling, "run out": lambda: run_out(1), "run out again": lambda: run_out(2),
    "not finite": not_finite, "build fails": build_fails, "nothing helps": nothing_helps,
    "stop in 4": lambda: asked_to_stop(4), "stop in 6": lambda: asked_to_stop(6),
    "terminate in 6": lambda: asked_to_stop(6, 0, told(signal.SIGTERM)), "interrupt in 6": lambda: asked_to_stop(6, 1, told(signal.SIGINT)),
    "kill in 6": killed(6, 1), "kill the main one in 6": killed(6, 0), "hang in 6": lambda: hang(6), "fail in 6": lambda: fails(6),
}  # fmt: skip


if __name__ == "__main__":
    scenes, target = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    happened = {}
    for one in scenes:
        if (one.get("count") or WORLD) <= RANK:
            continue
        (target / one["name"]).mkdir(exist_ok=True)
        said, trained = io.StringIO(), []
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            result = play(one, target, trained)
        happened[one["name"]] = [result, said.getvalue(), trained]
        (target / f"happened{RANK}.json").write_text(json.dumps(happened), encoding="utf-8")
