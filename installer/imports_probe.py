"""Runs in the backend's environment, by its path: imports what the backend imports anywhere, and prints as JSON what fails.

Usage: python imports_probe.py BACKEND. Only the packages that the backend requires are tried; others are optional.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path


def main() -> None:
    backend = Path(sys.argv[1])
    required = _required()
    provided = {module for module, names in packages_distributions().items() if required & {_plain(name) for name in names}}
    gone = sorted(name for name in required if not _installed(name))
    failed = [{"module": name, "error": "it is not installed", "file": "pyproject.toml"} for name in gone]
    for (module, name), file in sorted(_imports(backend, failed).items()):
        if module.partition(".")[0] not in provided:
            continue
        try:
            found = importlib.import_module(module)
            if name and not hasattr(found, name):
                importlib.import_module(f"{module}.{name}")
        except Exception as error:  # whatever a broken package raises
            failed.append({"module": f"{module}.{name}" if name else module, "error": f"{type(error).__name__}: {error}", "file": file})
    print("\n" + json.dumps(failed))


def _imports(backend: Path, failed: list[dict[str, str]]) -> dict[tuple[str, str], str]:
    """(module, name in it or "") -> a file that imports it. What stands in `try` is optional. Files that are no code go to `failed`."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted((backend / "musubi_backend").rglob("*.py")):
        file = path.relative_to(backend).as_posix()
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            failed.append({"module": "", "error": f"{type(error).__name__}: {error}", "file": file})
            continue
        for node in _nodes(tree):
            if isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                pairs = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            for pair in pairs:
                found.setdefault(pair, file)
    return found


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Try):
            continue
        yield child
        yield from _nodes(child)


def _required() -> set[str]:
    try:
        texts = distribution("musubi-backend").requires or []
    except PackageNotFoundError:
        return set()
    return {_plain(re.split(r"[^\w.-]", text)[0]) for text in texts if ";" not in text}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
