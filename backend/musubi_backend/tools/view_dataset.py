"""`view_dataset`: one page of a dataset as a contact sheet and as a list, with the place of every caption so that it can be edited."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures import cards
from ..atomic import replacing, write_text
from ..dataset.config import Dataset, load_config
from ..dataset.discovery import discover
from ..dataset.items import MediaItem, unmet_targets
from ..dataset.probe import Foreseen, foresee
from ..dataset.problems import Problem
from ..errors import UserError

if TYPE_CHECKING:
    from ..architectures.card import Card

_READERS = 4


def run(args: Namespace) -> None:
    """Write the picture to `--output` and the list to `--report`. UserError when the dataset file is wrong or there is no such page."""
    from ..dataset.sheet import draw, tile_of

    card = cards()[args.architecture]
    found = [discover(dataset, card) for dataset in load_config(args.dataset_config).datasets]
    items = [item for discovery in found for item in discovery.items]
    problems = [problem for discovery in found for problem in discovery.problems]
    pages = max(1, math.ceil(len(items) / args.items_per_page))
    if args.page > pages:
        raise UserError(f"--page {args.page}: there are {pages} pages of {args.items_per_page} items")
    first = (args.page - 1) * args.items_per_page
    chosen = items[first : first + args.items_per_page]
    with ThreadPoolExecutor(_READERS) as pool:
        foreseen = list(pool.map(lambda item: foresee(item, card), chosen))
        numbered = list(enumerate(foreseen, start=first + 1))
        tiles = list(pool.map(lambda pair: tile_of(pair[1], pair[0], card, args.tile_size), numbered))
    sheet, boxes = draw(tiles, args.tile_size)
    with replacing(args.output) as part:
        sheet.save(part, format="PNG")
    listed = [
        {**_entry(number, item, what, card), "problem": tile.problem, "box": box}
        for (number, what), item, tile, box in zip(numbered, chosen, tiles, boxes, strict=True)
    ]
    report = {
        "page": args.page,
        "pages": pages,
        "count": len(items),
        "sheet": sheet.size,
        "items": listed,
        "problems": [{"path": str(problem.path.absolute()), "reason": problem.reason} for problem in problems],
    }
    write_text(args.report, json.dumps({**report, "text": _text(report)}, ensure_ascii=False))


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
    entry |= {"size": found.facts.size, "bucket": found.entries[0].bucket}
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
    assert dataset.source is not None  # `load_config` has refused it
    key, source = dataset.source
    if key.endswith("_jsonl_file"):
        return {"file": str(Path(source).absolute()), "key": f"{dataset.kind}_path"}
    return {"file": str(item.path.with_name(item.path.stem + (dataset.caption_extension or "")).absolute()), "key": ""}


def _text(report: dict[str, Any]) -> str:
    """The list for people."""
    lines = [f"page {report['page']} of {report['pages']}, {report['count']} items"]
    for item in report["items"]:
        lines.append(f"{item['number']}  {item['name']}{_facts(item)}")
        lines.append(f"   {(item['problem'] and 'NOT USABLE: ' + item['problem']) or item['caption']}")
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
        facts += f", {item['frames']} frames, trained: {windows}"
        if item["too_short_for"]:
            facts += f"; too short for {', '.join(map(str, item['too_short_for']))}"
    return facts
