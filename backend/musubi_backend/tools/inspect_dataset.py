"""The tool `inspect_dataset`: what a dataset file comes to, item by item, without torch."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures import cards_of_caches
from ..atomic import write_text
from ..cache.headers import latents_problem, text_problem
from ..caching.sources import Made, Sources, dataset_settings, latents_key
from ..counted import counted
from ..dataset.clips import share_processors
from ..dataset.config import DatasetConfig, ImageDataset, VideoDataset, load_config
from ..dataset.describe import table
from ..dataset.discovery import Discovery, discover
from ..dataset.items import Entry, text_path, unmet_targets
from ..dataset.probe import Foreseen, foresee
from ..dataset.problems import Note, Problem, gathered, listing
from ..documents import json_text
from .settings import InspectSettings

if TYPE_CHECKING:
    from ..architectures.card import Card

_READERS = 4


def run(args: Namespace) -> None:
    """Write the report as JSON to `--output`, or print it. UserError when the file itself is wrong or a folder is missing."""
    settings = InspectSettings.read(args)
    config = load_config(settings.dataset_config)
    if settings.places_only:
        found: dict[str, Any] = {"datasets": [_places(dataset) for dataset in config.datasets]}
    else:
        found = inspect(config, cards_of_caches()[settings.architecture])
    report = json_text(found)
    if settings.output:
        write_text(settings.output, report)
    else:
        sys.stdout.write(report + "\n")


def inspect(config: DatasetConfig, card: Card) -> dict[str, Any]:
    """The report: "summary" (one line), "text" (what cannot be used, line by line), and "datasets" with their "items",
    "buckets", "problems" and "notes"; each "table" holds its settings as a `[[datasets]]` table of its own. All paths are absolute."""
    reports, lines = [], []
    counts: Counter[str] = Counter()
    for dataset in config.datasets:
        found = discover(dataset, card)
        items, problems = _looked_at(found, card)
        notes = [{"path": _absolute(note.path), "note": note.text} for note in _notes(found, items)]
        reports.append({**_dataset_report(dataset, items, problems, card), "notes": notes})
        several = len(config.datasets) > 1
        lines += [f"not usable in datasets[{dataset.index}]:"] if problems and several else []
        lines += [*_lines(items, problems), *(f"  {line}" for line in gathered(_notes(found, items)))]
        counts[dataset.kind] += len(items)
        counts["window"] += sum(len(one.entries) for one in items) if dataset.kind == "video" else 0
        counts["not usable"] += len(problems)
    there = [counted(counts[name], name) for name in ("image", "video", "window") if counts[name]]
    there += [f"{counts['not usable']} not usable"] if counts["not usable"] else []
    summary = f"{counted(len(reports), 'dataset')}: {', '.join(there) or 'nothing to train on'}"
    text = "\n".join([summary, *lines])
    return {"config": _absolute(config.path), "architecture": card.id, "summary": summary, "text": text, "datasets": reports}


def _looked_at(found: Discovery, card: Card) -> tuple[list[Foreseen], list[Problem]]:
    """The items that give at least one cache entry, and everything else with its reason."""
    with ThreadPoolExecutor(_READERS, "read", share_processors, (_READERS,)) as pool:
        results = list(pool.map(lambda item: foresee(item, card), found.items))
    problems = [*found.problems, *(result for result in results if isinstance(result, Problem))]
    return [result for result in results if isinstance(result, Foreseen)], sorted(problems, key=lambda problem: str(problem.path))


def _dataset_report(
    dataset: ImageDataset | VideoDataset, items: Sequence[Foreseen], problems: Sequence[Problem], card: Card
) -> dict[str, Any]:
    sources = Sources(dataset.cache_folder)
    buckets = Counter((entry.bucket, entry.frames) for one in items for entry in one.entries)
    return {
        "table": table(dataset),
        **_places(dataset),
        "items": [_item_report(one, card, sources) for one in items],
        "buckets": [
            {"size": size, "frames": frames, "count": count * dataset.num_repeats}
            for (size, frames), count in sorted(buckets.items(), key=str)
        ],
        "problems": [{"path": _absolute(problem.path), "reason": problem.reason} for problem in problems],
    }


def _notes(found: Discovery, items: Sequence[Foreseen]) -> list[Note]:
    """What is used otherwise than one may expect, or not read at all."""
    return [*found.notes, *(Note(one.item.path, text) for one in items for text in one.facts.notes)]


def _places(dataset: ImageDataset | VideoDataset) -> dict[str, Any]:
    """Where its media come from and its caches go."""
    assert dataset.source is not None  # `load_config` has rejected it
    return {
        "kind": dataset.kind,
        "source": _absolute(dataset.source[1]),
        "cache_directory": _absolute(dataset.cache_folder),
        "control_directory": _absolute(dataset.control_directory) if dataset.control_directory else None,
    }


def _item_report(one: Foreseen, card: Card, sources: Sources) -> dict[str, Any]:
    item, facts = one.item, one.facts
    report: dict[str, Any] = {
        "path": _absolute(item.path),
        "caption": item.caption,
        "size": facts.size,
        "bucket": one.entries[0].bucket,
        "controls": [_absolute(path) for path in item.controls],
        "latents_cached": sum(_is_cached(entry, card, sources) for entry in one.entries),
        "text_cached": text_problem(text_path(item, card), card, caption=item.caption, needs=card.text_keys) is None,
    }
    if isinstance(item.dataset, VideoDataset):
        report |= {
            "frames": facts.count,
            "fps": facts.fps,
            "windows": [(entry.name.start, entry.frames) for entry in one.entries],
            "too_short_for": unmet_targets(item, facts.count),
        }
    return report


def _is_cached(entry: Entry, card: Card, sources: Sources) -> bool:
    name, item, paths = entry.name, entry.item, entry.latent_paths(card)
    if any(latents_problem(path, card, width=name.width, height=name.height, bucket=entry.bucket, frames=entry.frames) for path in paths):
        return False
    key = latents_key(item, card)
    made = Made(sources.media([item.path, *item.targets, *item.controls]), dataset_settings(item, card))
    return sources.problem(key, paths, made) is None


def _lines(items: Sequence[Foreseen], problems: Sequence[Problem]) -> list[str]:
    """What a person should know about one data set."""
    lines = [listing(problems, limit=100)] if problems else []
    for one in items:
        unmet = unmet_targets(one.item, one.facts.count)
        if unmet:
            lines.append(f"  {one.item.path}: {counted(one.facts.count, 'frame')}, no window of {', '.join(map(str, unmet))}")
    return lines


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute())
