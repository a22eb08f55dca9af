"""The pack with the made-up families besides its own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

MADE_UP = Path(__file__).parent / "made_up"


@pytest.fixture(scope="session")
def part(repository: Path) -> Any:
    """As the fixture of that name for all tests, of a pack that also has the families of `made_up`."""
    name = "pack_with_made_up_families"
    spec = importlib.util.spec_from_file_location(name, repository / "__init__.py", submodule_search_locations=[str(repository)])
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    importlib.import_module(f"{name}.backend.musubi_backend.architectures").__path__.append(str(MADE_UP))
    return lambda module: importlib.import_module(f"{name}.{module}")
