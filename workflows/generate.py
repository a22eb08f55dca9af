"""Writes the example workflows in ComfyUI's UI format: `python workflows/generate.py`, with any python.

ComfyUI offers the JSON files next to this one as templates, and `python -m headless` runs them. A test fails when they are out of date.
"""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path

if __name__ == "__main__":
    headless = runpy.run_path(str(Path(__file__).resolve().parent.parent / "headless" / "__main__.py"))
    headless["load_pack"]()
    importlib.import_module(f"{headless['PACK']}.workflows.files").write()
