"""The quickstart on this machine as it is, and next to busy processes: training, caching and generating are not to wait for each other.

    python -m benchmarks.busy [--processes 4] [--repeat 2] [--workflow workflows/quickstart.json]

Models and clip are made first and not counted. The two cases run in turn, as other work on the machine counts for both. Wall seconds of
whole runs (`python -m headless ... --fresh`), the quickest of the repetitions. Aim: at most 3 times as long with 4 busy processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AIM = 3.0
_SET_BY_US = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4, help="how many busy processes run next to it")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--workflow", type=Path, default=ROOT / "workflows" / "quickstart.json")
    arguments = parser.parse_args()
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = prepare(Path(folder))
        for _ in range(arguments.repeat):
            for case, processes in (("alone", 0), ("busy", arguments.processes)):
                with busy(processes):
                    seconds = run(["headless", str(arguments.workflow), "--home", str(home), "--fresh"])
                print(f"{case}: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
                best[case] = min(seconds, best.get(case, seconds))
    ratio = best["busy"] / best["alone"]
    print(f"\n{best['busy']:.1f} s next to {arguments.processes} busy processes, {best['alone']:.1f} s alone: {ratio:.2f} (aim: {AIM})")


def prepare(home: Path) -> Path:
    """A home folder with the demo models and the clip."""
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable}), encoding="utf-8")
    run(["musubi_backend", "demo_models", "--output", str(home / "demo" / "models")])
    board = ("--subject", "chessboard", "--clips", "1")
    run(["musubi_backend", "demo_dataset", "--output", str(home / "demo" / "quickstart"), *board])
    return home


def run(words: list[str]) -> float:
    """Seconds that a module with its arguments takes, its threads set by nobody but us. CalledProcessError when it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _SET_BY_US}
    started = time.perf_counter()
    command = [sys.executable, "-m", *words]
    subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT / "backend")}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
