"""Where the product keeps its environment, settings and jobs.

Standard library only and free of relative imports: `install.py` loads this file by its path, with any python, before anything is installed.
The place follows from where the pack lies and nothing else, so that the installer (run by hand, or by ComfyUI-Manager) and the
running nodes agree on it.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "MUSUBITUNER_HOME"
CONFIG_NAME = "config.json"


def home_folder(pack_root: Path) -> Path:
    """$MUSUBITUNER_HOME, else `user/__musubituner` beside the `custom_nodes` the pack lies in, else `.musubituner` in the pack."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if pack_root.parent.name == "custom_nodes":
        return pack_root.parent.parent / "user" / "__musubituner"
    return pack_root / ".musubituner"
