"""`--doctor`: what is installed, what the machine offers, and what is wrong, each problem with its remedy. Changes nothing."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from . import machine, record, relocation, torch_build
from .backend import Places, requirements_stamp
from .console import Console, InstallError, answer_of
from .environment import inspect, python_of
from .files import read_json
from .settings import musubi_version
from .settings_rules import checked
from .state import State

_IMPORTS = Path(__file__).with_name("imports_probe.py")
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
        capability = f", compute capability {gpu.capability[0]}.{gpu.capability[1]}" if gpu.capability else ""
        memory = f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib is not None else ""
        out.line("GPU", f"{gpu.name}{memory}{capability}, driver {gpu.driver}")
    if not gpus:
        out.line("GPU", "no NVIDIA driver found; jobs run on the CPU, which is fit for the quickstart only")
    _environment(places, gpus, out)
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


def _environment(places: Places, gpus: list[machine.Gpu], out: Report) -> None:
    contents = inspect(places.environment)
    if contents is None:
        out.line("Environment", "none" if not places.environment.exists() else "broken")
        out.problem("The backend is not installed. Run: python install.py")
        return
    out.line("Environment", f"{places.environment}, Python {contents.python}")
    out.line("Packages", ", ".join(f"{name} {contents.versions[name]}" for name in _SHOWN_PACKAGES if name in contents.versions))
    state = State.load(places.home)
    if state.interrupted:
        out.problem("An installation was interrupted. Run: python install.py")
    elif not state.done("backend", requirements_stamp(places, contents.series)):
        out.problem("The pack was updated since the backend was installed. Run: python install.py")
    for name, fault in sorted(record.damage(places.home, places.environment, contents).items()):
        out.problem(f"{name} is not as it was installed ({fault}). Run: python install.py")
    linked = relocation.linked_to(places.environment)
    if linked != places.backend:
        out.problem(
            f"The environment runs the backend in {linked or 'no folder'}, not this pack's (moved or copied?). Run: python install.py"
        )
    if (former := relocation.former_place(places.config)) not in (None, places.environment):
        out.problem(f"The environment was moved or copied here from {former}. Run: python install.py")
    _torch(places, gpus, str(state.data.get("torch", "auto")), out)
    _imports(places, out)


def _torch(places: Places, gpus: list[machine.Gpu], wanted: str, out: Report) -> None:
    found = torch_build.ask(places.environment)
    if found is None:
        out.problem("PyTorch does not start in the environment. Run: python install.py")
        return
    works = "computes" if not found.problems else "sees a GPU that it cannot use"
    cuda = f"CUDA {found.cuda} {works if found.available else 'finds no GPU'}" if found.cuda else "CPU build"
    out.line("PyTorch", f"{found.version}, {cuda}")
    for problem in found.problems:
        out.problem(f"{problem}. Run: python install.py --auto")
    try:
        choice = torch_build.choose(wanted, gpus, found.kind)
    except InstallError as error:
        out.problem(str(error))
        return
    if choice.advice:
        out.problem(choice.advice)
    elif choice.kind == "cuda" and found.cuda is None:
        out.problem(
            "There is an NVIDIA GPU, but PyTorch is the CPU build. Run: python install.py --cuda\n"
            f"  (where {torch_build.INDEX} cannot be reached, add --torch-index URL of a mirror)"
        )
    elif gpus and found.cuda and not found.available:
        out.problem("PyTorch cannot use the GPU: its driver is likely too old for this CUDA. Update the NVIDIA driver.")


def _imports(places: Places, out: Report) -> None:
    """Import what the tools need."""
    failed = answer_of([str(python_of(places.environment)), "-I", str(_IMPORTS), str(places.backend)])
    if failed is None:
        out.problem("What the tools need cannot be imported: python itself ended. Delete the environment, then run: python install.py")
        return
    seen: set[str] = set()
    for entry in failed:
        if not entry["module"]:
            out.problem(f"{places.backend / entry['file']} is damaged ({entry['error']}). Install this version of the pack again.")
            continue
        package = entry["module"].partition(".")[0]
        if package not in seen:
            out.problem(f"{entry['module']}, which {entry['file']} needs, cannot be imported ({entry['error']}). Run: python install.py")
        seen.add(package)


def _settings(places: Places, out: Report) -> None:
    try:
        data = checked(read_json(places.config))
    except ValueError as error:
        out.problem(f"{places.config} is damaged ({error}). Run: python install.py")
        return
    out.line("Engine", data["engine"])
    out.line("CPU threads", str(data["cpu_threads"] or "as the work gains"))
    musubi = data["musubi_tuner"]
    if musubi:
        checkout, python = Path(musubi["path"]), Path(musubi["python"])
        out.line("musubi-tuner", f"{musubi_version(checkout)} in {checkout}, {python}")
        if not (checkout / "wan_train_network.py").is_file() or not python.is_file():
            out.problem("The registered musubi-tuner checkout or its python is gone. Run: python install.py --musubi-tuner PATH")
    else:
        out.line("musubi-tuner", "no checkout registered (optional)")
    for root in data["allowed_roots"]:
        out.line("Allowed folder", root)
        if not Path(root).is_dir():
            out.problem(f"The allowed folder {root} does not exist (a drive that is not connected?).")


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
