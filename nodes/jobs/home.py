"""Where the product keeps its environment, settings and jobs.

Standard library only and free of relative imports: `install.py` loads this file by its path, with any python, before anything is installed.
The place follows from where the pack lies and nothing else, so that the installer (run by hand, or by ComfyUI-Manager) and the
running nodes agree on it. Links are kept: a linked pack belongs to the ComfyUI that it is linked into.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "MUSUBITUNER_HOME"
CONFIG_NAME = "config.json"


def home_folder(pack_root: Path) -> Path:
    """$MUSUBITUNER_HOME, else `user/__musubituner` next to the `custom_nodes` the pack lies in, else `.musubituner` in the pack."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(os.path.expanduser(chosen)).absolute()
    place = _as_in_shell(pack_root)
    if place.parent.name == "custom_nodes":
        return place.parent.parent / "user" / "__musubituner"
    return place / ".musubituner"


def _as_in_shell(folder: Path) -> Path:
    """`folder`, if it is the working folder, as the shell names it: only the shell knows through which links it came there."""
    shell = Path(os.environ.get("PWD", ""))
    same = shell.is_absolute() and shell.is_dir() and folder.is_dir() and shell.samefile(Path.cwd()) and shell.samefile(folder)
    return shell if same else folder
