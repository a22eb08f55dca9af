"""Which layers of a transformer a network is put on: the linears of its blocks, without those that a pattern excludes, unless another one
includes them again. Standard library only: nodes ask it of a file's header, the network of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..architectures.card import Card
from ..errors import UserError
from ..weights.recognise import PREFIXES
from ..weights.safetensors_file import PathLike, read_model_header

Patterns = tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class Selection:
    """Patterns are compared with whole paths, such as "blocks.0.ffn.0"."""

    exclude: Patterns = ()
    include: Patterns = ()

    def of(self, card: Card) -> Selection:
        """With what the architecture leaves out by itself."""
        usual = (re.compile(card.lora_exclude),) if card.lora_exclude else ()
        return Selection((*self.exclude, *usual), self.include)

    def excludes(self, path: str) -> bool:
        return any(pattern.fullmatch(path) for pattern in self.exclude)

    def takes(self, path: str) -> bool:
        return not self.excludes(path) or any(pattern.fullmatch(path) for pattern in self.include)


def compiled(texts: Iterable[str], what: str) -> Patterns:
    """Regular expressions. UserError names the bad one; what: what to call them."""
    found = []
    for text in texts:
        try:
            found.append(re.compile(text))
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(f"{what}: {text!r} is no regular expression: {error}; such as .*ffn.* or blocks\\.[0-9]\\..*") from None
    return tuple(found)


def without_effect(selection: Selection, card: Card, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """("exclude" or "include", what is wrong) for each pattern that changes nothing of the layers `paths`."""
    excluded = [path for path in paths if selection.of(card).excludes(path)]
    for key, patterns, among in (("exclude", selection.exclude, paths), ("include", selection.include, excluded)):
        for pattern in patterns:
            if not any(pattern.fullmatch(path) for path in among):
                what = "no layer" if among is paths else "nothing that is excluded, so it brings nothing back"
                example = paths[0] if paths else "blocks.0.ffn.0"
                yield key, f"{pattern.pattern!r} matches {what}; whole names are compared, such as {example}"


def paths_in(file: PathLike, card: Card) -> list[str]:
    """The linears of the blocks of a transformer's file, from its header. UserError for a file that cannot be read."""
    tensors = read_model_header(file, PREFIXES).tensors
    weights = {name.removesuffix(".weight"): info.shape for name, info in tensors.items() if name.endswith(".weight")}
    return sorted((path for path, shape in weights.items() if len(shape) == 2 and path.startswith(card.block_lists)), key=_by_number)


def in_lines(paths: Sequence[str]) -> list[str]:
    """Paths with the numbers of their blocks gathered: "blocks.0-2,5.ffn.0"."""
    split = [(match["head"], match["tail"], int(match["number"])) for path in paths if (match := _NUMBERED.fullmatch(path))]
    names = dict.fromkeys((head, tail) for head, tail, _ in split)
    return [f"{head}.{_ranges(sorted(number for *name, number in split if (head, tail) == tuple(name)))}.{tail}" for head, tail in names]


_NUMBERED = re.compile(r"(?P<head>[^.]+)\.(?P<number>\d+)\.(?P<tail>.+)")


def _by_number(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _ranges(numbers: Sequence[int]) -> str:
    runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0][1]}" if len(run) == 1 else f"{run[0][1]}-{run[-1][1]}" for run in runs)
