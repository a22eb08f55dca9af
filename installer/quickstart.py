"""`--quickstart`: the main job, small but complete, on any machine.

Tiny models and a clip go through `workflows/quickstart.json` by way of the nodes: dataset, caches, LoRA training, and the clip next to two
videos, one made without the LoRA and one with it.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from .backend import Places
from .console import Console, InstallError, clean_environment

_RESULTS = (
    ("LoRA", "models/loras/musubi_tuner/quickstart.safetensors"),
    ("comparison", "output/musubi_tuner/quickstart_*.mp4"),
    ("loss curve", "runs/quickstart-*/loss.svg"),
)
_TOOLS = (
    ("demo_models", "models", "tiny models", ()),
    ("demo_dataset", "quickstart", "a clip of a chessboard", ("--subject", "chessboard", "--clips", "1")),
)


def run(places: Places, python: Path, console: Console) -> int:
    """Make the demo data if it is not there, run the workflow from the start, and return its exit code."""
    started = time.monotonic()
    demo = places.home / "demo"
    for tool, folder, what, flags in _TOOLS:  # each leaves alone what it has made before
        console.say(f"- Making {what} in {demo / folder}")
        console.run([str(python), "-m", "musubi_backend", tool, "--output", str(demo / folder), *flags], folder=places.backend)
    workflow = places.root / "workflows" / "quickstart.json"
    if not workflow.is_file():
        raise InstallError(f"{workflow} is missing: the pack is incomplete. Download or clone it again.")
    console.say(f"- Running {workflow.relative_to(places.root)}: dataset, caches, training, video")
    command = [str(python), "-m", "headless", str(workflow), "--home", str(places.home), "--fresh"]
    code = subprocess.run(command, cwd=places.root, env=clean_environment({"MUSUBITUNER_HOME": str(places.home)}), check=False).returncode
    if code == 0:
        console.say(f"\nThe quickstart took {time.monotonic() - started:.0f} s and made:")
        for what, pattern in _RESULTS:
            console.say(f"  {what:<12}{_newest(places.home, pattern)}")
        console.say("The comparison shows the clip, a video made without the LoRA, and one made with it.")
        console.say(f"The same workflow opens in ComfyUI: {workflow}")
    else:
        console.say(
            f"\nThe quickstart did not finish (code {code}); the reason is above. `python install.py --doctor` checks the installation."
        )
    return code


def _newest(home: Path, pattern: str) -> Path:
    """The file that this run made. InstallError if there is none, although the workflow ended well."""
    found = sorted(home.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InstallError(
            f"the workflow ended without an error, but there is no {home / pattern}. Please report this with {home / 'jobs'}."
        )
    return found[-1]
