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
from .state import State, stamp_of

_TOOLS = (("demo_models", "models", "tiny models"), ("demo_dataset", "dataset", "a small dataset of real clips"))


def run(places: Places, python: Path, console: Console) -> int:
    """Make the demo data if it is not there, run the workflow, and return its exit code."""
    started = time.monotonic()
    demo = places.home / "demo"
    state = State.load(places.home)
    for tool, folder, what in _TOOLS:
        stamp = stamp_of(*sorted((places.backend / "musubi_backend" / "tools").glob("demo*.py")), str(demo / folder))
        if state.done(tool, stamp) and (demo / folder).is_dir():
            continue
        console.say(f"- Making {what} in {demo / folder}")
        state.begin(tool)
        console.run([str(python), "-m", "musubi_backend", tool, "--output", str(demo / folder)])
        state.finish(tool, stamp)
    workflow = places.root / "workflows" / "quickstart.json"
    if not workflow.is_file():
        raise InstallError(f"{workflow} is missing: the pack is incomplete. Download or clone it again.")
    console.say(f"- Running {workflow.relative_to(places.root)}: dataset, caches, training, video")
    command = [str(python), "-m", "headless", str(workflow), "--home", str(places.home), "--models", str(demo / "models"), "--fresh"]
    code = subprocess.run(command, cwd=places.root, env=clean_environment({"MUSUBITUNER_HOME": str(places.home)}), check=False).returncode
    if code == 0:
        console.say(f"\nThe quickstart took {time.monotonic() - started:.0f} s. Open the workflow in ComfyUI: {workflow}")
    else:
        console.say(
            f"\nThe quickstart did not finish (code {code}); the reason is above. `python install.py --doctor` checks the installation."
        )
    return code
