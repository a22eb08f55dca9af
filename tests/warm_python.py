"""A stand-in of the backend's python that has imported torch already: jobs are processes as ever, and start in a moment.

`python -m musubi_backend …` takes 3 to 6 s of CPU to import what it needs, and workflows start dozens of jobs. Here a server imports it
once, and the interpreter that the pack is told of is a small program that hands the server its arguments, environment, folder and
streams. The server forks: the child has them, and runs the same `main`. Whatever else is to be run, the real python does.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import io
import json
import os
import random
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BACKEND = Path(__file__).resolve().parents[1] / "backend"
PROGRAM = """#!{python} -IS
import array, json, os, signal, socket, sys
if sys.argv[1:3] != ["-m", "musubi_backend"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect(chr(0) + {address!r})
asked = json.dumps([sys.argv[3:], dict(os.environ), os.getcwd()]).encode()
server.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(asked)
for number in (0, 1, 2):
    os.close(number)  # the job alone has the pipes, or their readers would wait for this
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: server.sendall(bytes([number])))
answer = b""
while len(answer) < 4:
    answer += (more := server.recv(4 - len(answer)))
    if not more:
        os._exit(70)
code = int.from_bytes(answer, "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Path]:
    """The stand-in, while its server runs."""
    address = f"musubi-jobs-{secrets.token_hex(8)}"
    program = folder / "python"
    program.write_text(PROGRAM.format(python=sys.executable, address=address), encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, __file__, address], env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert server.stdout is not None and server.stdin is not None
    assert server.stdout.readline() == b"ready\n"
    try:
        yield program
    finally:
        server.stdin.close()
        server.wait()


def _prepare() -> None:
    """Import what jobs import. Nothing is computed: no thread may be there when it forks."""
    import importlib

    import float32_cpu
    from musubi_backend import architectures, imports
    from musubi_backend.architectures import protocol
    from musubi_backend.encoders.lean_import import diffusers_class
    from musubi_backend.encoders.lean_transformers import from_transformers
    from musubi_backend.options.registry import tools

    with imports.large():
        for module in sorted({tool.module for tool in tools().values()}):
            importlib.import_module(f"musubi_backend.{module}")
        for card in architectures.cards().values():
            protocol.load(card.id)
        from_transformers("UMT5Config", "UMT5EncoderModel", "AutoTokenizer")
        diffusers_class("diffusers.models.autoencoders.autoencoder_kl_wan", "AutoencoderKLWan")
    float32_cpu.pretend()
    gc.collect()
    gc.freeze()


def _serve(address: str) -> list[str] | None:
    """Start what is asked for, until the standard input ends. Returns twice and more: None here, the arguments in each child."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(chr(0) + address)  # of Linux: no file
    listening.listen(64)
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    events = selectors.DefaultSelector()
    for one in (0, woken, listening):
        events.register(one, selectors.EVENT_READ)
    jobs: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for key, _ in events.select():
            if key.fileobj == 0:
                for job in jobs:
                    os.kill(job, signal.SIGKILL)
                return None
            if key.fileobj is woken:
                woken.recv(4096)
            elif key.fileobj is listening:
                asking, _ = listening.accept()
                words, environment, folder, streams = _asked(asking)
                job = os.fork()
                if job == 0:
                    events.close()
                    signal.set_wakeup_fd(-1)
                    for left in (listening, woken, wakes, asking, *jobs.values()):
                        left.close()
                    _become(environment, folder, streams)
                    return words
                for stream in streams:
                    os.close(stream)
                jobs[job] = asking
                events.register(asking, selectors.EVENT_READ, job)
            else:
                _pass_on(key.fileobj, key.data, events)
        for job in [*jobs]:
            ended, status = os.waitpid(job, os.WNOHANG)
            if ended:
                asking = jobs.pop(job)
                with contextlib.suppress(OSError):  # whoever waited was killed
                    asking.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
                with contextlib.suppress(KeyError):
                    events.unregister(asking)
                asking.close()


def _asked(asking: socket.socket) -> tuple[list[str], dict[str, str], str, list[int]]:
    streams = array.array("i")
    head, more, *_ = asking.recvmsg(8, socket.CMSG_LEN(3 * streams.itemsize))
    for _, _, data in more:
        streams.frombytes(data)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += asking.recv(size - len(text))
    words, environment, folder = json.loads(text)
    return words, environment, folder, list(streams)


def _pass_on(asking: Any, job: int, events: selectors.BaseSelector) -> None:
    """A signal that the stand-in got; its end is that of the job."""
    numbers = asking.recv(16) or bytes([signal.SIGKILL])
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job, number)
    if numbers[-1] == signal.SIGKILL:
        events.unregister(asking)


def _become(environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """A process as if it had been started with these."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True) for number in (1, 2))
    random.seed()


def _run(given: list[str]) -> int:
    from musubi_backend.__main__ import main

    sys.argv = ["musubi_backend", *given]
    try:
        return main(given)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _end(code: int) -> None:
    """As the interpreter ends, but for taking apart all that the server has imported, whose memory would be copied for it."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _prepare()
    given = _serve(sys.argv[1])
    if given is not None:
        _end(_run(given))
