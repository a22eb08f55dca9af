"""Typed settings: a frozen dataclass holds the options of one concern, each field under its option's name.

A verb reads them once, at its entry; what it works out from them is a value of its own, or a changed copy.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Fields are options (name, type and default as in the tables), or settings of a narrower concern.

    A field's default also holds where a tool does not have the option, and for a field that cannot be None where nothing was given.
    """

    @classmethod
    def read(cls: type[S], given: Namespace | Mapping[str, Any]) -> S:
        """From parsed values by name; lists become tuples."""
        values = vars(given) if isinstance(given, Namespace) else given
        found: dict[str, Any] = {}
        for name, kind in get_type_hints(cls).items():
            if is_concern(kind):
                found[name] = kind.read(values)
            elif values.get(name) is not None or (name in values and NoneType in get_args(kind)):
                value = values[name]
                found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)

    def values(self) -> dict[str, Any]:
        """Option name -> value as it is parsed, of narrower concerns too."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Settings):
                found |= value.values()
            else:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    def changed(self: S, **changes: Any) -> S:
        """A copy with other values of some options, whichever narrower concern they lie in."""
        values = self.values()
        assert changes.keys() <= values.keys(), f"no settings of {type(self).__name__}: {changes.keys() - values.keys()}"
        return self.read({**values, **changes})


def is_concern(kind: Any) -> bool:
    """Is this type of a field a narrower concern?"""
    return isinstance(kind, type) and issubclass(kind, Settings)
