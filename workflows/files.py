"""The example workflows as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..nodes.catalog import BY_NAME
from .contents import FIRST, WORKFLOWS
from .layout import build
from .start_here import start_here

HERE = Path(__file__).resolve().parent


def texts() -> dict[Path, str]:
    """file -> its text, for all workflows."""
    specs = {name: node.spec for name, node in BY_NAME.items()}
    built = {name: build(workflow, specs) for name, workflow in WORKFLOWS.items()}
    built |= {f"train_a_lora{name}": start_here(FIRST, specs, app=app) for name, app in (("_start_here", False), (".app", True))}
    return {HERE / f"{name}.json": _text(workflow) for name, workflow in built.items()}


def _text(workflow: Mapping[str, Any]) -> str:
    return json.dumps(workflow, ensure_ascii=False, indent=1) + "\n"


def write() -> None:
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
