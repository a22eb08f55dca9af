"""What the two caching verbs share: finding the items, the progress bar, removing old files, the report at the end."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic, content, job, place
from ..console import Bar
from ..counted import counted
from ..dataset.config import load_config
from ..dataset.discovery import Discovery, discover
from ..dataset.problems import Problem, listing
from ..errors import StopRequested, UserError
from ..weights.safetensors_file import split_files

if TYPE_CHECKING:
    from ..architectures.card import Card
    from .settings import CachingSettings
    from .sources import Made, Sources

logger = logging.getLogger(__name__)

REMEDY = "Fix or remove them and run again, or set --on_bad_items skip."


def find_items(settings: CachingSettings, card: Card) -> list[Discovery]:
    """The items of every dataset in `--dataset_config`. UserError lists all that cannot be used, before anything heavy is loaded."""
    logger.info("Load dataset config from %s", settings.dataset_config)
    job.phase("reading the dataset")
    config = load_config(settings.dataset_config, {"batch_size": settings.batch_size})
    found = [discover(dataset, card) for dataset in config.datasets]
    report([problem for discovery in found for problem in discovery.problems], "Nothing was cached. " + REMEDY, settings)
    return found


def report(problems: Sequence[Problem], advice: str, settings: CachingSettings) -> None:
    """Name every problem, if there are any: as a UserError, or with `--on_bad_items skip` as a warning."""
    if not problems:
        return
    said = f"{counted(len(problems), 'item')} of the dataset cannot be used:\n{listing(problems, limit=50)}"
    if settings.on_bad_items == "stop":
        raise UserError(f"{said}\n{advice}")
    logger.warning("%s\nSkipped, as --on_bad_items says.", said)


class Progress:
    """One dataset's bar, and what a stop request leaves. skipped: items that stay as they are cached."""

    def __init__(self, total: int, skipped: int, settings: CachingSettings) -> None:
        self.total, self.done, self.settings = total, skipped, settings
        self._bar = Bar(total, done=skipped)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.close()
        if isinstance(error, StopRequested):
            advice = f"{self.done} of {counted(self.total, 'item is', 'items are')} cached; run again with --skip_existing to continue"
            summary = f"{self.done} of {counted(self.total, 'item is', 'items are')} cached (run again to continue)"
            raise StopRequested(advice, summary if self.settings.skip_existing else advice) from None

    def tell(self) -> None:
        """Say again where it is."""
        self._bar.tell()

    def item_done(self) -> None:
        self.done += 1
        self._bar.update(1)

    def stop_if_asked(self) -> None:
        """StopRequested when the job was asked to stop; every cache file written so far is whole."""
        job.leave_if_asked()


def try_caches(folder: Path, names: Sequence[str]) -> None:
    """See that caches can be written there before a model is loaded, and remove what killed programs left. UserError where not."""
    place.try_folder(folder, names, f"cache_directory {folder}")
    atomic.sweep(folder)


def remove_old(existing: Iterable[Path], wanted: Collection[Path], settings: CachingSettings) -> None:
    """Delete (or with `--keep_cache` only name) the cache files that no item of the dataset has."""
    names = {_comparable(path) for path in wanted}
    for path in existing:
        if _comparable(path) in names:
            continue
        if settings.keep_cache:
            logger.info("Keep cache file not in the dataset: %s", path)
        else:
            path.unlink()
            logger.info("Removed old cache file: %s", path)


def _comparable(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))


def deciding(values: Mapping[str, Any], files: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """What besides the media decides what is cached, for `sources.Made`: digests of the encoders' `files`, and the settings of `names`
    that the tool has. values: the tool's options by name. A file that is not given or not there is left out."""
    found = {name: values[name] for name in names if name in values}
    for name in files:
        path = values.get(name)
        if path and Path(path).is_file():
            found[name] = content.look(split_files(path)).digest
    return found


class FittingCaches:
    """What `--skip_existing` makes of caches that fit their items: which stay by the notes on what they were made from."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._again: Counter[str] = Counter()
        self._adopted = 0

    def stay(self, key: str, paths: Sequence[Path], made: Made) -> bool:
        """Are an item's caches good? Those that nothing is noted about are taken as good, and noted. made: what they should be made of."""
        reason = self._sources.problem(key, paths, made)
        if reason is not None:
            self._again[reason] += 1
            return False
        if not self._sources.known(key, paths):
            self._sources.made(key, paths, made)
            self._adopted += 1
        return True

    def log(self) -> None:
        """Say which items are cached again although caches that fit are there, and for how many it is not known what they were made
        from."""
        for reason, count in self._again.items():
            logger.info("%s cached again: %s", counted(count, "item is", "items are"), reason)
        if self._adopted:
            logger.info("Of %s it is not noted what caches were made from; they are taken as good", counted(self._adopted, "item"))


def encoding(index: int, count: int) -> str:
    """What is done with the dataset `index`, in words. Its index counts from 0, as in messages about a dataset file."""
    return "encoding the dataset" if count == 1 else f"encoding dataset {index + 1} of {count}"


def log_skipped(skipped: int, what: Any) -> None:
    if skipped:
        logger.info("%d %s are cached already", skipped, what)
