"""Dataset Viewer: what a page holds, and captions that are read and saved over HTTP, by our own page and nowhere else."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Fetch = Callable[..., Any]


class DiskHost:
    """A host on real folders."""

    def __init__(self, root: Path, python: str) -> None:
        self.warnings: list[str] = []
        self.home, self.input_dir, self.output_dir, self.temp_dir = (root / name for name in ("home", "input", "output", "temp"))
        self.warnings: list[str] = []
        for folder in (self.home, self.input_dir, self.output_dir, self.temp_dir):
            folder.mkdir()
        settings = {"interpreter": python, "engine": "builtin"}
        (self.home / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    def allowed_roots(self) -> list[Path]:
        return [self.home, self.input_dir, self.output_dir, self.temp_dir]

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        pass

    def check_interrupted(self) -> None:
        pass

    def begins(self, job: str) -> None:
        pass

    def frames(self, path: Path) -> str:
        return str(path)


@pytest.fixture
def host(tmp_path: Path, backend_python: str) -> DiskHost:
    """Two photographs and a list of two more in the input folder."""
    from skimage import data

    host = DiskHost(tmp_path, backend_python)
    for folder in ("images", "listed"):
        (host.input_dir / folder).mkdir()
        for name in ("coffee", "rocket"):
            Image.fromarray(getattr(data, name)()).resize((160, 96)).save(host.input_dir / folder / f"{name}.png")
    for name in ("coffee", "rocket"):
        (host.input_dir / "images" / f"{name}.txt").write_text(f"a {name} \N{HOT BEVERAGE}\n", encoding="utf-8")
    (host.input_dir / "images" / "lonely.png").write_bytes((host.input_dir / "images" / "rocket.png").read_bytes())
    records = [
        {"image_path": str(host.input_dir / "listed" / f"{name}.png"), "caption": f"listed {name}", "extra": 1}
        for name in ("coffee", "rocket")
    ]
    lines = [json.dumps(record) for record in records]
    (host.input_dir / "list.jsonl").write_text("\n".join([lines[0], "", lines[1]]) + "\n", encoding="utf-8")
    return host


@pytest.fixture
def view(host: DiskHost, part: Any) -> Callable[..., Any]:
    """Runs Dataset Viewer on both datasets; returns (result, the id of the page)."""

    def run(**changes: Any) -> tuple[Any, str]:
        folder = host.home / "datasets" / "d"
        folder.mkdir(parents=True, exist_ok=True)
        tables = [
            {"image_directory": (host.input_dir / "images").as_posix(), "caption_extension": changes.pop("extension", ".txt")},
            {"image_jsonl_file": (host.input_dir / "list.jsonl").as_posix()},
        ]
        for number, table in enumerate(tables):
            table |= {"resolution": [96, 64], "cache_directory": (folder / f"cache {number}").as_posix()}
        toml = folder / "dataset.toml"
        toml.write_text(part("nodes.toml_text").dataset_file(tables), encoding="utf-8")
        node = part("nodes.viewer").DatasetViewer()
        values = part("nodes.checks").prepared(node, host, {"dataset": {"toml": str(toml), "datasets": tables}, **changes})
        result = asyncio.run(node.run(host, **values))
        return result, result.page_data["musubi_dataset_view"][0]["id"]

    return run


@pytest.fixture
def fetch(host: DiskHost, part: Any) -> Fetch:
    """Sends one request to the routes on a real aiohttp server; returns (status, answer)."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    def send(method: str, path: str, **options: Any) -> tuple[int, Any]:
        async def request() -> tuple[int, Any]:
            routes = web.RouteTableDef()
            part("nodes.routes").add_routes(routes, lambda: host)
            app = web.Application()
            app.add_routes(routes)
            async with TestClient(TestServer(app)) as client, client.request(method, path, **options) as answer:
                return answer.status, await answer.json()

        work: Coroutine[Any, Any, tuple[int, Any]] = request()
        return asyncio.run(work)

    return send


def save(fetch: Fetch, view_id: str, number: int, before: str, caption: Any, **headers: str) -> tuple[int, Any]:
    values = {"view": view_id, "number": number, "before": before, "caption": caption}
    return fetch("POST", "/musubi_tuner/caption", json=values, headers=headers)  # type: ignore[no-any-return]


