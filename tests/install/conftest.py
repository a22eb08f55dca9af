"""The small pack, installed by the real installer: fresh, for reading, and for breaking."""

from __future__ import annotations

import os
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
    _put_back(_as_installed, installed_pack.folder)


def _put_back(kept: Path, folder: Path) -> None:
    """Make `folder` what `kept` is by copying only what differs: most of an environment is pip, which no test touches."""
    have, should = _entries(folder), _entries(kept)
    for name in sorted(have.keys() - should.keys(), key=len, reverse=True):
        path = folder / name
        path.rmdir() if have[name] == "folder" else path.unlink()
    for name in sorted(should, key=len):
        if have.get(name) == should[name]:
            continue
        path = folder / name
        if name in have:
            shutil.rmtree(path) if have[name] == "folder" else path.unlink()
        if should[name] == "folder":
            path.mkdir(parents=True)
        else:
            shutil.copy2(kept / name, path, follow_symlinks=False)


def _entries(folder: Path) -> dict[str, object]:
    """What lies in a folder: its relative path -> what tells whether it was changed."""
    found: dict[str, object] = {"": "folder"} if folder.is_dir() else {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            link = path.is_symlink()
            kind = str(path.readlink()) if link else "folder" if path.is_dir() else (status.st_size, status.st_mtime_ns, status.st_mode)
            found[os.path.relpath(path, folder)] = kind
    return found
