"""The machines of a training meet before their launchers start: what a launcher would wait for without a word is said here.

    python meeting.py MACHINES RANK ADDRESS PORT PROCESSES -m accelerate.commands.launch [WORDS...]

The main machine listens on the port that its launcher takes afterwards. The others tell it what they were given, in one line of JSON; what
does not go together ends all of them. Standard library only: it also runs in musubi-tuner's python.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

WITHIN = 900.0
"""Seconds for all to come, as long as the launchers themselves would wait: somebody has to walk to the other machine."""

ANSWER = 10.0
"""Seconds for a word from a program at the other end; ours says it at once."""

AGAIN = 0.5
"""Seconds between two tries to reach the main machine, and two looks at who is there."""

_LONGEST = 4096  # bytes of a line
HERE, GO, WRONG = "here", "go", "wrong"


class Wrong(Exception):
    """These machines cannot train together; in the names of the trainer's widgets."""


@dataclass(frozen=True)
class Given:
    """What the trainer node of a machine was given. processes: on each machine."""

    machines: int
    rank: int
    processes: int


def as_main(given: Given, address: str, port: int, within: float = WITHIN) -> None:
    """Returns when all others are there. Wrong where they do not come, or do not fit."""
    _only_ours(address)
    until, there = time.monotonic() + within, dict[int, tuple[socket.socket, str]]()
    with contextlib.ExitStack() as open_lines:
        door = open_lines.enter_context(_listening(port))
        while len(there) < given.machines - 1:
            if time.monotonic() > until:
                missing = ", ".join(str(rank) for rank in range(1, given.machines) if rank not in there)
                _end(there, f"of {given.machines} machines, those with machine_rank {missing} did not come to the main one for "
                     f"{within / 60:.0f} minutes: is the training started there, with the same main_process_ip and main_process_port, "
                     "and does the firewall here let them in?")  # fmt: skip
            ready = select.select([door, *(line for line, _ in there.values())], [], [], AGAIN)[0]
            for rank in [rank for rank, (line, _) in there.items() if line in ready]:
                del there[rank]  # it has nothing to say, so it is gone
            if door in ready:
                line, (host, *_) = door.accept()
                open_lines.enter_context(line)
                if other := _introduced(line):
                    if problem := _difference(given, other, host, there):
                        there[-1] = (line, host)
                        _end(there, problem)
                    there[other.rank] = (line, host)
                    _say(line, HERE)
        for line, _ in there.values():
            _say(line, GO)


def as_other(given: Given, address: str, port: int, within: float = WITHIN) -> None:
    """Returns when the main one says that all are there. Wrong where it does not answer, or says that they do not fit."""
    until, why = time.monotonic() + within, ""
    while time.monotonic() < until:
        try:
            line = socket.create_connection((address, port), timeout=ANSWER)
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(AGAIN)
            continue
        with line:
            words = _lines(line)
            line.settimeout(ANSWER)
            _say(line, HERE, **asdict(given))
            if not (first := next(words, None)):
                raise Wrong(
                    f"main_process_port: at {address}:{port} another program answers than a training that waits for this machine: does one "
                    "run there already? Let it end, or set another port on all machines"
                )
            line.settimeout(max(1.0, until - time.monotonic()))
            for word in (first, *words):
                if word.get("word") == WRONG:
                    raise Wrong(str(word.get("text")))
                if word.get("word") == GO:
                    return
        why = "it was there, and is gone"
        time.sleep(AGAIN)
    raise Wrong(
        f"main_process_ip: the main machine at {address}:{port} was not reached for {within / 60:.0f} minutes ({why}): is the training "
        "started there, with machine_rank 0, and does its firewall let this machine in?"
    )


def resolve(address: str) -> list[Any]:
    """Wrong for a name that nothing here knows."""
    try:
        return socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Wrong(f"main_process_ip: no machine called {address} is known in this network: enter its address, as 192.168.1.20") from None


def _only_ours(address: str) -> None:
    """The main machine listens here, so the address must be one of this machine."""
    for family, kind, _, _, place in resolve(address):
        with contextlib.suppress(OSError), socket.socket(family, kind) as here:
            here.bind(place)
            return
    raise Wrong(
        f"main_process_ip: {address} is no address of this machine, which is the main one (machine_rank 0). On the others set machine_rank "
        "from 1 on; on all, main_process_ip to the address of the main one"
    )


def _listening(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise Wrong(
            f"main_process_port: {port} cannot be used on this machine ({error.strerror}): another program has it, or another training. "
            "Let that end, or set another port on all machines"
        ) from None


def _introduced(line: socket.socket) -> Given | None:
    """What the other machine was given; None where it is none."""
    line.settimeout(ANSWER)
    word = next(_lines(line), {})
    try:
        other = Given(*(int(word[name]) for name in ("machines", "rank", "processes")))
    except (KeyError, TypeError, ValueError):
        return None
    return other if other.rank > 0 else None


def _difference(given: Given, other: Given, host: str, there: dict[int, tuple[socket.socket, str]]) -> str:
    for name in ("machines", "processes"):
        ours, theirs = getattr(given, name), getattr(other, name)
        if ours != theirs:
            return f"{name} is {ours} on the main machine and {theirs} on the one at {host}: set the same number on all"
    if other.rank in there:
        return (
            f"machine_rank {other.rank} is that of two machines, at {there[other.rank][1]} and at {host}: give each its own, from 1 to "
            f"{given.machines - 1}"
        )
    return ""


def _end(there: dict[int, tuple[socket.socket, str]], problem: str) -> NoReturn:
    for line, _ in there.values():
        _say(line, WRONG, text=problem)
    raise Wrong(problem)


def _say(line: socket.socket, word: str, **more: Any) -> None:
    with contextlib.suppress(OSError):  # who is gone hears nothing, and its launcher tells
        line.sendall(json.dumps({"word": word, **more}).encode() + b"\n")


def _lines(line: socket.socket) -> Iterator[dict[str, Any]]:
    """What the other end says, until it ends, is silent for too long, or speaks another language."""
    with contextlib.suppress(OSError, ValueError), line.makefile("rb") as words:
        while text := words.readline(_LONGEST):
            word = json.loads(text)
            if not isinstance(word, dict):
                return
            yield word


def main() -> int:
    machines, rank, address, port, processes = sys.argv[1:6]
    given, place = Given(int(machines), int(rank), int(processes)), (address, int(port))
    print(f"machine {rank} of {machines} waits for the others, at {address}:{port}", flush=True)
    try:
        resolve(address)
        as_other(given, *place) if given.rank else as_main(given, *place)
    except Wrong as wrong:
        print(f"ERROR: {wrong}", file=sys.stderr, flush=True)
        return 1
    module = sys.argv[7]  # behind -m
    sys.argv = [module, *sys.argv[8:]]
    del sys.path[0]  # this folder, whose names are none of theirs
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
