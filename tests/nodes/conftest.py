"""A home whose "interpreter" is a small script: nodes run to their end in a moment, through the real job runner."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Writes what a trainer would, as musubi-tuner does into the file that is there: LoRAs, a log, a loss. Converters write their input again,
# and a dataset is always good.
PROGRAM = """
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
flags = {}
for word in words:
    if word.startswith("--"):
        name, _, value = word[2:].partition("=")
        flags[name] = value
    elif flags:
        flags[list(flags)[-1]] = word
plan = json.loads((here / "plan.json").read_text())
if "output" in flags and "dataset_config" in flags:
    table = {"items": 1, "table": {}, "problems": [], "source": "/"}
    Path(flags["output"]).write_text(json.dumps({"text": "1 item", "datasets": [table]}))
    sys.exit()
if "output" in flags:
    Path(flags["output"]).write_bytes(b"converted " + Path(flags["input"]).read_bytes())
    sys.exit()
def tell(**event):
    with (Path(os.environ["MUSUBITUNER_JOB_DIR"]) / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"v": 1, "rank": 0, **event}) + "\\n")
tell(event="step", step=1, total=1, loss=0.5)
for text in plan.get("warnings", []):
    tell(event="warning", text=text)
with (here / "places.jsonl").open("a") as places:
    places.write(json.dumps([flags.get("output_name"), os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
if plan.get("crashes"):
    os.kill(os.getpid(), 9)
if plan.get("until_stopped"):
    heard = sys.stdin.readline().strip()
    tell(event="ended", outcome="stopped", text=f"stopped by {heard or 'the end of its pipe'}, state saved")
    sys.exit(3)
sys.stderr.write(plan.get("log", ""))
for name in plan.get("makes", []):
    target = Path(flags["save_path"], name) if "save_path" in flags else here / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(name)
if plan.get("exit"):
    tell(event="ended", outcome="failed", text=plan.get("log", ""))
if "output_dir" not in flags:
    sys.exit(plan.get("exit", 0))
for ending in plan.get("endings", [""]):
    Path(flags["output_dir"], flags["output_name"] + ending + ".safetensors").write_text(plan.get("lora", "weights"))
sys.exit(plan.get("exit", 0))
"""
_NAMES = {"latents": "clip_00000-005_0064x0048_{}.safetensors", "text": "clip_{}_te.safetensors"}


class Bench:
    """A home with a dataset, a model file and the stand-in. `plan` says what it does, `calls` what it was reported."""

    def __init__(self, part: Any, home: Path, card: str = "wan") -> None:
        self.part, self.home, self.card = part, home, card
        home.mkdir()
        self.program = home / "python"
        self.program.write_text(f"#!{sys.executable} -IS\n{PROGRAM}", encoding="utf-8")
        self.program.chmod(0o755)
        self.engine("builtin")
        self.plan()
        self.cache = home / "cache"
        self.cache.mkdir()
        self.names = {kind: name.format(card) for kind, name in _NAMES.items()}
        for name in self.names.values():
            (self.cache / name).write_bytes(b"cached")
        self.dit, self.vae = home / "dit.safetensors", home / "vae.safetensors"
        for file in (self.dit, self.vae):
            file.write_bytes(b"model")
        part("nodes.jobs.follow").durations.SHOW = 0.02  # its jobs take a moment, and a test starts several
        self.host = part("headless.terminal").TerminalHost(home, screen=part("headless.terminal").Screen(io.StringIO()))

    def plan(self, **said: Any) -> None:
        (self.home / "plan.json").write_text(json.dumps(said), encoding="utf-8")

    def engine(self, name: str) -> None:
        musubi = {"path": str(self.home / "musubi"), "python": str(self.program)}
        settings = {"interpreter": str(self.program), "engine": name, "musubi_tuner": musubi}
        (self.home / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    def node(self, name: str, **widgets: Any) -> Any:
        """The value that a node of settings gives."""
        node = self.part("nodes.catalog").BY_NAME[name]()
        return self.run(node, **widgets).values[0]

    def run(self, node: Any, **inputs: Any) -> Any:
        """What any node gives for these inputs; the others have their defaults."""
        return asyncio.run(node.run(self.host, **self.part("nodes.checks").prepared(node, self.host, inputs)))

    def dataset(self, **more: Any) -> dict[str, Any]:
        return {"toml": str(self.home / "dataset.toml"), "datasets": [{"cache_directory": str(self.cache), "resolution": [64, 48], **more}]}

    def train(self, **changes: Any) -> Any:
        """changes: `config_network_dim=8` is that widget of the first node, and so on; other names are inputs of the trainer itself."""
        groups: dict[str, dict[str, Any]] = {
            "config": {"mixed_precision": "bf16"},
            "optimizer": {},
            "sampling": {},
            "models": {},
            "data": {},
        }
        own = {}
        for name, value in changes.items():
            group, _, widget = name.partition("_")
            if group in groups:
                groups[group][widget] = value
            else:
                own[name] = value
        dataset = self.dataset(**groups["data"])
        task = {"wan": "t2v-1.3B", "hv": "hv"}[self.card]
        models = {"architecture": self.card, "task": task, "dit": str(self.dit), "vae": str(self.vae), "t5": str(self.vae)}
        inputs = {
            "models": {**models, **groups["models"]},
            "latents": {"architecture": self.card, "dataset": dataset},
            "text": {"architecture": self.card, "dataset": dataset},
            "lora_config": self.node("LoRATrainingConfig", **groups["config"]),
            "optimizer": self.node("OptimizerConfig", **groups["optimizer"]),
            "sampling": self.node("SamplingConfig", **groups["sampling"]),
            **own,
        }
        trainers = {"wan": "WanLoRATrainer", "hv": "HunyuanVideoLoRATrainer"}
        node = self.part("nodes.catalog").BY_NAME[trainers[self.card]]()
        return self.run(node, **inputs)

    @property
    def calls(self) -> list[list[str]]:
        file = self.home / "calls.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    @property
    def runs(self) -> set[str]:
        folder = self.home / "runs"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture(scope="session")
def make_bench(part: Any) -> Callable[..., Bench]:
    """A function: a bench in a folder that is not there yet, for an architecture."""
    if os.name != "posix":
        pytest.skip("the stand-in of the interpreter is a script")
    return lambda home, card="wan": Bench(part, home, card)


@pytest.fixture
def bench(make_bench: Callable[..., Bench], tmp_path: Path) -> Bench:
    return make_bench(tmp_path / "our ホーム")
