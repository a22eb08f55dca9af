"""Start-up, step time and memory of LoRA training, ours next to musubi-tuner's, on the same files.

    python -m benchmarks.training --musubi CHECKOUT --musubi-python PYTHON [--only HunyuanVideo] [--repeat 3] [--flags="--fp8_base"]

The two engines run in turn (ours, theirs, ours, …) so that a machine whose speed drifts treats both alike. One thread,
AdamW, LoRA rank 32, gradient checkpointing; figures are minima over the repetitions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from .caches import write_dataset
from .models import MODELS, Measured
from .process import Usage, run
from .report import Row, arguments_of, print_table, working_folder

ROOT = Path(__file__).resolve().parents[1]
RUNNER = str(ROOT / "benchmarks" / "timed_run.py")


STEPS = {"tiny": 20, "mid": 6}


def train_flags(model: Measured, folder: Path, dataset: Path) -> list[str]:
    """The flags both engines get."""
    precision = "bf16" if model.dtype == "bf16" else "no"
    dtype = () if model.architecture != "hv" else ("--dit_dtype", "bfloat16" if model.dtype == "bf16" else "float32")
    return [
        *model.flags,
        *dtype,
        *("--dit", str(folder / "dit.safetensors"), "--dataset_config", str(dataset)),
        *("--output_dir", str(folder / "out"), "--output_name", "bench", "--sdpa", "--gradient_checkpointing"),
        *("--network_dim", "32", "--optimizer_type", "adamw", "--learning_rate", "1e-4"),
        *("--timestep_sampling", "shift", "--discrete_flow_shift", "3.0", "--max_data_loader_n_workers", "0", "--seed", "42"),
        *("--max_train_steps", str(STEPS[model.name.partition(" ")[0]]), "--mixed_precision", precision),
    ]


def measure(engine: str, python: str, source: Path, model: Measured, flags: list[str], folder: Path) -> tuple[Usage, dict[str, float]]:
    """One training run; returns its cost and {first_step, step_cpu, step_wall} (seconds; steps: min after the first)."""
    environment = {"PYTHONPATH": str(source), "BENCH_GEOMETRY": json.dumps(model.musubi_geometry), "BENCH_DTYPE": model.dtype}
    usage = run([python, RUNNER, engine, model.tool, *flags], folder / f"{engine}.log", environment)
    line = next(line for line in usage.output.splitlines() if line.startswith("BENCH "))
    record = json.loads(line.removeprefix("BENCH "))
    step = {"step_cpu": min(record["step_cpu"]), "step_wall": statistics.median(record["step_wall"])}
    return usage, {"first_step": record["first_step"], **step}


def compare(model: Measured, arguments: argparse.Namespace, work: Path) -> list[Row]:
    folder = work / model.name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    model.write(folder / "dit.safetensors")
    flags = [*train_flags(model, folder, write_dataset(model, folder)), *arguments.flags.split()]
    sides = {"ours": (sys.executable, ROOT / "backend"), "musubi": (arguments.musubi_python, arguments.musubi / "src")}
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.repeat):
        for engine, (python, source) in sides.items():
            usage, times = measure(engine, python, source, model, flags, folder)
            times["rss"] = usage.rss_mb
            best[engine] = {k: min(v, best.get(engine, times)[k]) for k, v in times.items()}
    ours, musubi = best["ours"], best["musubi"]
    return [
        Row(f"{model.name}: process start to first step", ours["first_step"], musubi["first_step"], "s", 0.5),
        Row(f"{model.name}: step, CPU seconds", ours["step_cpu"], musubi["step_cpu"], "s", 0.8),
        Row(f"{model.name}: peak memory", ours["rss"], musubi["rss"], "MB", 1.0),
    ]


def main() -> None:
    arguments = arguments_of(__doc__, only="models whose name has this word in it")
    chosen = [model for model in MODELS if (arguments.only or "") in model.name]
    with working_folder(arguments) as work:
        print_table([row for model in chosen for row in compare(model, arguments, work)])


if __name__ == "__main__":
    main()
