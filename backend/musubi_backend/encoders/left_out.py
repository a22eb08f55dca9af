"""Leaving out what a library imports and does not use: packages that look as if they were not installed, and modules that stand in."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def not_installed(names: Sequence[str]) -> Iterator[list[str]]:
    """Meanwhile those of `names` that nobody has imported cannot be found. Gives these; afterwards they can be."""
    hidden = [name for name in names if name not in sys.modules]
    find_spec = importlib.util.find_spec

    def find_visible(name: str, package: str | None = None) -> Any:
        return None if name in hidden else find_spec(name, package)

    importlib.util.find_spec = find_visible
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes `import name` raise ModuleNotFoundError
    try:
        yield hidden
    finally:
        importlib.util.find_spec = find_spec
        for name in hidden:
            sys.modules.pop(name, None)


class StandIn(ModuleType):
    """A module that has any public name: what `make(module, name)` gives for it."""

    def __init__(self, name: str, make: Callable[[str, str], Any]) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self._make = make

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._make(self.__name__, name)
        setattr(self, name, value)
        return value


def empty_class(module: str, name: str) -> type:
    return type(name, (), {"__module__": module})
