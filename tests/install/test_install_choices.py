"""Decisions of the installer that depend on the machine: the build of PyTorch, how environments are made, where packages come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from installer import environment, machine, torch_build
from installer.console import Console, InstallError, clean_environment


def test_the_torch_version_comes_from_the_constraints(repository: Path) -> None:
    version = torch_build.pinned_version(repository / "backend" / "constraints.txt")
    assert version.count(".") == 2 and "+" not in version


def test_every_direct_dependency_is_pinned_exactly(repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((repository / "backend" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    names = {text.split(";")[0].split(">")[0].split("=")[0].strip() for text in wanted}
    pinned = {
        line.split("==")[0]
        for line in (repository / "backend" / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    assert names - pinned == set()


def test_an_embedded_python_cannot_make_environments(tmp_path: Path) -> None:
    (tmp_path / "python312._pth").write_text("python312.zip\n.\n")
    assert not machine.can_make_environments(str(tmp_path / "python.exe"))
    assert machine.can_make_environments(sys.executable)


def test_without_venv_and_without_uv_the_user_is_reported_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "can_make_environments", lambda: False)
    monkeypatch.setattr(machine, "find_uv", lambda home: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InstallError, match="Install uv"):
        environment.create(tmp_path / "venv", tmp_path, Console(tmp_path))


def test_children_do_not_inherit_what_binds_them_to_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/comfyui")
    assert not {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"} & set(clean_environment())
