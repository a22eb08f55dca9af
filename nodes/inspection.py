"""What is in a dataset file and what of it cannot be used, as the backend sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from . import content
from .jobs.follow import run_tool
from .spec import Host

_TOOL = "inspect_dataset"
_KEPT = ("kind", "source", "cache_directory", "control_directory")
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Report:
    """datasets: kind and absolute folders of each; text: everything left out, with its reason; summary: its beginning, for the node."""

    datasets: list[dict[str, Any]]
    summary: str
    text: str


async def inspect(host: Host, config: Path) -> Report:
    """Let the backend check a dataset file. UserError names key and fix if the file is wrong, or lists why no item can be used."""
    folder = host.home / "datasets" / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{content.digest(str(config))}.json"
    await run_tool(host, _TOOL, to_argv(_TOOL, {"dataset_config": str(config), "output": str(output)}), foreign=False, gpu=False)
    report = json.loads(output.read_text(encoding="utf-8"))
    text = str(report["text"])
    if not any(dataset["items"] for dataset in report["datasets"]):
        raise UserError(f"nothing in this dataset can be used. {text}")
    lines = text.splitlines()
    summary = "\n".join(lines[:_SHOWN_LINES]) + (f"\n… {len(lines) - _SHOWN_LINES} more lines" if len(lines) > _SHOWN_LINES else "")
    return Report([{key: dataset.get(key) for key in _KEPT} for dataset in report["datasets"]], summary, text)
