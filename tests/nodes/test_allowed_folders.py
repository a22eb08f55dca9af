"""The folders that workflows may use are changed in ComfyUI's page: by JSON from there, and by nothing else."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROUTE = "/musubi_tuner/allowed_folders"
PAGE = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "clips").mkdir()
    settings = {"interpreter": "/venv/python", "engine": "builtin", "allowed_roots": []}
    (tmp_path / "home" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path / "home"


@pytest.fixture
def send(home: Path, part: Any) -> Callable[..., tuple[int, Any]]:
    """Sends one request to the routes on a real server; returns (status, answer)."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    def send(method: str, path: str = ROUTE, **options: Any) -> tuple[int, Any]:
        async def request() -> tuple[int, Any]:
            routes = web.RouteTableDef()
            part("nodes.routes").add_routes(
                routes, lambda: SimpleNamespace(home=home, allowed_roots=lambda: [home, *map(Path, saved(home)["allowed_roots"])])
            )
            app = web.Application()
            app.add_routes(routes)
            async with TestClient(TestServer(app)) as client, client.request(method, path, **options) as answer:
                return answer.status, await answer.json()

        return asyncio.run(request())

    return send


def test_the_page_shows_the_commands_of_the_installer(home: Path, send: Any, part: Any) -> None:
    command = f'"{sys.executable}" "{part("nodes.jobs.config").PACK_ROOT / "install.py"}"'
    expected = {"home": str(home), "engine": "builtin", "installed": False, "command": command, "other_engine": None}
    assert send("GET", "/musubi_tuner/backend") == (200, expected)
    musubi = {"path": "/musubi", "python": "/musubi/python"}
    (home / "config.json").write_text(json.dumps({**saved(home), "interpreter": sys.executable, "musubi_tuner": musubi}), encoding="utf-8")
    expected |= {"installed": True, "other_engine": f"{command} --engine musubi-tuner"}
    assert send("GET", "/musubi_tuner/backend") == (200, expected)


def saved(home: Path) -> Any:
    return json.loads((home / "config.json").read_text(encoding="utf-8"))


def test_the_page_reads_and_changes_them_and_nothing_else_in_the_file(home: Path, send: Any) -> None:
    clips = home.parent / "clips"
    assert send("GET") == (200, {"folders": [], "own": [str(home)]})
    assert send("POST", json={"folders": [f" {clips} ", "", str(clips)]}, headers=PAGE) == (200, {"folders": [str(clips)]})
    assert saved(home) == {"interpreter": "/venv/python", "engine": "builtin", "allowed_roots": [str(clips)]}
    assert send("GET") == (200, {"folders": [str(clips)], "own": [str(home)]})
    clips.rmdir()  # a disk that is away: what was allowed stays allowed
    assert send("POST", json={"folders": [str(clips)]}, headers=PAGE)[0] == 200
    assert send("POST", json={"folders": []}, headers=PAGE) == (200, {"folders": []})


def test_a_folder_is_stored_as_it_really_is_and_nothing_is_written_where_nothing_changed(home: Path, send: Any) -> None:
    clips, link = home.parent / "clips", home.parent / "link"
    link.symlink_to(clips, target_is_directory=True)
    assert send("POST", json={"folders": [str(link)]}, headers=PAGE) == (200, {"folders": [str(clips)]})
    before = (home / "config.json").stat().st_ino
    assert send("POST", json={"folders": [str(clips)]}, headers=PAGE)[0] == 200
    assert (home / "config.json").stat().st_ino == before


@pytest.mark.parametrize(
    "folders",
    [
        ["/"], [str(Path.home())], ["tests"], ["/no/such/folder"], ["clips"], "clips", [3], None, ["/tmp\0"],
        ["~nobody-of-this-name/clips"], ["/" + "a" * 300], ["/" + "a/" * 5000],
    ],
)  # fmt: skip
def test_what_is_no_folder_or_would_open_everything_is_rejected(home: Path, send: Any, folders: Any) -> None:
    assert send("POST", json={"folders": folders}, headers=PAGE)[0] == 400
    assert saved(home)["allowed_roots"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},  # no page at all: a script, or a node of a workflow
        {**PAGE, "Sec-Fetch-Site": "none"},
        {**PAGE, "Sec-Fetch-Site": "cross-site"},
        {**PAGE, "Content-Type": "text/plain"},
        {**PAGE, "Host": "evil.example:8188", "Origin": "http://evil.example:8188"},
        {**PAGE, "Host": "evil.example"},
    ],
)
def test_other_senders_are_rejected(home: Path, send: Any, headers: dict[str, str]) -> None:
    body = json.dumps({"folders": [str(home.parent / "clips")]})
    assert send("POST", data=body, headers=headers)[0] == 403
    assert saved(home)["allowed_roots"] == []


@pytest.mark.parametrize("host", ["localhost:8188", "127.0.0.1", "192.168.1.7:8188", "[::1]:8188"])
def test_addresses_of_this_machine_and_names_shown_by_https_are_taken(send: Any, host: str) -> None:
    assert send("POST", json={"folders": []}, headers={**PAGE, "Host": host})[0] == 200
    proxied = {**PAGE, "Host": "pod-8188.proxy.example", "Origin": "https://pod-8188.proxy.example"}
    assert send("POST", json={"folders": []}, headers=proxied)[0] == 200


@pytest.mark.parametrize("path", [ROUTE, "/musubi_tuner/caption"])
def test_a_body_that_does_not_say_how_long_it_is_has_the_same_limit(send: Any, path: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 1
            yield b" " * 10_000
            await asyncio.sleep(0)

    status, answer = send("POST", path, data=endless(), headers=PAGE)
    assert (status, answer) == (400, {"error": "this is too long"})


@pytest.mark.parametrize("body", ["[" * 100_000, "{", b"\xff\xfe", "3"])
def test_damaged_json_is_reported(send: Any, body: Any) -> None:
    status, answer = send("POST", data=body, headers=PAGE)
    assert status == 400 and "JSON" in answer["error"]


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_a_body_that_is_not_packed_as_it_says_is_no_fault_of_the_server(home: Path, send: Any, packed: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"not packed at all"

    status, answer = send("POST", data=body(), headers={**PAGE, "Content-Encoding": packed})
    assert status == 400 and answer["error"].startswith("this did not arrive as it was sent: ")


def test_whoever_leaves_before_all_was_sent_leaves_nothing_in_the_log(part: Any) -> None:
    async def gone() -> AsyncIterator[bytes]:
        yield b'{"folders'
        raise ConnectionResetError("Connection lost")

    request = SimpleNamespace(content=SimpleNamespace(iter_any=gone))
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="did not arrive"):
        asyncio.run(part("nodes.answers").json_of(request))
