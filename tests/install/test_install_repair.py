"""What install.py and the doctor notice, and repair: damaged packages, moved and copied folders, a CPU build where CUDA was meant.

The installer runs here, on a small environment that pip made from hand-made wheels; its programs are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_pack import LIBRARY, make_torch

from installer import backend, doctor
from installer.backend import Places, Wanted
from installer.console import Console, InstallError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _only_the_wheels(installed_pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = installed_pack.environment()
    for name in {*os.environ} - {*wanted}:
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def _no_package_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))


def _install(pack: Any, wanted: Wanted | None = None) -> None:
    backend.ensure(Places(pack.root, pack.home), Console(pack.home), wanted or Wanted())


def _problems(pack: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the doctor finds wrong."""
    capsys.readouterr()
    code = doctor.report(Places(pack.root, pack.home), Console(pack.home))
    said = capsys.readouterr().out.replace("\\", "/")
    assert (code == 0) == ("Nothing is wrong." in said)
    return [line for line in said.splitlines() if line.startswith("- ")]


def _site(pack: Any) -> Path:
    return next((pack.home / "venv").rglob("filelock-1.0.dist-info")).parent


def _runs(pack: Any) -> Path:
    """The folder of the code that the environment runs."""
    code = "import musubi_backend, torch; print(musubi_backend.__file__)"
    done = subprocess.run([str(pack.python), "-I", "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    return Path(done.stdout.strip()).parent


def test_damaged_packages_are_named_by_the_doctor_and_installed_again(breakable_pack: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A package that only another one needs, one whose file is cut short, the library in torch, and one of an extra."""
    _install(breakable_pack, Wanted(("demo",)))
    assert _problems(breakable_pack, capsys) == []
    site = _site(breakable_pack)
    paths = [site / name for name in ("filelock/__init__.py", "transformers/__init__.py", LIBRARY, "imageio/__init__.py")]
    whole = [path.read_bytes() for path in paths]
    untouched = (site / "tqdm" / "__init__.py").stat()
    paths[0].unlink()
    paths[1].write_bytes(b"#")
    paths[2].unlink()
    paths[3].unlink()

    named = "\n".join(_problems(breakable_pack, capsys))
    for package, fault in (
        ("filelock", "filelock/__init__.py is missing"),
        ("transformers", f"transformers/__init__.py has 1 bytes instead of {len(whole[1])}"),
        ("torch", f"{LIBRARY} is missing"),
        ("imageio", "imageio/__init__.py is missing"),
    ):
        line = next(line for line in named.splitlines() if line.startswith(f"- {package} is not as it was installed"))
        assert fault in line and "Run: python install.py" in line
    assert "PyTorch does not start" in named

    _install(breakable_pack)

    assert [path.read_bytes() for path in paths] == whole
    assert _problems(breakable_pack, capsys) == []
    assert (site / "tqdm" / "__init__.py").stat().st_mtime_ns == untouched.st_mtime_ns, "what is whole stays"


def test_a_package_that_is_gone_or_of_another_version_is_named_and_installed_again(
    breakable_pack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    site = _site(breakable_pack)
    shutil.rmtree(site / "filelock-1.0.dist-info")
    other = (site / "tqdm-1.0.dist-info").rename(site / "tqdm-0.9.dist-info")
    (other / "METADATA").write_text((other / "METADATA").read_text().replace("Version: 1.0", "Version: 0.9"))
    (other / "RECORD").write_text((other / "RECORD").read_text().replace("tqdm-1.0", "tqdm-0.9"))

    named = "\n".join(_problems(breakable_pack, capsys))
    assert "filelock is not as it was installed (is gone)" in named
    assert "tqdm is not as it was installed (is 0.9; 1.0 was installed)" in named

    _install(breakable_pack)

    assert _problems(breakable_pack, capsys) == []
    assert (site / "tqdm-1.0.dist-info").is_dir() and not other.exists()


def test_an_installation_from_before_the_record_is_judged_by_what_the_packages_list(
    breakable_pack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (breakable_pack.home / "installed.json").unlink()
    gone = _site(breakable_pack) / "transformers" / "__init__.py"
    gone.unlink()
    assert [line for line in _problems(breakable_pack, capsys) if "transformers is not as it was installed" in line]
    _install(breakable_pack)
    assert gone.is_file() and (breakable_pack.home / "installed.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' scripts are programs")
@pytest.mark.usefixtures("_no_package_source")
@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_moved_or_copied_comfyui_is_noticed_and_mended_without_any_package_source(
    breakable_pack: Any, copied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = breakable_pack.folder, tmp_path / "an other place"
    shutil.copytree(old, new, symlinks=True) if copied else shutil.move(old, new)
    original = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and not path.is_symlink()}
    pack = type(breakable_pack)(
        new / breakable_pack.root.relative_to(old), new / breakable_pack.home.relative_to(old), breakable_pack.wheels
    )
    assert any("moved or copied" in line for line in _problems(pack, capsys))

    before = (pack.home / "install.log").read_text(encoding="utf-8")
    _install(pack)

    log = (pack.home / "install.log").read_text(encoding="utf-8").removeprefix(before)
    assert "  > " not in log, "no package manager was needed"
    assert _runs(pack) == pack.root / "backend" / "musubi_backend"
    assert json.loads((pack.home / "config.json").read_text(encoding="utf-8"))["interpreter"] == str(pack.python)
    for script in (pack.home / "venv" / "bin").iterdir():
        assert script.is_symlink() or str(old) not in script.read_text(encoding="utf-8"), script
    assert subprocess.run([str(pack.home / "venv" / "bin" / "pip"), "--version"], check=False, capture_output=True).returncode == 0
    assert _problems(pack, capsys) == []
    assert {path: path.read_bytes() for path in original} == original, "the copied one is left alone"


@pytest.mark.skipif(sys.platform == "win32", reason="a script as a program")
def test_a_cpu_build_in_place_of_cuda_is_named_and_a_mirror_changes_it(
    breakable_pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564, 590.10, 8.9'\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)

    _install(breakable_pack)
    said = capsys.readouterr().out
    assert "PyTorch 1.0+cpu is installed for the CPU: a CUDA build could not be had" in said and "--torch-index URL" in said
    assert any("There is an NVIDIA GPU, but PyTorch is the CPU build" in line for line in _problems(breakable_pack, capsys))
    with pytest.raises(InstallError, match="is installed for the CPU"):
        _install(breakable_pack, Wanted(torch="cuda"))
    with pytest.raises(InstallError, match="give the URL"):
        _install(breakable_pack, Wanted(torch_index="no url"))

    mirror = tmp_path / "a mirror"
    (mirror / "cu130").mkdir(parents=True)
    make_torch(mirror / "cu130", "cu130", "13.0")
    _install(breakable_pack, Wanted(torch_index=mirror.as_uri()))
    assert "PyTorch 1.0+cu130: CUDA 13.0" in capsys.readouterr().out
    state = json.loads((breakable_pack.home / "install.json").read_text())
    assert (state["torch_index"], state["torch_is"]["cuda"], "extra gpu" in state["steps"]) == (mirror.as_uri(), "13.0", True)
    _install(breakable_pack)
    assert "installed already" in capsys.readouterr().out, "it stays"
