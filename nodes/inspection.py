"""What is in a dataset file and what of it cannot be used, as the backend sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jobs.follow import run_tool
from .spec import Host


@dataclass(frozen=True)
class Report:
    """datasets: their tables, complete with "source" and "cache_directory"; summary: one line; text: every dropped item with its reason."""

    datasets: list[dict[str, Any]]
    summary: str
    text: str


async def inspect(host: Host, config: Path) -> Report:
    """Let the backend check a dataset file. UserError names the key and the fix if the file itself is wrong."""
    raise NotImplementedError(json.dumps({"config": str(config), "tool": run_tool.__name__}))
