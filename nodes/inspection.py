"""What is in a dataset file and what of it cannot be used, as the backend sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.documents import read_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.place import in_words
from .jobs.follow import run_tool
from .spec import Host

_TOOL = "inspect_dataset"
PLACES = ("source", "cache_directory", "control_directory")
_SHOWN_LINES = 12
_SHOWN_ITEMS = 50


@dataclass(frozen=True)
class Report:
    """datasets: a `[[datasets]]` table of each, with whole paths; bad_items: what of each cannot be used, with the reason;
    text: everything left out, with its reason; summary: its beginning, for the node."""

    datasets: list[dict[str, Any]]
    bad_items: list[list[str]]
    summary: str
    text: str

    def refuse_bad_items(self, of_datasets: list[list[str]]) -> None:
        """UserError that lists them, if there are any."""
        lines = [line for lines in of_datasets for line in lines]
        if lines:
            shown = [*lines[:_SHOWN_ITEMS], *([f"… and {len(lines) - _SHOWN_ITEMS} more"] if len(lines) > _SHOWN_ITEMS else [])]
            listed = "\n  ".join(shown)
            raise UserError(f"{counted(len(lines), 'item')} cannot be used:\n  {listed}\nMend or remove them, or set on_bad_items to skip.")


async def places(host: Host, config: Path) -> list[dict[str, Any]]:
    """The absolute folders and lists that a dataset file names (the keys in `PLACES`), none of them looked into yet."""
    datasets: list[dict[str, Any]] = (await _report(host, config, places_only=True))["datasets"]
    return datasets


async def inspect(host: Host, config: Path) -> Report:
    """Let the backend check a dataset file. UserError names key and fix if the file is wrong, or lists why no item can be used."""
    report = await _report(host, config, places_only=False)
    text = str(report["text"])
    if not any(dataset["items"] for dataset in report["datasets"]):
        raise UserError("\n".join(["nothing in this dataset can be used:", *text.splitlines()[1:]]))
    lines = text.splitlines()
    summary = "\n".join(lines[:_SHOWN_LINES]) + (
        f"\n… {counted(len(lines) - _SHOWN_LINES, 'more line')}" if len(lines) > _SHOWN_LINES else ""
    )
    bad_items = [[f"{bad['path']}: {bad['reason']}" for bad in dataset["problems"]] for dataset in report["datasets"]]
    return Report([dataset["table"] for dataset in report["datasets"]], bad_items, summary, text)


async def _report(host: Host, config: Path, *, places_only: bool) -> dict[str, Any]:
    folder = host.home / "datasets" / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{content.digest(str(config), places_only)}.json"
    values = {"dataset_config": str(config), "output": str(output), "places_only": places_only}
    await run_tool(host, _TOOL, to_argv(_TOOL, values), foreign=False, gpu=False, warns=False)
    try:
        return read_json(output, dict, paths=True)
    except (OSError, ValueError) as error:
        reason = in_words(error) if isinstance(error, OSError) else error
        raise UserError(f"the report on this dataset cannot be read ({output}: {reason}). Run again to have it written anew.") from error
