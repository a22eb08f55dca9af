"""Finding the media, captions and control media of a dataset. Nothing is decoded here; what is left out is reported."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import job, place
from ..atomic import part_of
from ..cache.names import latent_name, media_stem, text_name
from ..counted import counted
from ..errors import UserError
from ..texts import read_text
from .config import ImageDataset, VideoDataset
from .controls import Matches, control_clips, control_images, further_targets
from .items import MediaItem, longest_name
from .jsonl import read_records
from .media import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, images_in, left_out, read_caption, videos_in
from .problems import Note, Problem, gathered

if TYPE_CHECKING:
    from ..architectures.card import Card

logger = logging.getLogger(__name__)

_NAMED_ENDINGS = 5  # those of most files come first


@dataclass(frozen=True)
class Discovery:
    """What a dataset consists of: the usable items in a fixed order, everything that is not usable with its reason, and what
    else a person should know."""

    dataset: ImageDataset | VideoDataset
    items: tuple[MediaItem, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...] = ()


def discover(dataset: ImageDataset | VideoDataset, card: Card) -> Discovery:
    """Items of one dataset, sorted by path (JSONL: in the order of the lines). UserError for a missing folder or file."""
    if dataset.source is None:
        raise UserError(f"{dataset.label} has no media: give {dataset.kind}_directory or {dataset.kind}_jsonl_file")
    key, _ = dataset.source
    from_folder = key.endswith("_directory")
    items, problems = _from_folder(dataset, card) if from_folder else _from_jsonl(dataset, card)
    found = f"found {counted(len(items), dataset.kind)}"
    logger.info(found)
    job.phase(found)
    items, doubles = _one_per_stem(items)
    items, unnamable = _with_room_for_names(items, card)
    notes = [Note(item.path, "the caption is empty") for item in items if not item.caption]
    notes += _left_out(dataset) if from_folder else []
    for line in gathered(notes):
        logger.warning(f"{dataset.label}: {line}")
    return Discovery(dataset, tuple(items), (*problems, *doubles, *unnamable), tuple(notes))


def has_control(dataset: ImageDataset | VideoDataset) -> bool:
    """Does the dataset give control media? A JSONL file that has gone counts as no."""
    source = Path(dataset.source[1]) if dataset.source else Path()
    if dataset.source is None or dataset.source[0].endswith("_directory"):
        return dataset.control_directory is not None
    try:
        return source.is_file() and '"control_path' in read_text(source)
    except ValueError:
        return False  # caching, which reads the list, has said so


def _from_folder(dataset: ImageDataset | VideoDataset, card: Card) -> tuple[list[MediaItem], list[Problem]]:
    folder = _existing_folder(dataset, f"{dataset.kind}_directory")
    extension = dataset.caption_extension
    if not extension:
        raise UserError(f'{dataset.label}: caption_extension is missing; with captions next to the media write caption_extension = ".txt"')
    logger.info(f"glob {dataset.kind}s in {folder}")
    job.phase("looking for files")
    media = images_in(folder) if isinstance(dataset, ImageDataset) else videos_in(folder)
    captions: dict[Path, str] = {}
    problems = []
    for path in media:
        try:
            captions[path] = read_caption(path, extension)
        except ValueError as error:
            problems.append(Problem(path, str(error)))
    targets: Matches = {}
    if isinstance(dataset, ImageDataset) and dataset.multiple_target:
        targets = _targets(dataset, list(captions), media)
        taken = {path for match in targets.values() if not isinstance(match, str) for path in match}
        problems = [problem for problem in problems if problem.path not in taken]
    controls = _controls(dataset, card, list(captions))
    if not media:
        endings = IMAGE_EXTENSIONS if isinstance(dataset, ImageDataset) else VIDEO_EXTENSIONS
        problems.append(Problem(folder, f"no {dataset.kind}s here; put some there ({', '.join(endings[:_NAMED_ENDINGS])}, …)"))
    items = []
    for path, caption in captions.items():
        matches = [match.get(path, ()) for match in (targets, controls)]
        reasons = [match for match in matches if isinstance(match, str)]
        if reasons:
            problems.append(Problem(path, reasons[0]))
        else:
            items.append(MediaItem(dataset, path, media_stem(path), caption, *(m for m in matches if not isinstance(m, str))))
    return items, sorted(problems, key=lambda problem: str(problem.path))


def _left_out(dataset: ImageDataset | VideoDataset) -> list[Note]:
    assert dataset.source is not None  # `discover` has rejected it
    folder, videos = Path(dataset.source[1]), isinstance(dataset, VideoDataset)
    ours = [dataset.cache_folder, *([Path(dataset.control_directory)] if dataset.control_directory else [])]
    return left_out(folder, videos_in(folder) if videos else images_in(folder), dataset.caption_extension or "", videos, ours)


def _targets(dataset: ImageDataset, images: Sequence[Path], candidates: Sequence[Path]) -> Matches:
    targets = further_targets(images, candidates)
    counts = {len(match) for match in targets.values() if not isinstance(match, str)}
    if not targets:
        raise UserError(
            f"{dataset.label}: multiple_target is set, but no image has further targets; call them like image_1.png, without captions"
        )
    if len(counts) > 1:
        raise UserError(f"{dataset.label}: with multiple_target all images need the same number of targets; found {sorted(counts)}")
    return targets


def _controls(dataset: ImageDataset | VideoDataset, card: Card, media: Sequence[Path]) -> Matches:
    if dataset.control_directory is None:
        return {}
    folder = _existing_folder(dataset, "control_directory")
    logger.info(f"glob control {dataset.kind}s in {folder}")
    if isinstance(dataset, VideoDataset):
        return control_clips(media, folder)
    return control_images(media, images_in(folder), _controls_wanted(dataset, card))


def _controls_wanted(dataset: ImageDataset, card: Card) -> int | None:
    """How many control images one image has; with one-frame training as many as there are clean indices."""
    if card.controls_per_image is not None and dataset.fp_1f_clean_indices is not None:
        return len(dataset.fp_1f_clean_indices)
    return card.controls_per_image


def _from_jsonl(dataset: ImageDataset | VideoDataset, card: Card) -> tuple[list[MediaItem], list[Problem]]:
    key = f"{dataset.kind}_jsonl_file"
    file = Path(getattr(dataset, key))
    logger.info(f"load {dataset.kind} jsonl from {file}")
    multiple = isinstance(dataset, ImageDataset) and dataset.multiple_target
    try:
        records, problems = read_records(file, dataset.kind, multiple_target=multiple)
    except ValueError as error:
        raise UserError(f"{dataset.label}: {key} {file} is {error}") from None
    except OSError as error:
        raise UserError(f"{dataset.label}: {key} {file} cannot be read: {error.strerror or error}") from None
    wanted = None
    if any(record.controls for record in records):
        wanted = _controls_wanted(dataset, card) if isinstance(dataset, ImageDataset) else 1
    items = []
    for record in records:
        if wanted is not None and len(record.controls) < wanted:
            problems.append(Problem(record.path, f"not enough control_path entries: found {len(record.controls)}, expected {wanted}"))
            continue
        items.append(MediaItem(dataset, record.path, media_stem(record.path), record.caption, record.targets, record.controls[:wanted]))
    if not records and not problems:
        problems.append(Problem(file, "the file is empty"))
    return items, problems


def _existing_folder(dataset: ImageDataset | VideoDataset, key: str) -> Path:
    folder = Path(getattr(dataset, key))
    if folder.is_dir():
        return folder
    what = "is a file, not a folder" if folder.exists() else "does not exist"
    where = "" if folder.is_absolute() else f" (looked in {Path.cwd()}; relative paths start at the working directory)"
    if str(folder).startswith("~"):
        where = f": ~ is not read in this file; write {Path(os.path.expanduser(folder))}"
    beside = Path(dataset.file).parent / folder
    hint = f". There is {beside.resolve()}: write that path" if not folder.is_absolute() and beside.is_dir() else ""
    raise UserError(f"{dataset.label}: {key} {folder} {what}{where}{hint}")


def _one_per_stem(items: Sequence[MediaItem]) -> tuple[list[MediaItem], list[Problem]]:
    """Caches are named after the stem: a second item of the same stem would overwrite the first one's."""
    kept: dict[str, MediaItem] = {}
    problems = []
    for item in items:
        first = kept.setdefault(os.path.normcase(item.stem), item)
        if first is not item:
            problems.append(Problem(item.path, f"its caches would be called like those of {first.path}; rename one of the two"))
    return list(kept.values()), problems


def _with_room_for_names(items: Sequence[MediaItem], card: Card) -> tuple[list[MediaItem], list[Problem]]:
    """Names and paths have limits, and caches, in the making too, have longer names than their media."""
    kept, problems = [], []
    allowed = place.limits()
    for item in items:
        names = latent_name(longest_name(item, card), card.cache_id), text_name(item.stem, card.cache_id)
        excess = place.too_long(item.dataset.cache_folder, [*names, *(part_of(Path(name)).name for name in names)], allowed)
        if excess is None:
            kept.append(item)
            continue
        what, remedy = ("paths", ", or cache_directory a shorter path") if excess.is_path else ("names", "")
        reason = f"the {what} of its caches would be {excess.over} {allowed.unit} too long; give it a shorter name{remedy}"
        problems.append(Problem(item.path, reason))
    return kept, problems
