"""Which control media belong to which item of a folder (musubi-tuner's matching rules)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..cache.names import media_stem
from .media import ANIMATED_EXTENSIONS, VIDEO_EXTENSIONS, one_spelling, spelled

Matches = dict[Path, "tuple[Path, ...] | str"]


def control_images(images: Sequence[Path], candidates: Sequence[Path], count: int | None) -> Matches:
    """Per image its control images, or the reason why there are too few.

    Control images are called like the image, alone or with `_` and a number: the one without number comes first. Longer
    image names choose first, so that `a_1.png` is not taken by `a.png` when an image `a_1` exists. `count` None: any number.
    """
    free = list(candidates)
    result: Matches = {}
    for image in _longest_first(images):
        stem = _stem(image)
        mine = [path for path in free if one_spelling(path.name).startswith((f"{stem}.", f"{stem}_"))]
        free = [path for path in free if path not in mine]
        numbers = {path: _number(path, stem) for path in mine}
        result[image] = _ordered(numbers, count, f"{stem}.* or {stem}_0.*")
    return result


def _ordered(numbers: Mapping[Path, int | None], count: int | None, names: str) -> tuple[Path, ...] | str:
    unnumbered = sorted(path.name for path, number in numbers.items() if number is None)
    if not numbers:
        return f"no control image called {names}"
    if unnumbered:
        return f"control image {unnumbered[0]} must end in _ and a number"
    ordered = sorted(numbers, key=lambda path: (numbers[path], str(path)))
    if count is not None and len(ordered) < count:
        return f"not enough control images: found {len(ordered)}, expected {count}"
    return tuple(ordered[:count])


def further_targets(images: Sequence[Path], candidates: Sequence[Path]) -> Matches:
    """Per image its further targets (`{stem}_{number}`), or the reason why they cannot be ordered. Images without any are
    left out."""
    free = [path for path in candidates if path not in set(images)]
    result: Matches = {}
    for image in _longest_first(images):
        stem = _stem(image)
        mine = [path for path in free if _stem(path).startswith(f"{stem}_")]
        free = [path for path in free if path not in mine]
        if mine:
            result[image] = _ordered({path: _number(path, stem) for path in mine}, None, "")
    return result


def control_clips(clips: Sequence[Path], folder: Path) -> Matches:
    """Per clip its control clip: the file of the same name, else a folder of frames called like its stem, else the stem with
    any video ending; or the reason why there is none."""
    result: Matches = {}
    for clip in clips:
        stem = media_stem(clip)
        endings = [ending for lower in (*VIDEO_EXTENSIONS, *ANIMATED_EXTENSIONS) for ending in (lower, lower.upper())]
        options = [spelled(folder / name) for name in (clip.name, stem, *(f"{stem}{ending}" for ending in endings))]
        found = next((path for path in options if path.exists() and (path != options[1] or path.is_dir())), None)
        result[clip] = (found,) if found else f"no control video called {clip.name} or {stem}.*, and no folder {stem}, in {folder}"
    return result


def _stem(path: Path) -> str:
    return one_spelling(media_stem(path))


def _number(path: Path, stem: str) -> int | None:
    """Order of a control image; None when its name does not end in a number."""
    own = _stem(path)
    if own == stem:
        return 0
    digits = own.rsplit("_", 1)[-1]
    return int(digits) + 1 if digits.isdigit() else None


def _longest_first(paths: Sequence[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: len(path.name), reverse=True)
