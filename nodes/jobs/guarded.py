"""Runs a foreign script (the musubi-tuner engine) so that it ends when we do.

    python guarded.py SCRIPT [ARGUMENTS...]

musubi-tuner does not read stdin, so a thread here does: the line "stop" interrupts the script, end of file (the runner died)
interrupts it and, a little later, ends the whole process group. Standard library only: it runs in musubi-tuner's python.
"""

from __future__ import annotations

import _thread
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

END_SECONDS = 5.0


def _listen() -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            break
    _thread.interrupt_main()
    time.sleep(END_SECONDS)
    if os.name == "posix":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def main() -> None:
    script = os.path.abspath(sys.argv[1])
    sys.argv = [script, *sys.argv[2:]]
    sys.path[0] = str(Path(script).parent)
    threading.Thread(target=_listen, name="stop-listener", daemon=True).start()
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
