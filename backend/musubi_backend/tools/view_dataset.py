"""`view_dataset`: one page of a dataset as a contact sheet and as a list, with the place of every caption so that it can be edited."""

from __future__ import annotations

import math
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures import cards_of_caches
from ..atomic import replacing, write_text
from ..cache.names import media_stem
from ..counted import counted
from ..dataset.clips import share_processors
from ..dataset.config import Dataset, ImageDataset, load_config
from ..dataset.discovery import Discovery, discover
from ..dataset.items import MediaItem, unmet_targets
from ..dataset.media import images_in, read_caption, videos_in
from ..dataset.probe import Foreseen, foresee
from ..dataset.problems import Problem, gathered
from ..documents import json_text
from ..errors import UserError
from .settings import ViewSettings

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..dataset.sheet import Tile

_READERS = 4


def run(args: Namespace) -> None:
    """Write the image to `--output` and the list to `--report`. UserError when the dataset file is wrong or there is no such page."""
    from ..dataset.sheet import draw, tile_of

    settings = ViewSettings.read(args)
    card = cards_of_caches()[settings.architecture]
    found = [discover(dataset, card) for dataset in load_config(settings.dataset_config).datasets]
    shown = [one for discovery in found for one in _shown(discovery)]
    shown_paths = {item.path for item, _ in shown}
    problems = [problem for discovery in found for problem in discovery.problems if problem.path not in shown_paths]
    pages = max(1, math.ceil(len(shown) / settings.items_per_page))
    if settings.page > pages:
        raise UserError(f"--page {settings.page}: the last one is {pages}, with {counted(settings.items_per_page, 'item')} on each")
    first = (settings.page - 1) * settings.items_per_page
    chosen = list(enumerate(shown[first : first + settings.items_per_page], start=first + 1))

    def looked_at(one: tuple[int, tuple[MediaItem, str]]) -> tuple[Foreseen | Problem, Tile]:
        number, (item, reason) = one
        foreseen = foresee(item, card)
        tile = tile_of(foreseen, number, card, settings.tile_size)
        return foreseen, replace(tile, problem="; ".join(filter(None, (reason, tile.problem))))

    with ThreadPoolExecutor(_READERS, "read", share_processors, (_READERS,)) as pool:
        results = list(pool.map(looked_at, chosen))
    sheet, boxes = draw([tile for _, tile in results], settings.tile_size)
    with replacing(settings.output) as part:
        sheet.save(part, format="PNG")
    listed = [
        {**_entry(number, item, foreseen, card), "problem": tile.problem, "box": box}
        for (number, (item, _)), (foreseen, tile), box in zip(chosen, results, boxes, strict=True)
    ]
    report = {
        "page": settings.page,
        "pages": pages,
        "count": sum(1 for _, reason in shown if not reason),
        "not_usable": sum(1 for _, reason in shown if reason) + len(problems),
        "sheet": sheet.size,
        "items": listed,
        "notes": [line for discovery in found for line in gathered(discovery.notes)],
        "problems": [{"path": str(problem.path.absolute()), "reason": problem.reason} for problem in problems],
    }
    write_text(settings.report, json_text({**report, "text": _text(report)}))


def _shown(discovery: Discovery) -> list[tuple[MediaItem, str]]:
    """The usable items of a dataset, and behind them the media of its folder that are not usable, with the reason: they can be looked
    at too, and one that lacks a caption can be given one."""
    dataset = discovery.dataset
    shown = [(item, "") for item in discovery.items]
    if dataset.source is None or not dataset.source[0].endswith("_directory"):
        return shown
    media = set(images_in(Path(dataset.source[1])) if isinstance(dataset, ImageDataset) else videos_in(Path(dataset.source[1])))
    for problem in discovery.problems:
        if problem.path in media:
            shown.append((MediaItem(dataset, problem.path, media_stem(problem.path), _caption(problem.path, dataset)), problem.reason))
    return shown


def _caption(medium: Path, dataset: Dataset) -> str:
    try:
        return read_caption(medium, dataset.caption_extension or "")
    except ValueError:
        return ""  # the reason why it is not usable says so


def _entry(number: int, item: MediaItem, found: Foreseen | Problem, card: Card) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "number": number,
        "path": str(item.path.absolute()),
        "name": item.path.name,
        "kind": item.dataset.kind,
        "caption": item.caption,
        "caption_place": caption_place(item),
        "controls": [str(path.absolute()) for path in item.controls],
    }
    if isinstance(found, Problem):
        return entry
    entry |= {"size": found.facts.size, "bucket": found.entries[0].bucket, "notes": found.facts.notes}
    if item.dataset.kind == "video":
        entry |= {
            "frames": found.facts.count,
            "windows": [(window.name.start, window.frames) for window in found.entries],
            "too_short_for": unmet_targets(item, found.facts.count),
        }
    return entry


def caption_place(item: MediaItem) -> dict[str, str]:
    """The file that holds an item's caption, and for a list the key that names the item in its line."""
    dataset: Dataset = item.dataset
    assert dataset.source is not None  # `load_config` has rejected it
    key, source = dataset.source
    if key.endswith("_jsonl_file"):
        return {"file": str(Path(source).absolute()), "key": f"{dataset.kind}_path"}
    return {"file": str(item.path.with_name(item.path.stem + (dataset.caption_extension or "")).absolute()), "key": ""}


def summary(report: dict[str, Any]) -> str:
    """One line about a page and its dataset."""
    unusable = f", {report['not_usable']} not usable" if report["not_usable"] else ""
    return f"page {report['page']} of {report['pages']}, {counted(report['count'], 'item')}{unusable}"


def _text(report: dict[str, Any]) -> str:
    """The list for people."""
    lines = [summary(report)]
    for item in report["items"]:
        lines.append(f"{item['number']}  {item['name']}{_facts(item)}")
        lines += [f"   note: {note}" for note in item.get("notes", ())]
        lines.append(f"   {(item['problem'] and 'NOT USABLE: ' + item['problem']) or item['caption']}")
    lines += report["notes"]
    if report["problems"]:
        lines.append("left out:")
        lines += [f"   {problem['path']}: {problem['reason']}" for problem in report["problems"]]
    return "\n".join(lines)


def _facts(item: dict[str, Any]) -> str:
    if "bucket" not in item:
        return ""
    facts = f": {item['size'][0]}x{item['size'][1]} to {item['bucket'][0]}x{item['bucket'][1]}"
    if "windows" in item:
        windows = ", ".join(f"{start}-{start + length - 1}" for start, length in item["windows"])
        facts += f", {counted(item['frames'], 'frame')}, trained: {windows}"
        if item["too_short_for"]:
            facts += f"; too short for {', '.join(map(str, item['too_short_for']))}"
    return facts
