"""Which layer a module path means, and what other programs call it. Standard library only.

Tables are in the folders of architectures (`lora_names.py`): `TABLE`, or, where the layers are those of another architecture
(`Card.layers_of`), `NAMING`, which of its namings they are written in, and `SAID`, the words by which metadata name the architecture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ..architectures import cards, part_of
from . import strangers
from .naming import Table


@dataclass(frozen=True)
class Place:
    """One layer of an architecture, whatever it is called: row of its table, part of a fused layer (None: all of it), block number."""

    table: int
    row: int
    part: int | None
    block: str


@dataclass(frozen=True)
class Found:
    """What a name means: a layer, and the naming it was written in."""

    place: Place
    naming: str


def find(path: str) -> Found | None:
    """The layer a module path means, written with dots or (as in `lora_unet_...`) with underscores; None when no table has it."""
    template, block = numberless(path)
    with_dots, with_underscores = _index()
    # Dots are not trusted: musubi-tuner's converter writes some "attn.to_q" as "attn.to.q".
    entry = with_dots.get(template) or with_underscores.get(numberless(path.replace(".", "_"))[0])
    if entry is None:
        return None
    table, row, part, naming = entry
    return Found(Place(table, row, part, block), naming)


def names_of(place: Place, naming: str) -> tuple[str, ...]:
    """The dotted paths of a layer in `naming`: one, or the parts where that naming keeps apart what `place` is all of.

    A part of a layer that `naming` fuses gives the one path of the whole.
    """
    names = _names(place, naming)
    if place.part is not None and len(names) > 1:
        names = (names[place.part],)
    return tuple(name.format(place.block) for name in names)


def is_fused(place: Place, naming: str) -> bool:
    """True when `place` is a part of a layer that `naming` has as one."""
    return place.part is not None and len(_names(place, naming)) == 1


def parts_of(place: Place) -> int:
    """Into how many parts the layer of `place` falls where it is not fused."""
    return max(len(names) for names in tables()[place.table].rows[place.row])


def has_naming(place: Place, naming: str) -> bool:
    return tables()[place.table].column(naming) is not None


def naming_of(paths: Iterable[str]) -> str:
    """The naming that most of the layers with these paths are written in; "" when no table has any."""
    counts = Counter(found.naming for path in paths if (found := find(path)))
    return counts.most_common(1)[0][0] if counts else ""


def dotted(underscored: str) -> str:
    """An underscored path with its dots, by the tables, else by the compound words that transformers use."""
    found = find(underscored)
    return names_of(found.place, found.naming)[0] if found else _by_words(underscored, _COMPOUNDS)


def table_of(naming: str) -> Table | None:
    """The table that has a naming; None where none has."""
    return next((table for table in tables() if table.column(naming) is not None), None)


def title_of(naming: str) -> str | None:
    """What a naming is called in reports; None for one that no table has."""
    return next((one.title for table in tables() for one in table.namings if one.id == naming), None)


def own(naming: str) -> str:
    """The own naming of the architecture whose files are written in `naming`; "" stays ""."""
    table = table_of(naming)
    return table.of(naming)[0] if table else naming


def diffusers(naming: str) -> str:
    """diffusers' naming of the layers that `naming` names; `naming` where there is none."""
    table = table_of(naming)
    return next((one.id for one in table.namings if one.diffusers), naming) if table else naming


@lru_cache(maxsize=1)
def tables() -> tuple[Table, ...]:
    """The tables of all architectures, and those of models that are not trained here."""
    found = {card_id: module for card_id in cards() if (module := part_of(card_id, "lora_names")) is not None}
    own_tables: dict[str, Table] = {card_id: module.TABLE for card_id, module in found.items() if hasattr(module, "TABLE")}
    for card_id, module in found.items():
        owner = cards()[card_id].layers_of
        if owner:
            own_tables[owner] = own_tables[owner].shared_with(card_id, cards()[card_id].title, module.NAMING, module.SAID)
    return (*own_tables.values(), *strangers.TABLES)


def _names(place: Place, naming: str) -> tuple[str, ...]:
    table = tables()[place.table]
    column = table.column(naming)
    if column is None:
        raise KeyError(f"no names of {naming} for {table.namings[0].title}")
    return table.rows[place.row][column]


def numberless(path: str) -> tuple[str, str]:
    """ "blocks.12.ffn.0" -> ("blocks.{}.ffn.0", "12")"""
    match = _BLOCK.search(path)
    if match is None:
        return path, ""
    return path[: match.start("number")] + "{}" + path[match.end("number") :], match["number"]


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, tuple[int, int, int | None, str]], ...]:
    """Template -> its place and naming, for dotted and for underscored paths. The first naming that has a name wins."""
    with_dots: dict[str, tuple[int, int, int | None, str]] = {}
    with_underscores: dict[str, tuple[int, int, int | None, str]] = {}
    for number, table in enumerate(tables()):
        for column, naming in enumerate(table.namings):
            for row_number, row in enumerate(table.rows):
                for part, name in enumerate(row[column]):
                    entry = (number, row_number, part if len(row[column]) > 1 else None, naming.id)
                    with_dots.setdefault(name, entry)
                    with_underscores.setdefault(name.replace(".", "_"), entry)
    return with_dots, with_underscores


def _by_words(underscored: str, compounds: Iterable[tuple[str, str]]) -> str:
    path = underscored.replace("_", ".")
    for pattern, name in compounds:
        path = re.sub(pattern, name, path)
    return path


_BLOCK = re.compile(r"blocks[._](?P<number>\d+)(?=[._])")

_COMPOUNDS = (
    (r"\b(self|cross)\.attn\b", r"\1_attn"),
    (r"\b(k|v)\.img\b", r"\1_img"),
    (r"\b(double|single|transformer|vace|refiner)\.(?=blocks\b|transformer\b)", r"\1_"),
    (r"\b(img|txt)\.(mlp|mod)\b", r"\1_\2"),
    (r"\b(img|txt)\.attn\.", r"\1_attn_"),
    (r"\bto\.(q|k|v|out)\b", r"to_\1"),
    (r"\bto\.add\.out\b", r"to_add_out"),
    (r"\badd\.(q|k|v)\.proj\b", r"add_\1_proj"),
    (r"\b(proj)\.(out|mlp|in)\b", r"\1_\2"),
    (r"\bfeed\.forward\b", r"feed_forward"),
    (r"\bff\.context\b", r"ff_context"),
)
