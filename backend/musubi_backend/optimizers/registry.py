"""The optimizers that have a name here, found as people write them; no torch.

What is not in the table is looked for in torch.optim and bitsandbytes, or is a class path (`training/optimizers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import UserError
from ..suggest import did_you_mean
from .entry import Entry
from .table import eight_bit, family, libraries, usual
from .table.retired import RETIRED

ENTRIES: tuple[Entry, ...] = (*usual.ENTRIES, *eight_bit.ENTRIES, *libraries.ENTRIES, *family.ENTRIES)
_SD_SCRIPTS = "library."
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(entry.group for entry in ENTRIES))


def plain(name: str) -> str:
    """A name without case, "_" and "-"."""
    return name.lower().replace("_", "").replace("-", "")


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Entry]:
    return {plain(name): entry for entry in ENTRIES for name in (entry.name, *entry.aliases)}


def find(name: str) -> Entry | None:
    """The entry of a name; None where there is none. UserError for a name that is answered with another one (`table/retired.py`).

    Class paths of sd-scripts' `library` are names of ours."""
    key = plain(name.rpartition(".")[2] if name.startswith(_SD_SCRIPTS) else name)
    entry = None if "." in key else _by_name().get(key)
    answer = None if entry else RETIRED.get(key)
    if answer:
        raise UserError(f"--optimizer_type {name}: {answer}")
    return entry


def unknown(name: str, more: tuple[str, ...] = ()) -> UserError:
    """What to say of a name that nothing has. more: further names that are good."""
    nearest = did_you_mean(name, (*names(), *more))
    listed = "; ".join(f"{group}: {', '.join(entry.name for entry in ENTRIES if entry.group == group)}" for group in GROUPS)
    return UserError(f"--optimizer_type {name} is unknown{nearest}; there are {listed}; or a class of torch.optim, or package.module.Class")


def names() -> tuple[str, ...]:
    """Every name that is listed, without aliases."""
    return tuple(entry.name for entry in ENTRIES)


def check_values(entry: Entry, arguments: Mapping[str, Any]) -> None:
    """UserError for an argument that the table does not list, with the nearest, and for a value that it does not allow."""
    listed = {argument.name: argument for argument in (*entry.arguments, *entry.hidden)}
    for name, value in arguments.items():
        if name not in listed:
            path = "" if entry.ours else f"; the whole class is --optimizer_type {entry.where.replace(':', '.')}"
            raise UserError(
                f"--optimizer_args {name}: {entry.name} has no such argument{did_you_mean(name, list(listed))}; it takes "
                f"{', '.join(listed)}{path}"
            )
        listed[name].check(value)
