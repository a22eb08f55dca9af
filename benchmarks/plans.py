"""What `--vram` chooses for every shipped training on cards of 8 to 24 GB, and what it costs in time: the table of docs/memory.md.

    python -m benchmarks.plans [--shared FOLDER] [--only wan_lora_training] [--document docs/memory.md]

Files are headers of the published shapes over a hole (`stand_ins.py`); nothing is computed. Takes minutes of CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headless.__main__ import PACK, load_pack

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "backend"))
CARDS = {"8": "RTX 4060", "12": "RTX 3060", "16": "RTX 4080", "24": "RTX 4090"}
"""Cards of so many GB; their data sheets say how long a step takes."""
ENOUGH = "1000"
HEADER = "| template | GB | it takes at most | while | chosen | step |\n|---|---|---|---|---|---|\n"


def part(name: str) -> Any:
    """A module of the pack."""
    if PACK not in sys.modules:
        load_pack()
    return importlib.import_module(f"{PACK}.{name}")


def home_with(folder: Path, shared: Path) -> Path:
    """A home folder with a stand-in of every model, a clip and an image under the names that templates have."""
    from musubi_backend.demo.clips import write_clips
    from PIL import Image

    from . import stand_ins

    settings = {"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    stand_ins.write_all(folder / "models", shared, folder / "scratch")
    write_clips(folder / "input" / "my_clips", count=1, size=(480, 272), frames=81)
    Image.new("RGB", (480, 272), "grey").save(folder / "input" / "start.png")
    return folder


def training_of(template: str, home: Path) -> list[str]:
    """The command of the training that the workflow starts, with its own values. Nothing is cached."""
    workflow, terminal = part("headless.workflow"), part("headless.terminal")
    host = terminal.TerminalHost(home, screen=terminal.Screen(io.StringIO()))
    results: dict[str, tuple[Any, ...]] = {}
    for step in workflow.order(workflow.read(ROOT / "workflows" / f"{template}.json")):
        inputs = step.constants | {name: results[source][slot] for name, (source, slot) in step.links.items()}
        if "dataset" in inputs and "lora_config" in inputs:  # it plans with what is free here
            results[step.id] = (inputs["lora_config"], "", None)
        elif "dataset" in inputs:
            results[step.id] = ({"architecture": inputs["models"]["architecture"], "dataset": inputs["dataset"], "job": ""},)
        elif "output_name" in inputs:
            node, dataset = step.node, inputs["latents"]["dataset"]
            values = part("nodes.checks").prepared(node, host, inputs)
            run = part("nodes.runs").Run(home / "runs" / template, template)
            begin = part("nodes.training_start").Start()
            task = node._task(host, run, node.values(values, dataset), values, begin, "builtin")
            return [task.tool, *task.argv()]
        else:
            results[step.id] = asyncio.run(step.node.run(host, **part("nodes.checks").prepared(step.node, host, inputs))).values
    raise SystemExit(f"{template} trains nothing")


def planned(training: list[str]) -> Callable[[str], dict[str, Any]]:
    """GB -> the plan of the training on the card that has so many. What does not depend on them is measured once."""
    from musubi_backend.tools import plan_memory
    from musubi_backend.tools.settings import PlanSettings

    values, architecture, planner = plan_memory.prepared(PlanSettings(training=tuple(training), gpu=CARDS["24"]))

    def plan(vram: str) -> dict[str, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            return plan_memory.judged(CARDS.get(vram, CARDS["24"]), {**values, "vram": vram}, architecture, planner)

    return plan


def row(template: str, vram: str, found: dict[str, Any], plain: dict[str, Any]) -> str:
    """step: times the same card's without any limit of memory (`plain`)."""
    from musubi_backend.memory import gpus

    speed = gpus.of_sheet(CARDS[vram])
    assert speed is not None
    step = found["seconds"] / speed.seconds(plain["operations"], plain["to_device"])
    chosen = " ".join(f"`{name}`" if value is True else f"`{name} {value}`" for name, value in found["chosen"].items()) or "nothing"
    peak = f"{found['peak'] / 1e9:.1f} GB" + ("" if found["fits"] else ": **does not fit**")
    return f"| {template} | {vram} | {peak} | {found['worst']} | {chosen} | {step:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("MUSUBITUNER_SHARED") or ROOT.parent / "shared"
    parser.add_argument("--shared", type=Path, default=Path(shared), help="the folder that holds golden/, for names of tensors")
    parser.add_argument("--only", help="one template")
    parser.add_argument("--vram", nargs="+", default=list(CARDS), choices=list(CARDS))
    parser.add_argument("--document", type=Path, help="the file whose table is to be replaced")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else sorted(path.stem for path in (ROOT / "workflows").glob("*_lora_training.json"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = home_with(Path(folder), arguments.shared)
        for name in names:
            plan = planned(training_of(name, home))
            plain = plan(ENOUGH)
            for vram in arguments.vram:
                started = time.process_time()
                found = plan(vram)
                rows.append(row(name, vram, found, plain))
                print(rows[-1], f"{time.process_time() - started:.0f} CPU s", *found["costs"], sep="\n    ", file=sys.stderr, flush=True)
    table = HEADER + "".join(f"{one}\n" for one in rows)
    if arguments.document is None:
        print(table)
        return
    text = arguments.document.read_text(encoding="utf-8")
    before, found_header, after = text.partition(HEADER)
    if not found_header:
        raise SystemExit(f"{arguments.document} has no table that begins with\n{HEADER}")
    rest = after[after.index("\n\n") + 1 :]
    arguments.document.write_text(before + table + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
