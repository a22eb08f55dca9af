"""`--doctor`: what is installed, what the machine offers, and what is wrong, each problem with its remedy. Changes nothing."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

from . import machine
from .backend import Places, requirements_stamp
from .console import Console, output_of
from .environment import Contents, inspect, python_of
from .files import read_json
from .settings import musubi_version
from .state import State

_TORCH = "import json, torch; c = torch.cuda.is_available(); print(json.dumps([torch.__version__, c, torch.version.cuda or '']))"
_SHOWN_PACKAGES = ("musubi-backend", "torch", "accelerate", "diffusers", "transformers", "safetensors", "av")
_MODEL_FOLDERS = ("diffusion_models", "vae", "text_encoders", "clip_vision", "loras")
_LOW_DISK_GIB = 5.0


class Report:
    def __init__(self, console: Console) -> None:
        self._console = console
        self.problems: list[str] = []

    def line(self, name: str, value: str) -> None:
        self._console.say(f"{name + ':':<16}{value}")

    def problem(self, text: str) -> None:
        self.problems.append(text)


def report(places: Places, console: Console) -> int:
    """Print the report; 0 if nothing is wrong, else 1."""
    out = Report(console)
    out.line("Pack", f"{_pack_version(places.root)} in {places.root}")
    out.line("Home", f"{places.home}, {machine.free_gib(places.home):.0f} GiB free")
    out.line("System", f"{platform.system()} {platform.release()}, {platform.machine()}; this python {platform.python_version()}")
    if machine.free_gib(places.home) < _LOW_DISK_GIB:
        out.problem(f"Less than {_LOW_DISK_GIB:.0f} GiB are free in {places.home}: training needs room for checkpoints and caches.")
    gpus = machine.nvidia_gpus()
    for gpu in gpus:
        out.line("GPU", f"{gpu.name}, {gpu.memory_gib:.0f} GiB, driver {gpu.driver}")
    if not gpus:
        out.line("GPU", "no NVIDIA driver found; jobs run on the CPU, which is fit for the quickstart only")
    _environment(places, bool(gpus), out)
    _settings(places, out)
    _models(places, out)
    console.say()
    if not out.problems:
        console.say("Nothing is wrong.")
        return 0
    console.say(f"{len(out.problems)} problem{'s' if len(out.problems) > 1 else ''}:")
    for problem in out.problems:
        console.say(f"- {problem}")
    return 1


def _environment(places: Places, gpu: bool, out: Report) -> None:
    contents = inspect(places.environment)
    if contents is None:
        out.line("Environment", "none" if not places.environment.exists() else "broken")
        out.problem("The backend is not installed. Run: python install.py")
        return
    out.line("Environment", f"{places.environment}, Python {contents.python}")
    out.line("Packages", ", ".join(f"{name} {contents.versions[name]}" for name in _SHOWN_PACKAGES if name in contents.versions))
    state = State.load(places.home)
    if state.interrupted or contents.incomplete:
        out.problem("An installation was interrupted. Run: python install.py")
    elif not state.done("backend", requirements_stamp(places, contents.series)):
        out.problem("The pack was updated or moved since the backend was installed. Run: python install.py")
    else:
        _compare_versions(places, contents, out)
    _torch(places, gpu, out)


def _torch(places: Places, gpu: bool, out: Report) -> None:
    text = output_of([str(python_of(places.environment)), "-I", "-c", _TORCH])
    if text is None:
        out.problem(
            "PyTorch does not start in the environment. Run: python install.py (it says what is missing), or delete that folder first."
        )
        return
    version, available, cuda = json.loads(text.splitlines()[-1])
    out.line("PyTorch", f"{version}, " + (f"CUDA {cuda} works" if available else f"CUDA {cuda} finds no GPU" if cuda else "CPU build"))
    if gpu and not cuda:
        out.problem("There is an NVIDIA GPU, but PyTorch is the CPU build. Run: python install.py --auto")
    elif gpu and not available:
        out.problem("PyTorch cannot use the GPU: its driver is likely too old for this CUDA. Update the NVIDIA driver.")


def _compare_versions(places: Places, contents: Contents, out: Report) -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)\s*$", places.constraints.read_text(encoding="utf-8"), re.MULTILINE))
    for name in _SHOWN_PACKAGES:
        installed = contents.versions.get(name, "").partition("+")[0]
        if name in pins and installed and installed != pins[name]:
            out.problem(f"{name} {installed} is installed, tested is {pins[name]}.\n  Delete {places.environment}, then run install.py.")


def _settings(places: Places, out: Report) -> None:
    try:
        data = read_json(places.config)
    except ValueError as error:
        out.problem(f"{places.config} is damaged ({error}). Run: python install.py")
        return
    out.line("Engine", str(data.get("engine", "builtin")))
    out.line("CPU threads", str(data.get("cpu_threads") or "as the work gains"))
    musubi = data.get("musubi_tuner")
    if musubi:
        checkout, python = Path(musubi["path"]), Path(musubi["python"])
        out.line("musubi-tuner", f"{musubi_version(checkout)} in {checkout}, {python}")
        if not (checkout / "wan_train_network.py").is_file() or not python.is_file():
            out.problem("The registered musubi-tuner checkout or its python is gone. Run: python install.py --musubi-tuner PATH")
    else:
        out.line("musubi-tuner", "no checkout registered (optional)")
    for root in data.get("allowed_roots") or []:
        out.line("Allowed folder", root)
        if not Path(root).is_dir():
            out.problem(f"The allowed folder {root} does not exist (a drive that is not connected?).")
    interpreter = data.get("interpreter")
    if interpreter and Path(interpreter) != python_of(places.environment):
        out.problem(f"config.json names another python ({interpreter}). Run: python install.py")


def _models(places: Places, out: Report) -> None:
    inside = places.root.parent.name == "custom_nodes"
    models = places.root.parent.parent / "models" if inside else places.home / "models"
    if not models.is_dir():
        out.line("Models", f"no folder {models}")
        return
    counts = []
    for name in _MODEL_FOLDERS:
        folder = models / name
        files = [path for path in folder.rglob("*") if path.suffix in {".safetensors", ".sft", ".pth"}] if folder.is_dir() else []
        counts.append(f"{name} {len(files)}")
    out.line("Models", f"{models}: {', '.join(counts)}")


def _pack_version(root: Path) -> str:
    match = re.search(r'__version__ = "([^"]+)"', (root / "backend" / "musubi_backend" / "__init__.py").read_text(encoding="utf-8"))
    return match.group(1) if match else "?"
