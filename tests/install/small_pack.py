"""A small pack that the real installer installs for real, offline: our installer, a backend of one module, and hand-made wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

LIBRARY = "torch/lib/libtorch_cpu.so"


def torch_source(build: str, cuda: str | None) -> str:
    """A torch that needs its library to be whole, and answers what the installer asks."""
    return f"""
import os
with open(os.path.join(os.path.dirname(__file__), "lib", "libtorch_cpu.so")) as library:
    if library.read() != "machine code":
        raise ImportError("libtorch_cpu.so: file too short")
__version__ = "1.0+{build}"
class cuda:
    is_available = staticmethod(lambda: False)
class version:
    cuda = {cuda!r}
"""


_BUILD = """
import os, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "musubi_backend-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("musubi_backend.pth", os.getcwd() + "\\n")
        info = "musubi_backend-0.1.0.dist-info/"
        extra = "".join(f"Requires-Dist: {name}\\n" for name in ("torch", "tqdm", "transformers", "imageio; extra == 'demo'"))
        extra = "Provides-Extra: demo\\nProvides-Extra: gpu\\n" + extra
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
    "transformers>=1",
]

[project.optional-dependencies]
demo = ["imageio"]
gpu = []
"""


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str], requires: str = "") -> None:
    """A wheel of these files (path in it -> text)."""
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in content.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD")))


def make_torch(folder: Path, build: str, cuda: str | None) -> None:
    make_wheel(folder, "torch", f"1.0+{build}", {"torch/__init__.py": torch_source(build, cuda), LIBRARY: "machine code"}, "filelock")


@dataclass
class SmallPack:
    root: Path
    home: Path
    wheels: Path

    @property
    def folder(self) -> Path:
        """All of it but the wheels lies here: a ComfyUI, as far as the installer looks."""
        return self.root.parent.parent

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
    # with which the installer reads and writes its files
    for name in ("atomic", "documents", "durations", "errors", "events", "job", "locks", "ordinary", "texts"):
        shutil.copy(REPOSITORY / "backend" / "musubi_backend" / f"{name}.py", package)
    (root / "backend" / "small_build.py").write_text(_BUILD)
    (root / "backend" / "pyproject.toml").write_text(_PROJECT)
    (root / "backend" / "constraints.txt").write_text("torch==1.0\ntqdm==1.0\ntransformers==1.0\n")
    wheels = folder / "wheels"
    wheels.mkdir()
    make_torch(wheels, "cpu", None)
    for name in ("filelock", "transformers", "tqdm", "imageio"):
        make_wheel(wheels, name, "1.0", {f"{name}/__init__.py": f"'''{name}'''\n"})
    return SmallPack(root, root.parent.parent / "user" / "__musubituner", wheels)
