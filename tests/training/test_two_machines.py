"""Two machines train one LoRA, as the trainer nodes of both would start it: here both are this one, by its loopback address."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.full(reason="starts four launchers; training/test_distributed has the same processes")]


class Two:
    """Both machines, running. number 0 is the main one."""

    def __init__(self, part: Any, project: Any, out: str, *flags: str, **values: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        engine, task = part("nodes.jobs.engine"), part("nodes.jobs.task")
        self.running = []
        for rank in range(2):
            home = project.folder / f"machine {rank} of {out}"
            home.mkdir()
            settings = part("nodes.jobs.config").Config(home, Path(sys.executable), "builtin", None, None, (), 1)
            tool, *words = project.argv(f"{out}{rank}", *flags, **values)
            machines = task.Machines(2, rank, "127.0.0.1", port)
            todo = task.Task(tool, tuple(words), launch=True, machines=machines)
            command = engine.command(settings, part("nodes.jobs.folder").JobFolder(home), todo)
            environment = {name: value for name, value in command.env.items() if name != "MUSUBITUNER_JOB_DIR"}
            self.running.append(
                subprocess.Popen(
                    command.argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, encoding="utf-8", start_new_session=True,
                )
            )  # fmt: skip

    def ends(self) -> list[tuple[int, str]]:
        printed = [one.communicate()[0] for one in self.running]
        return [(one.returncode, text) for one, text in zip(self.running, printed, strict=True)]


def test_the_main_machine_has_the_lora_of_both(part: Any, project: Any) -> None:
    ended = Two(part, project, "both", max_train_steps=2).ends()
    assert [code for code, _ in ended] == [0, 0], ended
    assert "num batches per epoch / 1epochのバッチ数: 2" in ended[0][1], "each has half of the four clips"
    assert project.lora("both0") and not (project.folder / "out/both1/cat.safetensors").exists()


def test_a_machine_that_is_gone_ends_the_other_with_its_steps_saved(part: Any, project: Any) -> None:
    two = Two(part, project, "one", "--save_state", max_train_steps=100_000, save_every_n_steps=1, save_last_n_steps_state=1)
    state = re.compile(r"cat-step(\d+)-state")
    while two.running[0].poll() is None and not any(state.fullmatch(path.name) for path in (project.folder / "out/one0").glob("*")):
        time.sleep(0.05)
    machine = psutil.Process(two.running[1].pid)
    for process in (machine, *machine.children(recursive=True)):
        process.kill()
    (code, said), _ = two.ends()
    assert code != 0 and "process 1 of 2 (on " in said and "if it does not, it was killed" in said, said
    assert any(state.fullmatch(path.name) for path in (project.folder / "out/one0").iterdir())
