"""Runs a foreign script (the musubi-tuner engine) so that it ends when we do.

    python guarded.py SCRIPT [ARGUMENTS...]

musubi-tuner does not read stdin, so a thread here does: the line "stop" or end of file (the runner died) interrupts the script. What it
writes in one piece, as it does LoRAs, it still may write; if it does not end, the whole process group is ended minutes later.
Standard library only: it runs in musubi-tuner's python.
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

END_SECONDS = 120.0


def _listen() -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            break
    if os.name == "posix":
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # also out of a wait
    else:
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