def test_a_page_shows_items_buckets_and_what_is_left_out(view: Callable[..., Any], fetch: Fetch) -> None:
    result, view_id = view()
    sheet = Image.open(result.values[0])
    assert sheet.width > 600 and len(sheet.getcolors(2**24) or []) > 1000, "the photographs are on it"
    assert "1  coffee.png: 160x96 to 96x64" in result.values[1] and "NOT USABLE: no caption: lonely.txt is missing" in result.values[1]
    assert result.text == "page 1 of 1, 4 items, 1 not usable"
    status, page = fetch("GET", f"/musubi_tuner/dataset_view/{view_id}")
    assert status == 200
    assert [(item["number"], item["name"], item["caption"]) for item in page["items"]] == [
        (1, "coffee.png", "a coffee \N{HOT BEVERAGE}"),
        (2, "rocket.png", "a rocket \N{HOT BEVERAGE}"),
        (3, "lonely.png", ""),
        (4, "coffee.png", "listed coffee"),
        (5, "rocket.png", "listed rocket"),
    ]
    assert [item["problem"] for item in page["items"]] == ["", "", "no caption: lonely.txt is missing", "", ""]
    assert "input" not in json.dumps(page), "no paths reach the page"


def test_pages_follow_each_other(view: Callable[..., Any], part: Any) -> None:
    result, _ = view(items_per_page=3, page=2)
    assert "page 2 of 2, 4 items" in result.text and "5  rocket.png" in result.values[1]
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="the last one is 2, with 3 items on each"):
        view(items_per_page=3, page=3)


