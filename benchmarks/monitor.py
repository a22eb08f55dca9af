"""What watching costs the server: an index over many long trainings, and the series of one of them.

    python -m benchmarks.monitor [--jobs 50] [--steps 200000]

Writes the logs first (2 GB at full size) into a temporary folder. Seconds of the clock and of this process's CPU, as other programs take
their share of the first.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import random
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK = "musubituner_pack"


def part(name: str) -> Any:
    """A module of the pack."""
    if PACK not in sys.modules:
        pack = types.ModuleType(PACK)
        pack.__path__ = [str(ROOT)]
        sys.modules[PACK] = pack
    return importlib.import_module(f"{PACK}.{name}")


def write_jobs(home: Path, jobs: int, steps: int) -> list[str]:
    """Jobs that have ended, each with a log of so many steps. Their names."""
    events, folders = part("backend.musubi_backend.events"), part("nodes.jobs.folder")
    source = random.Random(1)  # noqa: S311
    lines = [events.line_of(events.Start(steps, 0, 100, 40), time=1.0, clock=1.0, rank=0)]
    for step in range(1, steps + 1):
        loss = 0.1 + source.random() / 10
        event = events.Step(step, steps, 1 + step * 100 // steps, round(loss, 6), 0.15, 1e-4, 0.5)
        lines.append(events.line_of(event, time=1795801437.0 + step / 2, clock=step / 2, rank=0))
    text = "".join(lines)
    names = []
    for number in range(jobs):
        folder = folders.JobFolder.create(home, "wan_train_network")
        folder.write_task({"tool": "wan_train_network", "training": {"name": f"lora {number}", "run": f"run-{number}", "values": {}}})
        folder.write_status("ended", outcome="finished", step=steps, total=steps, engine="builtin")
        folder.metrics.write_text(text, encoding="utf-8")
        names.append(folder.id)
    return names


def measured(what: str, work: Callable[[], object], repeat: int = 1) -> None:
    """Print the least times of `repeat` runs."""
    clocks, processors = [], []
    for _ in range(repeat):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        clocks.append(time.perf_counter() - clock)
        processors.append(time.process_time() - processor)
    print(f"| {what} | {min(clocks) * 1000:.0f} ms | {min(processors) * 1000:.0f} ms |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        names = write_jobs(home, given.jobs, given.steps)
        part("nodes.jobs.index").tools()  # the option tables, which ComfyUI has read when it shows the nodes
        index = part("nodes.jobs.index").Index(home)
        print(f"{given.jobs} jobs with {given.steps} steps each\n\n| what | clock | CPU |\n|---|---|---|")
        measured("list, cold", lambda: list(index.jobs()))
        measured("list, warm", lambda: list(index.jobs()), 10)
        measured("list as JSON, warm", lambda: json.dumps(list(index.jobs())), 10)
        series = ("loss", "lr")
        measured("series of one job, cold", lambda: index.history(names[0]).between(series, None, None, 800))
        measured("series of one job, warm", lambda: index.history(names[0]).between(series, None, None, 800), 10)
        measured("series of five jobs, cold", lambda: [index.history(name).between(series, None, None, 800) for name in names[1:6]])
        measured("series of five jobs, warm", lambda: [index.history(name).between(series, None, None, 800) for name in names[1:6]], 5)
        log = home / "jobs" / names[0] / "metrics.jsonl"
        line = log.read_text(encoding="utf-8").splitlines()[-1] + "\n"
        further = itertools.count(given.steps + 1)

        def next_step() -> None:
            with log.open("a", encoding="utf-8") as file:
                file.write(line.replace(f'"step": {given.steps}', f'"step": {next(further)}'))
            if not index.history(names[0]).between(("loss",), given.steps + 1, None, 800)["steps"]:
                raise ValueError("a step that was told is not seen")

        measured("one more step, and what is new", next_step, 5)
        print(f"\npeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
