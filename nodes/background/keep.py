"""python keep.py HOME: works through the queue of a home, and ends when it is empty. Started by `submit.see_to_it`, with any python."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

PACK = "musubituner_pack"


def main() -> int:
    pack = types.ModuleType(PACK)  # the modules of the pack import each other relatively, whatever its folder is called
    pack.__path__ = [str(Path(__file__).absolute().parents[2])]
    sys.modules[PACK] = pack
    code: int = importlib.import_module(f"{PACK}.nodes.background.keeper").main(Path(sys.argv[1]))
    return code


if __name__ == "__main__":
    sys.exit(main())
