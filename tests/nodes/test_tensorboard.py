"""TensorBoard: the real one, once for each folder, on the loopback address only, for folders that may be read, until it is stopped."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import psutil
import pytest


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable, "engine": "builtin"}))
    return part("headless.terminal").TerminalHost(home, screen=part("headless.terminal").Screen(io.StringIO()))


def values(part: Any, host: Any, **inputs: Any) -> tuple[Any, dict[str, Any]]:
    node = part("nodes.tensorboard").TensorBoard()
    return node, part("nodes.checks").prepared(node, host, inputs)


def test_one_for_each_folder_on_this_machine_only_until_it_is_stopped(part: Any, host: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    run = host.home / "runs" / "cat-1"
    writer = EventFileWriter(str(run / "logs" / "20261127"))
    writer.add_event(Event(step=1, summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.5)])))
    writer.close()
    node, inputs = values(part, host, training="cat")

    async def both() -> Any:
        return await asyncio.gather(node.run(host, **inputs), node.run(host, **{**inputs, "job": {"run": str(run)}}))

    before = node.fingerprint(host)
    first, second = asyncio.run(both())
    address = first.values[0]
    server = asyncio.run(part("nodes.tensorboard").server_of(host.home, run, lambda text: None))
    assert server.progress.address == address, "the tab asks for the same"
    assert first.page_data == {"musubi_job": [{"id": server.folder.id}]}, "so that the page finds it again after a reload"
    assert second.values[0] == address and first.line == address
    [job] = part("nodes.tensorboard")._servers.values()
    process = psutil.Process(job.pid)
    try:
        assert {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert urlparse(address).hostname == "127.0.0.1"
        with urllib.request.urlopen(f"{address}data/runs", timeout=60) as answer:  # noqa: S310
            assert json.loads(answer.read()) == ["logs/20261127"]
        assert node.fingerprint(host) != before
    finally:
        ended = asyncio.run(node.run(host, **{**inputs, "action": "stop"}))
    assert ended.values == ("",) and "was stopped" in ended.text
    assert not process.is_running() and job.stopped, "it was asked, and ended by itself"
    assert node.fingerprint(host) == before
    assert "no TensorBoard" in asyncio.run(node.run(host, **{**inputs, "action": "stop"})).text


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"folder": "/etc"}, "outside the folders"),
        ({"folder": "../.."}, "outside the folders"),
        ({"folder": "runs/nothing"}, "does not exist"),
        ({"folder": "config.json"}, "is no folder"),
        ({"training": "dog"}, "there is no training 'dog'"),
        ({}, "there is no training yet"),
        ({"job": {"run": "/etc"}}, "outside the folders"),
    ],
)
def test_folders_that_may_not_be_read_or_are_not_there(part: Any, host: Any, inputs: dict[str, Any], said: str) -> None:
    node = part("nodes.tensorboard").TensorBoard()
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=said):
        asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, inputs)))
    assert not (host.home / "jobs").exists(), "nothing was started"


def test_what_cannot_start_says_why_and_leaves_nothing(part: Any, host: Any) -> None:
    (host.home / "runs").mkdir()
    program = host.home / "python"
    program.write_text(f"#!{sys.executable} -IS\nraise SystemExit('ERROR: no TensorBoard here')\n")
    program.chmod(0o755)
    (host.home / "config.json").write_text(json.dumps({"interpreter": str(program)}))
    node, inputs = values(part, host)
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="did not start: no TensorBoard here"):
        asyncio.run(node.run(host, **inputs))
    assert node.fingerprint(host) == ""
