"""LoRA tools, ours next to musubi-tuner's: a rank-32 LoRA of a Wan with the sizes of 1.3B, ten checkpoints, and that model in bf16.

    python -m benchmarks.lora_tools --musubi CHECKOUT --musubi-python PYTHON [--only merge] [--threads 1] [--repeat 3] [--work DIR]

Cost of whole processes, the quickest of the repetitions, the engines in turn. --threads: of torch, all processors by default; on a busy
machine musubi-tuner is quicker with one, as its threads wait for each other. Each is also
compared with plainly reading and writing the same bytes, once what a start takes (the same tool on a tiny file) is taken off.
Needs 8 GB of disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .lora_files import CHECKPOINTS
from .process import Usage, run
from .report import Row, arguments_of, print_table, working_folder

ROOT = Path(__file__).resolve().parents[1]
RUNNER = str(ROOT / "benchmarks" / "timed_run.py")
MERGER = str(ROOT / "benchmarks" / "musubi_wan_merge.py")
_COPY = """
import os, sys
*sources, target, size = sys.argv[1:]
left = int(size)
with open(target, "wb") as out:
    for source in sources:
        with open(source, "rb") as file:
            while block := file.read(1 << 24):
                out.write(block[:left])
                left = max(0, left - len(block))
    out.flush()
    os.fsync(out.fileno())
"""


@dataclass(frozen=True)
class Case:
    """One tool on one set of files. aim: ratio of wall times; musubi, ours, tiny: what follows the interpreter on either side."""

    name: str
    ours: list[str]
    musubi: list[str]
    tiny: list[str]
    inputs: list[Path]
    output: Path
    aim: float


def main() -> None:
    arguments = arguments_of(__doc__, only="one of ema, convert, merge", threads=os.cpu_count() or 1)
    with working_folder(arguments) as work:
        cases = [case for case in prepare(work) if arguments.only in (None, case.name)]
        sides = {"ours": (sys.executable, ROOT / "backend"), "musubi": (arguments.musubi_python, arguments.musubi / "src")}
        rows, lines = [], []
        for case in cases:
            best = measure(case, sides, work, arguments.repeat, arguments.threads)
            ours, musubi, start, copy = (best[name] for name in ("ours", "musubi", "start", "copy"))
            rows += [
                Row(f"{case.name}: wall", ours.wall, musubi.wall, "s", case.aim),
                Row(f"{case.name}: CPU seconds", ours.cpu, musubi.cpu, "s", case.aim),
                Row(f"{case.name}: peak memory", ours.rss_mb, musubi.rss_mb, "MB", 0.3),
            ]
            lines.append(
                f"{case.name}: {ours.wall - start.wall:.2f} s beyond a start of {start.wall:.2f} s; reading and writing the same bytes "
                f"takes {copy.wall:.2f} s: {(ours.wall - start.wall) / copy.wall:.2f} times that (aim 1.5)"
            )
        print_table(rows)
        print("\n" + "\n".join(lines))


def measure(case: Case, sides: dict[str, tuple[str, Path]], work: Path, repeat: int, threads: int) -> dict[str, Usage]:
    """The cheapest run of either side, of a start, and of a copy."""
    best: dict[str, Usage] = {}
    copy = ["-c", _COPY, *map(str, case.inputs), str(work / "copy"), str(size_of_output(case))]
    commands = {"ours": case.ours, "musubi": case.musubi, "start": case.tiny, "copy": copy}
    for _ in range(repeat):
        for name, words in commands.items():
            python, source = sides["musubi" if name == "musubi" else "ours"]
            for path in (case.output, work / "copy"):
                path.unlink(missing_ok=True)
            usage = run([python, *words], work / f"{name}.log", {"PYTHONPATH": str(source)}, threads)
            best[name] = min(usage, best.get(name, usage), key=lambda one: one.wall)
    return best


def size_of_output(case: Case) -> int:
    return case.inputs[0].stat().st_size


def prepare(work: Path) -> list[Case]:
    """Write the files (in a process of its own: memory once used would count for those that are measured), and say what is run on them."""
    subprocess.run([sys.executable, "-m", "benchmarks.lora_files", str(work)], check=True, cwd=ROOT)
    loras = [work / f"lora-{number:06d}.safetensors" for number in range(1, CHECKPOINTS + 1)]
    tiny, dit, output = work / "tiny.safetensors", work / "dit.safetensors", work / "out.safetensors"

    def sides(tool: str, *words: object) -> tuple[list[str], list[str]]:
        flags = [tool, *map(str, words)]
        return [RUNNER, "ours", *flags], [RUNNER, "musubi", *flags]

    average = sides("lora_post_hoc_ema", *loras, "--beta", 0.95, "--output_file", output)
    convert = sides("convert_lora", "--input", loras[-1], "--output", output, "--target", "other")
    merge, _ = sides("merge_lora", "--dit", dit, "--lora_weight", loras[-1], "--save_merged_model", output)
    tiny_merge, _ = sides("merge_lora", "--dit", work / "tiny_dit.safetensors", "--lora_weight", tiny, "--save_merged_model", output)
    tiny_convert, _ = sides("convert_lora", "--input", tiny, "--output", output, "--target", "other")
    return [
        Case("ema", *average, sides("lora_post_hoc_ema", tiny, tiny, "--output_file", output)[0], loras, output, 0.4),
        Case("convert", *convert, tiny_convert, [loras[-1]], output, 0.25),
        Case("merge", merge, [MERGER, str(dit), str(loras[-1]), str(output)], tiny_merge, [dit, loras[-1]], output, 0.4),
    ]


if __name__ == "__main__":
    main()
