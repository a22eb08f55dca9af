"""The pack as ComfyUI loads it: from its folder, under a name of the loader's choosing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "pack_under_test"


def load_pack() -> ModuleType:
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACK] = module
        spec.loader.exec_module(module)
    return sys.modules[PACK]


@pytest.fixture(scope="session")
def part() -> Any:
    """`part("nodes.jobs.guard")` is that module of the pack."""
    load_pack()
    return lambda name: importlib.import_module(f"{PACK}.{name}")
