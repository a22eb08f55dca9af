"""Sets up the backend of ComfyUI-MusubiTuner in an environment of its own; ComfyUI's packages are never touched.

    python install.py                 install, or bring up to date (ComfyUI-Manager calls it like this)
    python install.py --quickstart    also train a tiny model on a few clips and generate a video with it, on the CPU
    python install.py --doctor        what is installed, what the machine offers, what is wrong

Any Python 3.10 to 3.13 can run this; it needs no packages. Everything it makes lies in one folder, printed by --doctor.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.console import Console

ROOT = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - this runs before anything has checked which python it is
        print(f"ERROR: this is Python {sys.version.split()[0]}; run install.py with Python 3.10 to 3.13 (ComfyUI's own will do).")
        return 1
    sys.path[:0] = [str(ROOT), str(ROOT / "backend")]  # an embedded python does not add a script's folder
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: what we start has to be stoppable
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    from installer.console import Console, InstallError

    arguments = _parser().parse_args(argv)
    home = Path(os.path.expanduser(arguments.home)).absolute() if arguments.home else _default_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        return _run(arguments, home, Console(home))
    except InstallError as error:
        print(f"\nERROR: {error}", flush=True)
        return 1
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"\nERROR: {said}\nCheck that {home} can be written and has space, then run this again.", flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run install.py again to continue from here.", flush=True)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install.py", description="Set up the backend of ComfyUI-MusubiTuner. Without options: install, or bring up to date."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--quickstart", action="store_true", help="install, then train a tiny model and generate a video with it (CPU, about a minute)"
    )
    what.add_argument("--doctor", action="store_true", help="report versions, GPU, disk, engine, model folders and what is wrong")
    what.add_argument(
        "--test",
        nargs=argparse.REMAINDER,
        metavar="PYTEST_ARGUMENT",
        help="install what the tests need and run all checks; what follows goes to pytest",
    )
    parser.add_argument(
        "--with", dest="extras", action="append", default=[], choices=("optimizers", "wandb"), metavar="WHAT",
        help="install more: optimizers (those of other libraries, and 8-bit ones on a CPU) or wandb (Weights & Biases); remembered",
    )  # fmt: skip
    torch = parser.add_mutually_exclusive_group()
    torch.add_argument(
        "--cpu", dest="torch", action="store_const", const="cpu", help="install the CPU build of PyTorch whatever the machine has"
    )
    torch.add_argument(
        "--cuda", dest="torch", action="store_const", const="cuda", help="install the CUDA build of PyTorch even if no driver is found"
    )
    torch.add_argument("--auto", dest="torch", action="store_const", const="auto", help="choose by the NVIDIA driver (the default)")
    parser.add_argument(
        "--torch-index",
        metavar="URL",
        help="a mirror of https://download.pytorch.org/whl/ to take PyTorch from; remembered (default: back to the original)",
    )
    settings = parser.add_argument_group("settings (no installation is done)")
    settings.add_argument("--musubi-tuner", metavar="PATH", help="register a checkout of kohya-ss/musubi-tuner as the second engine")
    settings.add_argument("--musubi-python", metavar="PATH", help="its python, if it is not in .venv or venv inside the checkout")
    settings.add_argument("--engine", choices=("builtin", "musubi-tuner"), help="which engine runs jobs")
    settings.add_argument("--cpu-threads", metavar="N", help="how many CPU threads each job computes with, or auto: as its work gains")
    settings.add_argument(
        "--allow-root", action="append", default=[], metavar="PATH", help="a folder that workflows may use besides ComfyUI's own"
    )
    parser.add_argument(
        "--home",
        metavar="PATH",
        help="where everything goes (default: MUSUBITUNER_HOME, else ComfyUI's user/__musubituner, else .musubituner here)",
    )
    return parser


def _default_home() -> Path:
    """The rule that the nodes use too, loaded by path because the pack is a package only inside ComfyUI."""
    spec = importlib.util.spec_from_file_location("musubituner_home", ROOT / "nodes" / "jobs" / "home.py")
    if spec is None or spec.loader is None:
        raise ImportError("nodes/jobs/home.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    home: Path = module.home_folder(Path(__file__).absolute().parent)
    return home


def _run(arguments: argparse.Namespace, home: Path, console: Console) -> int:
    from installer import backend, checks, doctor, quickstart
    from installer.console import InstallError
    from installer.files import only_one
    from installer.settings import Settings

    places = backend.Places(ROOT, home)
    if arguments.musubi_python and not arguments.musubi_tuner:
        raise InstallError("--musubi-python goes with --musubi-tuner PATH")
    if arguments.musubi_tuner or arguments.engine or arguments.allow_root or arguments.cpu_threads:
        with only_one(home):
            settings = Settings(places.config, console)
            for root in arguments.allow_root:
                settings.allow_root(root)
            if arguments.musubi_tuner:
                settings.register_musubi_tuner(arguments.musubi_tuner, arguments.musubi_python)
            if arguments.engine:
                settings.use_engine(arguments.engine)
            if arguments.cpu_threads:
                settings.use_cpu_threads(arguments.cpu_threads)
            settings.save()
        return 0
    if arguments.doctor:
        return doctor.report(places, console)
    needed = ("demo",) if arguments.quickstart else ("demo", "dev") if arguments.test is not None else ()
    extras = (*needed, *arguments.extras)
    with only_one(home):
        python = backend.ensure(places, console, backend.Wanted(extras, arguments.torch, arguments.torch_index))
    if arguments.quickstart:
        return quickstart.run(places, python, console)
    if arguments.test is not None:
        return checks.run(places, python, console, arguments.test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
