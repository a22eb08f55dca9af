"""Large libraries are imported without Python's search for cycles, and a process does not search once more when it ends."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from musubi_backend import imports


def test_the_search_for_cycles_is_off_inside_and_as_it_was_afterwards() -> None:
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), imports.large():
        assert not gc.isenabled()
        with imports.large():
            assert not gc.isenabled()
        assert not gc.isenabled()
        import no_such_library  # noqa: F401
    assert gc.isenabled()


def test_a_process_that_ends_does_not_search_what_stays() -> None:
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000, len(gc.get_objects())))\n"  # runs after those registered later
        "from musubi_backend import imports\n"
        "gc.collect()"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed[0] == "True" and int(printed[1]) < 100
