"""Machines meet before their launchers start: each is a process of its own, on the loopback addresses of this one."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MEETING = Path(__file__).resolve().parents[2] / "nodes/jobs/meeting.py"
HERE = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.create_server((HERE, 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts a machine. In place of the launcher a module says what it was given."""
    (tmp_path / "launcher.py").write_text("import sys\nprint('launched', *sys.argv[1:])\n", encoding="utf-8")
    running: list[subprocess.Popen[str]] = []

    def machine(machines: int, rank: int, address: str, port: int, processes: int = 1, within: float = 60) -> subprocess.Popen[str]:
        script = f"import sys, runpy\nsys.argv = {[str(MEETING), str(machines), str(rank), address, str(port), str(processes)]!r}"
        script += "\nsys.argv += ['-m', 'launcher', '--rank', sys.argv[2]]\nsys.path[0] = " + repr(str(MEETING.parent))
        script += f"\nimport meeting\nfor one in (meeting.as_main, meeting.as_other):\n    one.__defaults__ = ({within},)\n"
        script += f"sys.path.insert(1, {str(tmp_path)!r})\nsys.exit(meeting.main())"
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return running[-1]

    yield machine
    for one in running:
        one.kill()
        one.wait()


def end(machine: subprocess.Popen[str]) -> tuple[int, str]:
    said = machine.communicate()[0]
    return machine.returncode, said.strip().splitlines()[-1]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_start_when_all_are_there_in_any_order(start: Any, port: int, order: tuple[int, ...]) -> None:
    machines = {rank: start(3, rank, HERE, port) for rank in order}
    assert {rank: end(one) for rank, one in machines.items()} == {rank: (0, f"launched --rank {rank}") for rank in order}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([(2, 1, 2)], "processes is 1 on the main machine and 2 on the one at .*127.0.0.1: set the same number on all"),
        ([(3, 1, 1)], "machines is 2 on the main machine and 3 on the one at"),
    ],
)
def test_what_differs_ends_all_with_the_same_words(start: Any, port: int, others: list[tuple[int, int, int]], said: str) -> None:
    machines = [start(2, 0, HERE, port)] + [start(count, rank, HERE, port, processes) for count, rank, processes in others]
    for code, last in map(end, machines):
        assert code == 1 and re.search(f"^ERROR: {said}", last), last


def test_a_rank_that_two_machines_have(start: Any, port: int) -> None:
    ended = [end(one) for one in [start(3, 0, HERE, port), start(3, 1, HERE, port), start(3, 1, HERE, port)]]
    assert all(code == 1 and "machine_rank 1 is that of two machines, at " in last for code, last in ended), ended


def test_a_port_that_another_program_has(start: Any) -> None:
    """On the main machine, and as one of the others meets it."""
    with socket.create_server((HERE, 0)) as taken:
        number = taken.getsockname()[1]
        assert re.match(f"ERROR: main_process_port: {number} cannot be used on this machine", end(start(2, 0, HERE, number))[1])
        other = start(2, 1, HERE, number)
        taken.accept()[0].close()
        code, last = end(other)
    assert code == 1 and f"at {HERE}:{number} another program answers" in last


@pytest.mark.parametrize(
    ("rank", "address", "said"),
    [
        (0, "no-such-machine.invalid", "no machine called no-such-machine.invalid is known"),
        (1, "no-such-machine.invalid", "no machine called no-such-machine.invalid is known"),
        (0, "192.0.2.1", "192.0.2.1 is no address of this machine, which is the main one"),
        (1, HERE, "was not reached for 0 minutes (Connection refused): is the training started there"),
    ],
)
def test_an_address_where_no_main_machine_is(start: Any, port: int, rank: int, address: str, said: str) -> None:
    code, last = end(start(2, rank, address, port, within=1))
    assert code == 1 and last.startswith("ERROR: main_process_ip: ") and said in last, last


def test_the_main_one_does_not_wait_for_ever(start: Any, port: int) -> None:
    code, last = end(start(3, 0, HERE, port, within=1))
    assert code == 1 and "of 3 machines, those with machine_rank 1, 2 did not come" in last


def test_who_is_no_machine_or_gone_again_counts_for_nothing(start: Any, port: int) -> None:
    main = start(3, 0, HERE, port)
    no_machines = (b"\x00\xff\n", b"[1]\n", b'{"machines": "many"}\n', b"1" * 9000, b'{"machines": 3, "rank": 0, "processes": 1}\n')
    assert [answer(port, words) for words in no_machines] == [b""] * 5
    assert b"here" in answer(port, b'{"machines": 3, "rank": 1, "processes": 1}\n')
    others = [start(3, rank, HERE, port) for rank in (1, 2)]
    assert [end(one) for one in (main, *others)] == [(0, f"launched --rank {rank}") for rank in range(3)]


def answer(port: int, words: bytes) -> bytes:
    """What the main machine says to them, once it listens; nothing where it is silent for a second."""
    while True:
        try:
            line = socket.create_connection((HERE, port), timeout=1)
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    with line, contextlib.suppress(OSError), line.makefile("rb") as said:
        line.sendall(words)
        return said.readline()
    return b""
