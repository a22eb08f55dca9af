"""Models in several files (`name-00001-of-00006.safetensors`, ...) in the lists of models: as their index, where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.weights.safetensors_file import INDEX_SUFFIX, split_files

_FIRST = re.compile(r"(?P<name>.+)-00001-of-\d{5}\.safetensors")


def with_indexes(names: Iterable[str], is_there: Callable[[str], bool]) -> list[str]:
    """`names` of a model folder, and before the first part of each split model its index. Parts stay: any of them opens the model, and
    saved workflows name them. is_there: whether the folder has a file of a name."""

    def listed() -> Iterator[str]:
        for name in names:
            match = _FIRST.fullmatch(name)
            if match and is_there(index := match["name"] + INDEX_SUFFIX):
                yield index
            yield name

    return list(dict.fromkeys(listed()))


def all_files(paths: Iterable[Path]) -> list[Path]:
    """The files of models, each part of a split one; only the path itself of one that cannot be opened."""
    return [file for path in paths for file in _files(path)]


def first_file(path: Path) -> Path:
    """What opens a model: of an index the first part, which musubi-tuner's scripts take too, where its name says that it is one."""
    first = _files(path)[0]
    return first if _FIRST.fullmatch(first.name) else path


def _files(path: Path) -> list[Path]:
    try:
        return split_files(path)
    except UserError:
        return [path]
