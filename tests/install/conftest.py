"""The small pack, installed by the real installer: fresh, for reading, and for breaking."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_pack import REPOSITORY, SmallPack, make_small_pack

sys.path.insert(0, str(REPOSITORY))


@pytest.fixture
def small_pack(tmp_path: Path) -> SmallPack:
    return make_small_pack(tmp_path)


@pytest.fixture(scope="session")
def installed_pack(tmp_path_factory: pytest.TempPathFactory) -> SmallPack:
    """One installed pack for all tests that do not break it."""
    pack = make_small_pack(tmp_path_factory.mktemp("installed"))
    done = pack.install()
    assert done.returncode == 0, done.stdout + done.stderr
    return pack


@pytest.fixture(scope="session")
def _as_installed(installed_pack: SmallPack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = tmp_path_factory.mktemp("kept") / "pack"
    shutil.copytree(installed_pack.folder, kept, symlinks=True)
    return kept


@pytest.fixture
def breakable_pack(installed_pack: SmallPack, _as_installed: Path) -> Iterator[SmallPack]:
    """The installed pack, for a test that may do with it what it likes: afterwards it is put back as it was, at the same place."""
    yield SmallPack(installed_pack.root, installed_pack.home, installed_pack.wheels)
    shutil.rmtree(installed_pack.folder, ignore_errors=True)
    shutil.copytree(_as_installed, installed_pack.folder, symlinks=True)
