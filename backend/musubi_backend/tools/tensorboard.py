"""The tool `tensorboard`: TensorBoard over a folder of logs, on this machine only, until it is asked to stop."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from pathlib import Path

from .. import durations, events, job
from ..errors import StopRequested, UserError
from .settings import TensorBoardSettings

HOST = "127.0.0.1"


def run(args: Namespace) -> None:
    """Serve `--logging_dir` on a free port of the loopback address and tell the address. Ends by StopRequested: it has no other end."""
    settings = TensorBoardSettings.read(args)
    folder = Path(settings.logging_dir)
    if not folder.is_dir():
        raise UserError(f"--logging_dir {folder}: there is no such folder")
    job.phase("starting TensorBoard")
    address = _serve(folder)
    job.emit(events.Address(address))
    job.phase(f"TensorBoard of {folder.name}: {address}")
    print(address, flush=True)
    while not job.stop_requested():
        time.sleep(durations.LOOK_WHILE_SERVING)
    raise StopRequested("TensorBoard was stopped")


def _serve(folder: Path) -> str:
    """Start it in a thread of this process; its address."""
    from tensorboard import default, program

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every look at the folder
    board = program.TensorBoard(plugins=default.get_static_plugins())
    # the fast loader is a process of its own, which could be left behind
    board.configure(logdir=str(folder), host=HOST, port=0, load_fast="false", reload_interval=durations.BETWEEN_RELOADS)
    address: str = board.launch()
    return address
