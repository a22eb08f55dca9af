"""`--quickstart`: the main job, small but complete, on any machine.

Tiny models and a few clips made from scikit-image's bundled photographs go through `workflows/quickstart.json` by way of the nodes:
dataset, caches, LoRA training, a video generated with the LoRA.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from .backend import Places
from .console import Console, InstallError, clean_environment

_TOOLS = (("demo_models", "models", "tiny models"), ("demo_dataset", "dataset", "a small dataset of real clips"))


def run(places: Places, python: Path, console: Console) -> int:
    """Make the demo data if it is not there, run the workflow from the start, and return its exit code."""
    started = time.monotonic()
    demo = places.home / "demo"
    for tool, folder, what in _TOOLS:  # each leaves alone what it has made before
        console.say(f"- Making {what} in {demo / folder}")
        console.run([str(python), "-m", "musubi_backend", tool, "--output", str(demo / folder)])
    workflow = places.root / "workflows" / "quickstart.json"
    if not workflow.is_file():
        raise InstallError(f"{workflow} is missing: the pack is incomplete. Download or clone it again.")
    console.say(f"- Running {workflow.relative_to(places.root)}: dataset, caches, training, video")
    command = [str(python), "-m", "headless", str(workflow), "--home", str(places.home), "--fresh"]
    code = subprocess.run(command, cwd=places.root, env=clean_environment({"MUSUBITUNER_HOME": str(places.home)}), check=False).returncode
    if code == 0:
        console.say(f"\nThe quickstart took {time.monotonic() - started:.0f} s. Open the workflow in ComfyUI: {workflow}")
    else:
        console.say(
            f"\nThe quickstart did not finish (code {code}); the reason is above. `python install.py --doctor` checks the installation."
        )
    return code
