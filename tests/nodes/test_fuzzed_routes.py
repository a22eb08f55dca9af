"""Five hundred odd requests to the routes: every one is answered in JSON with a status that fits, and nothing but a caption is written."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

BODIES = [
    b"",
    b"null",
    b"[]",
    b"{",
    b'"x"',
    b"[" * 50_000,
    b'{"a":' * 30_000,
    b"9" * 9000,
    b"\xff\xfe{",
    b'{"view": "\\ud800"}',
    b"1e999",
    b"NaN",
]
NAMES = ["Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Referer", "X-Forwarded-Host", "Content-Encoding"]
WORDS = [
    "localhost", "127.0.0.1:8188", "[::1]:8188", "[::1", "]", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0x7f.1",
    "http://[", "https://evil.example", "null", "file://", "same-origin", "none", "cross-site", "application/json", 'APPLICATION/JSON; x="',
    "text/plain", "multipart/form-data", "", ":", "//", "a" * 3000, "http://localhost:99999999", "é", "localhost:", ".", "@localhost",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 10**18, 1.5, "", "x", "0" * 16, "../" * 9, "a" * 25_000, [], {}, [[]], "\x00", "con", "‮abc", "\x1b[2J", "漢" * 200,
    ["/"], ["../.."], ["\x00"], [{}], ["C:\\"],
]  # fmt: skip


READ = ["GET /musubi_tuner/dataset_view/{id}", "GET /musubi_tuner/captions/{folder}"]


class Content:
    """A body that comes in pieces and does not say how long it is."""

    def __init__(self, body: bytes, pieces: int) -> None:
        self.body, self.size = body, max(1, len(body) // pieces)

    async def iter_any(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.body), self.size):
            yield self.body[at : at + self.size]


@pytest.fixture
def caption(tmp_path: Path) -> Path:
    path = tmp_path / "input" / "a.txt"
    path.parent.mkdir()
    path.write_text("before")
    path.with_suffix(".png").touch()
    return path


@pytest.fixture
def handlers(part: Any, tmp_path: Path, caption: Path) -> dict[str, Callable[..., Any]]:
    """The handlers by name, with one page that holds one caption."""
    web = pytest.importorskip("aiohttp.web")
    home = tmp_path / "home"
    view = part("nodes.views").path(home, "0" * 16)
    view.parent.mkdir(parents=True)
    item: dict[str, Any] = {"number": 1, "name": "a.png", "box": [0, 0, 1, 1], "problem": "", "caption": "before"}
    item |= {"path": str(caption.with_suffix(".png")), "caption_place": {"file": str(caption), "key": ""}}
    view.write_text(json.dumps({"page": 1, "pages": 1, "sheet": {}, "items": [item]}))
    (home / "config.json").write_text(json.dumps({"interpreter": "/python", "engine": "builtin", "allowed_roots": []}))
    routes = web.RouteTableDef()
    part("nodes.routes").add_routes(routes, lambda: SimpleNamespace(home=home, input_dir=tmp_path, allowed_roots=lambda: [caption.parent]))
    return {f"{route.method} {route.path}": route.handler for route in routes}


def requests(source: random.Random) -> Iterator[tuple[str, Any]]:
    good = {"Host": "localhost:8188", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    body = {"view": "0" * 16, "number": 1, "before": "before", "caption": "after", "folders": []}
    for number in range(600):
        headers = {**good, **{source.choice(NAMES): source.choice(WORDS) for _ in range(source.randrange(3))}}
        odd = {**body, **{source.choice(list(body)): source.choice(VALUES) for _ in range(source.randrange(1, 3))}}
        sent = source.choice(BODIES) if number % 4 == 0 else json.dumps(odd).encode("utf-8", "surrogatepass")
        view = source.choice([*(str(value) for value in VALUES), "0" * 16])
        content = Content(sent, source.choice([1, 7, 1000]))
        route = source.choice([*READ, "POST /musubi_tuner/caption", "POST /musubi_tuner/allowed_folders"])
        yield route, SimpleNamespace(headers=headers, host=headers["Host"], content=content, match_info={"id": view, "folder": view})


def test_every_request_is_answered(handlers: dict[str, Any], caption: Path, tmp_path: Path) -> None:
    source, seen = random.Random(37), dict.fromkeys((200, 400, 403, 409), 0)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    for route, request in requests(source):
        answer = asyncio.run(handlers[route](request))
        assert answer.status in seen, (route, request.headers)
        seen[answer.status] += 1
        reported = json.loads(answer.body)
        assert ("error" in reported) == (answer.status != 200)
        host, origin = request.host, request.headers.get("Origin")
        if answer.status == 200 and route.startswith("POST"):
            named = urlsplit(f"//{host}").hostname or ""
            assert named.rstrip(".") in ("localhost", "127.0.0.1", "::1") or str(origin).startswith("https")
            assert "evil" not in host or str(origin).startswith("https")
            caption.write_text("before")
    assert min(seen.values()) > 0, seen
    lock = tmp_path / "home" / "config.lock"  # of the settings, which a good request among them changes
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - {lock} == files


@pytest.mark.parametrize("text", ["", "{", "[]", "\ud800", '{"items": 3}', '{"items": [{}]}', "[" * 10**5])
def test_a_damaged_page_is_said(text: str, handlers: dict[str, Any], tmp_path: Path) -> None:
    (view,) = (tmp_path / "home" / "datasets" / "views").iterdir()
    view.write_bytes(text.encode("utf-8", "surrogatepass"))
    answer = asyncio.run(handlers["GET /musubi_tuner/dataset_view/{id}"](SimpleNamespace(match_info={"id": "0" * 16})))
    assert answer.status == 400
    assert "run Dataset Viewer again" in json.loads(answer.body)["error"]


def test_captions_of_a_folder_are_named_and_none_of_others(handlers: dict[str, Any], caption: Path, tmp_path: Path) -> None:
    (tmp_path / "away").symlink_to("/", target_is_directory=True)
    (tmp_path / "home" / "secret.txt").touch()
    for folder, wanted in {"input": ["a.txt"], "home": [], "away": [], "none": [], "..": None, "input/..": None, "\ud800": None}.items():
        request = SimpleNamespace(match_info={"folder": folder})
        answer = asyncio.run(handlers["GET /musubi_tuner/captions/{folder}"](request))
        assert (answer.status, json.loads(answer.body).get("names")) == (400 if wanted is None else 200, wanted), folder


def test_a_caption_that_cannot_be_written_is_the_servers_fault(
    handlers: dict[str, Any], part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(part("nodes.views"), "save_caption", full)
    headers = {"Host": "localhost", "Content-Type": "application/json"}
    answer = asyncio.run(
        handlers["POST /musubi_tuner/caption"](SimpleNamespace(headers=headers, host="localhost", content=Content(b"{}", 1)))
    )
    assert (answer.status, json.loads(answer.body)["error"]) == (500, "the caption was not saved: there is no space left on the disk")


def test_all_routes_are_ours_and_none_changes_anything_for_another_site(part: Any, tmp_path: Path) -> None:
    web = pytest.importorskip("aiohttp.web")
    routes = web.RouteTableDef()
    host = SimpleNamespace(home=tmp_path, allowed_roots=lambda: [tmp_path])
    for module in ("nodes.routes", "nodes.monitor.routes"):
        part(module).add_routes(routes, lambda: host)
    assert {route.path.split("/")[1] for route in routes} == {"musubi_tuner"} and {route.method for route in routes} == {"GET", "POST"}
    body = Content(b"{}", 1)
    strange = {
        "Host": "localhost:8188",
        "Content-Type": "application/json",
        "Origin": "https://evil.example",
        "Sec-Fetch-Site": "cross-site",
    }
    for route in routes:
        if route.method == "POST":
            request = SimpleNamespace(headers=strange, host=strange["Host"], content=body, match_info={"id": "x"}, query={})
            assert asyncio.run(route.handler(request)).status == 403, route.path
    assert not list(tmp_path.iterdir())
