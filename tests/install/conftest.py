"""A small pack that the real installer installs for real, offline: our installer, a backend of one module, and hand-made wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

_TORCH = """
__version__ = "1.0+cpu"
class cuda:
    is_available = staticmethod(lambda: False)
class version:
    cuda = None
"""
_BUILD = """
import os, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "musubi_backend-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("musubi_backend.pth", os.getcwd() + "\\n")
        info = "musubi_backend-0.1.0.dist-info/"
        extra = "Provides-Extra: demo\\nRequires-Dist: torch\\nRequires-Dist: tqdm\\n"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: musubi-backend\\nVersion: 0.1.0\\n" + extra)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "musubi_backend.pth,,\\n" + info + "METADATA,,\\n" + info + "WHEEL,,\\n" + info + "RECORD,,\\n")
    return name
"""
_PROJECT = """
[build-system]
requires = []
build-backend = "small_build"
backend-path = ["."]

[project]
name = "musubi-backend"
version = "0.1.0"
dependencies = [
    "torch>=1",
    "tqdm>=1",
]
"""


def make_wheel(folder: Path, name: str, version: str, source: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(
            f"{info}/RECORD",
            "".join(f"{part},,\n" for part in (f"{name}/__init__.py", *(f"{info}/{x}" for x in ("METADATA", "WHEEL", "RECORD")))),
        )


@dataclass
class SmallPack:
    root: Path
    home: Path
    wheels: Path

    @property
    def python(self) -> Path:
        return self.home / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_")) and name != "MUSUBITUNER_HOME"}
        # Only python's own venv and pip: uv would read its own sources.
        path = os.pathsep.join(part for part in kept.get("PATH", "").split(os.pathsep) if not (Path(part) / "uv").exists())
        return {**kept, "PATH": path, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull, **extra}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.root / "install.py"), *arguments]

    def install(self, *arguments: str, folder: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(**extra),
            cwd=folder or self.wheels,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=1200,
            check=False,
        )


def make_small_pack(folder: Path) -> SmallPack:
    """A pack in a `custom_nodes` folder whose path holds a space and Japanese, with no way to reach an index."""
    root = folder / "Comfy UI ビデオ" / "custom_nodes" / "ComfyUI-MusubiTuner"
    shutil.copytree(REPOSITORY / "installer", root / "installer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "install.py", root)
    (root / "nodes" / "jobs").mkdir(parents=True)
    shutil.copy(REPOSITORY / "nodes" / "jobs" / "home.py", root / "nodes" / "jobs")
    package = root / "backend" / "musubi_backend"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (root / "backend" / "small_build.py").write_text(_BUILD)
    (root / "backend" / "pyproject.toml").write_text(_PROJECT)
    (root / "backend" / "constraints.txt").write_text("torch==1.0\ntqdm==1.0\n")
    wheels = folder / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "torch", "1.0+cpu", _TORCH)
    make_wheel(wheels, "tqdm", "1.0", "")
    return SmallPack(root, root.parent.parent / "user" / "__musubituner", wheels)


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
