"""Sizes that the shapes of a weight file do not tell (heads, groups of norms), from its metadata. Standard library only.

The published models have one size each, so musubi-tuner and ComfyUI fix those numbers. Small models, such as the demo models, say
them under one metadata key, as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ..documents import parse_json, whole_number
from ..errors import UserError
from .safetensors_file import Header, PathLike, read_header

GEOMETRY_KEY = "musubi_geometry"
_LARGEST, _MOST_LAYERS = 2**17, 2**10
T = TypeVar("T", bound="StoredGeometry")
Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors and their shapes."""


@dataclass(frozen=True)
class StoredGeometry:
    """Sizes of one kind of model, which a weight file may hold as JSON under `GEOMETRY_KEY`. Fields are numbers, switches and tuples."""

    @classmethod
    def of(cls: type[T], header: Header, title: str, measured: Callable[[Shapes], Mapping[str, Any]]) -> T:
        """What the header's metadata says, else what `measured` makes of its shapes. UserError for a file that lacks a tensor it asks
        for; title: what every such model is called."""
        if GEOMETRY_KEY in header.metadata:
            return cls.from_json(header.metadata[GEOMETRY_KEY])
        try:
            return cls(**measured({name: info.shape for name, info in header.tensors.items()}))
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"the weight file lacks {error}, which every {title} transformer has; is it complete?") from error

    def to_json(self) -> str:
        """What the metadata of a weight file holds."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """UserError when `text` is not what `to_json` writes."""
        try:
            values = parse_json(text, dict, paths=True)
            sizes = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
            for one in fields(cls):
                _check(one.name, getattr(sizes, one.name), str(one.type))
            return sizes
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"the metadata {GEOMETRY_KEY} of the weight file is not understood: {error}") from error


def count_blocks(names: Iterable[str], blocks: str) -> int:
    """How many blocks a list of that name has; ValueError where there is none."""
    numbers = [int(match[1]) for name in names if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))]
    if not numbers:
        raise ValueError(f"{blocks}.0")
    return 1 + max(numbers)


def _check(name: str, value: Any, kind: str) -> None:
    """ValueError where a field of the annotated type `kind` holds something else, or a size that no model has."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:60]}, and true or false is needed")
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ValueError(f"{name} is {str(value)[:60]}, and a number between 0 and 1 is needed")
    elif kind.startswith("tuple"):
        if not isinstance(value, tuple) or len(value) != kind.count("int"):
            raise ValueError(f"{name} is {str(value)[:60]}, and {kind.count('int')} numbers are needed")
        for number in value:
            whole_number(number, name, _LARGEST)
    elif value is not None or "None" not in kind:
        least = 0 if name.endswith("_positions") else 1
        if whole_number(value, name, _LARGEST if not name.startswith("num_") else _MOST_LAYERS) < least:
            raise ValueError(f"{name} is {value}")


def geometry_metadata(path: PathLike) -> dict[str, Any]:
    """What a weight file says about its sizes; empty for files that say nothing, PyTorch files among them. UserError when the
    metadata is not a JSON table."""
    file = Path(path)
    if file.suffix.lower() != ".safetensors":
        return {}
    text = read_header(file).metadata.get(GEOMETRY_KEY)
    if text is None:
        return {}
    try:
        return parse_json(text, dict, paths=True)
    except ValueError as error:
        raise UserError(f"{file}: the metadata {GEOMETRY_KEY} is not a JSON table ({error})") from None