def test_clips_show_the_frames_that_are_trained(host: DiskHost, part: Any, tmp_path: Path) -> None:
    from musubi_backend.__main__ import main
    from musubi_backend.demo.clips import write_clips

    write_clips(host.input_dir / "clips", count=1, frames=21)
    table = {"video_directory": (host.input_dir / "clips").as_posix(), "caption_extension": ".txt", "resolution": [64, 64],
             "cache_directory": (tmp_path / "cache").as_posix(), "target_frames": [9, 45], "frame_extraction": "chunk"}  # fmt: skip
    (tmp_path / "d.toml").write_text(part("nodes.toml_text").dataset_file([table]), encoding="utf-8")
    output = ["--output", str(tmp_path / "sheet.png"), "--report", str(tmp_path / "report.json")]
    assert main(["view_dataset", "--dataset_config", str(tmp_path / "d.toml"), *output]) == 0
    (item,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["items"]
    assert item["windows"] == [[0, 9], [9, 9]] and item["frames"] == 21 and item["too_short_for"] == [45]
    left, top, width, height = item["box"]
    shown = Image.open(tmp_path / "sheet.png").crop((left, top, left + width, top + height))
    thirds = [shown.crop((number * width // 3, 40, (number + 1) * width // 3, height - 40)) for number in range(3)]
    assert len({third.tobytes() for third in thirds}) == 3, "first, middle and last frame of a moving camera"


def test_a_caption_is_saved_in_its_text_file(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    assert save(fetch, view_id, 1, "a coffee \N{HOT BEVERAGE}", "  a red cup, \u65e5\u672c\n") == (
        200,
        {"caption": "a red cup, \u65e5\u672c"},
    )
    assert (host.input_dir / "images" / "coffee.txt").read_text(encoding="utf-8") == "a red cup, \u65e5\u672c"
    assert fetch("GET", f"/musubi_tuner/dataset_view/{view_id}")[1]["items"][0]["caption"] == "a red cup, \u65e5\u672c"
    assert "a red cup" in view()[0].values[1]


def test_a_caption_is_saved_in_its_line_and_the_others_stay(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    file = host.input_dir / "list.jsonl"
    before = file.read_text(encoding="utf-8").split("\n")
    assert save(fetch, view_id, 5, "listed rocket", "a rocket\nat night")[0] == 200
    after = file.read_text(encoding="utf-8").split("\n")
    assert after[:2] == before[:2] and after[3:] == before[3:]
    assert json.loads(after[2]) == {**json.loads(before[2]), "caption": "a rocket\nat night"}


def test_an_image_without_a_caption_is_given_one(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    assert save(fetch, view_id, 3, "", "a lonely rocket") == (200, {"caption": "a lonely rocket"})
    assert (host.input_dir / "images" / "lonely.txt").read_text(encoding="utf-8") == "a lonely rocket"
    assert view()[0].text == "page 1 of 1, 5 items"


def test_what_changed_in_the_meantime_is_not_overwritten(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    (host.input_dir / "images" / "coffee.txt").write_text("mine", encoding="utf-8")
    status, answer = save(fetch, view_id, 1, "a coffee \N{HOT BEVERAGE}", "yours")
    assert status == 409 and answer["current"] == "mine"
    assert (host.input_dir / "images" / "coffee.txt").read_text(encoding="utf-8") == "mine"


def test_other_sites_are_rejected(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Origin": "null"},
    ):
        assert save(fetch, view_id, 1, "a coffee \N{HOT BEVERAGE}", "theirs", **headers)[0] == 403, headers
    assert "theirs" not in (host.input_dir / "images" / "coffee.txt").read_text(encoding="utf-8")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"view": "../../config"}, "not the id"),
    ({"view": "0123456789abcdef"}, "run Dataset Viewer again"),
    ({"view": 3}, "not the id"),
    ({"number": 99}, "no item 99"),
    ({"number": True}, "needs the view's id"),
    ({"number": "1"}, "needs the view's id"),
    ({"caption": None}, "needs the view's id"),
    ({"caption": "x" * 20_001}, "at most 20000 characters"),
    ({"caption": "a\0b"}, "at most 20000 characters"),
]


def test_wrong_requests_are_reported_and_change_nothing(view: Callable[..., Any], fetch: Fetch, host: DiskHost) -> None:
    _, view_id = view()
    for values, message in WRONG:
        request = {"view": view_id, "number": 1, "before": "a coffee \N{HOT BEVERAGE}", "caption": "new", **values}
        status, answer = fetch("POST", "/musubi_tuner/caption", json=request)
        assert status == 400 and message in answer["error"], values
    assert (host.input_dir / "images" / "coffee.txt").read_text(encoding="utf-8").startswith("a coffee")


@pytest.mark.parametrize("body", ["not json", "[1]", ""])
def test_what_is_no_object_is_rejected(body: str, fetch: Fetch) -> None:
    status, answer = fetch("POST", "/musubi_tuner/caption", data=body, headers={"Content-Type": "application/json"})
    assert status == 400 and "not " in answer["error"]


def test_files_outside_the_roots_and_other_kinds_of_files_stay_untouched(
    view: Callable[..., Any], fetch: Fetch, host: DiskHost, tmp_path: Path
) -> None:
    """A folder that is replaced by a link to elsewhere after it was looked at; and captions in files that do not end like captions."""
    _, view_id = view()
    elsewhere = tmp_path / "elsewhere"
    shutil.move(host.input_dir / "images", elsewhere)
    (host.input_dir / "images").symlink_to(elsewhere, target_is_directory=True)
    status, answer = save(fetch, view_id, 1, "a coffee \N{HOT BEVERAGE}", "new")
    assert status == 400 and "outside the folders" in answer["error"]
    assert (elsewhere / "coffee.txt").read_text(encoding="utf-8").startswith("a coffee")
    (host.input_dir / "images").unlink()
    shutil.move(elsewhere, host.input_dir / "images")
    for name in ("coffee", "rocket"):
        (host.input_dir / "images" / f"{name}.py").write_text("print()", encoding="utf-8")
    _, view_id = view(extension=".py", page=1, items_per_page=5)
    status, answer = save(fetch, view_id, 1, "print()", "import os")
    assert status == 400 and "does not end like a caption" in answer["error"]
    page = fetch("GET", f"/musubi_tuner/dataset_view/{view_id}")[1]
    assert "does not end like a caption" in page["items"][0]["locked"] and page["items"][4]["locked"] == ""


def test_a_dataset_file_outside_the_roots_is_rejected(host: DiskHost, part: Any, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text("", encoding="utf-8")
    node = part("nodes.viewer").DatasetViewer()
    values = part("nodes.checks").prepared(node, host, {"dataset": {"toml": str(tmp_path / "d.toml"), "datasets": []}})
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="outside the folders"):
        asyncio.run(node.run(host, **values))
