"""python -m headless WORKFLOW.json [--set NODE.input=value ...] [--demo]

Exit codes: 0 done, 1 a node failed, 2 the workflow or an argument is wrong, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACK = "musubituner_pack"


def load_pack() -> Any:
    """The pack as a package, whatever its folder is called: its modules import each other relatively."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return importlib.import_module(f"{PACK}.headless.run")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headless", description="Run a workflow of MusubiTuner nodes without ComfyUI.")
    parser.add_argument("workflow", type=Path, help="workflow JSON, as saved by ComfyUI or exported for its API")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NODE.input=value", help="change a widget; NODE is an id, a title or a node type"
    )
    parser.add_argument("--models", type=Path, action="append", default=[], metavar="DIR", help="a models folder laid out like ComfyUI's")
    parser.add_argument("--home", type=Path, help="the product's home folder (default: $MUSUBITUNER_HOME, else as install.py chose)")
    parser.add_argument("--fresh", action="store_true", help="run every node, also those whose results are still there")
    parser.add_argument("--demo", action="store_true", help="run it on tiny models and clips, which are made first: sizes shrink to fit")
    pack = load_pack()
    pack.setup_streams()
    arguments = parser.parse_args(argv)
    code: int = pack.run_file(
        arguments.workflow, arguments.set, arguments.models, arguments.home, fresh=arguments.fresh, demo=arguments.demo
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
