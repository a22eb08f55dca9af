"""Packages of the backend know those below them only, and no two modules know each other, not even for type checkers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ORDER = (
    (
        "errors ordinary seeds suggest counted texts durations content pace job events atomic place console device documents imports",
        "exhausted process_names",
    ),
    ("architectures.card", "architectures"),  # facts, and which families there are
    ("optimizers",),
    ("options", "architectures.sizes", "architectures.templates", "architectures.widgets"),
    ("threads",),
    ("weights", "architectures.precision"),
    ("layers",),
    ("memory",),
    ("lora",),
    ("encoders", "cache"),
    ("dataset", "architectures.settings", "architectures.loading"),
    ("architectures.request", "architectures.sampler"),
    ("architectures.protocol",),
    ("caching", "inference"),
    ("training",),
    ("demo",),
    ("tools",),
    ("architectures.*",),  # the families' folders
    ("__main__",),
)
"""From below to above; a package of one line may know others of that line as long as no circle follows."""

PACKAGE = Path(__file__).parents[1] / "backend" / "musubi_backend"
LEVELS = {name: level for level, line in enumerate(ORDER) for names in line for name in names.split()}


def modules() -> dict[str, Path]:
    """Dotted name inside of the package -> file."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = (path.relative_to(PACKAGE).with_suffix("").parts for path in paths)
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in zip(names, paths, strict=True)}


def imported(name: str, path: Path, known: Iterable[str]) -> Iterator[str]:
    """The modules that one imports, anywhere in it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
            inner = (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
            yield from (module if module in known else base for module in inner)


@lru_cache(maxsize=1)
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: {other for other in imported(name, path, known) if other} - {name} for name, path in known.items()}


def level(module: str) -> int:
    """Where the longest beginning of a module's name stands that `ORDER` has. KeyError for one without a place."""
    parts = module.split(".")
    if parts[0] == "architectures" and (PACKAGE / "/".join(parts[:2])).is_dir() and len(parts) > 1:
        return LEVELS["architectures.*"]
    found = next((LEVELS[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in LEVELS), None)
    if found is None:
        raise KeyError(f"{module} has no place in ORDER")
    return found


def climbing(known: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """(module, what it imports from above)"""
    return {(name, other) for name, others in known.items() if name for other in others if level(other) > level(name)}


def test_no_package_imports_from_above() -> None:
    assert climbing(graph()) == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert len(tuple(TopologicalSorter(graph()).static_order())) == len(graph())


@pytest.mark.parametrize(
    ("source", "others"),
    [
        ("from ..weights import loader", {"weights.loader"}),
        ("from ..weights.loader import Weights", {"weights.loader"}),
        ("def late():\n    from .. import job", {"job"}),
        ("if TYPE_CHECKING:\n    from .blocks import run_block", {"layers.blocks"}),
        ("from torch import nn", set()),
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path: Path, source: str, others: set[str]) -> None:
    path = tmp_path / "linear.py"
    path.write_text(source, encoding="utf-8")
    assert set(imported("layers.linear", path, modules())) == others


def test_what_climbs_and_what_goes_round_is_found() -> None:
    assert climbing({"layers.linear": {"lora.modules", "errors"}, "lora.modules": set()}) == {("layers.linear", "lora.modules")}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
