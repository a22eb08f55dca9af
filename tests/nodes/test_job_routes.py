"""What the page gets of jobs and what it may do: through the handlers, on folders as real jobs leave them; and odd requests."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from damaged import with_odd_values
from musubi_backend import events
from musubi_backend.events import line_of

OURS = {"Host": "localhost:8188", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
Ask = Callable[..., Any]


class Content:
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self.body


class Server:
    """The routes over a home with three jobs: one that runs (this process), one that has ended, one that waits."""

    def __init__(self, part: Any, root: Path) -> None:
        web = pytest.importorskip("aiohttp.web")
        self.part, self.home, self.loop = part, root / "home", asyncio.new_event_loop()
        self.home.mkdir()
        (self.home / "config.json").write_text(json.dumps({"interpreter": "/python", "engine": "builtin", "allowed_roots": []}))
        routes = web.RouteTableDef()
        folders = {"loras_dir": lambda: self.home / "loras", "output_dir": self.home, "temp_dir": self.home}
        host = SimpleNamespace(home=self.home, allowed_roots=self.roots, gpus=lambda: ["0", "1"], **folders)
        part("nodes.monitor.routes").add_routes(routes, lambda: host)
        self.handlers = {f"{route.method} {route.path.removeprefix('/musubi_tuner/')}": route.handler for route in routes}
        self.run = self.home / "runs" / "cat-1"
        (self.run / "sample").mkdir(parents=True)
        (self.run / "sample" / "cat_000002_00.mp4").write_bytes(b"video")
        (self.run / "cat.safetensors").write_bytes(b"lora")
        (self.run / "cat-step00000002-state").mkdir()
        (root / "secret.png").write_bytes(b"secret")
        me = psutil.Process()
        reported = [
            events.Start(20, 0, 5, 4),
            *(events.Step(step, 20, 1, step / 10, 0.5, 1e-4, 2.0) for step in range(1, 11)),
            events.Saved(str(self.run / "cat-step00000002-state"), "the state", 2),
            events.Saved(str(self.run / "cat.safetensors"), "the LoRA", 2),
            events.Sample(str(self.run / "sample" / "cat_000002_00.mp4"), 2, "a cat", 0),
            events.Sample(str(root / "secret.png"), 2, "out of the folders", 1),
            events.Output("model", str(self.home / "config.json")),
        ]
        values = {"network_dim": 16, "max_train_steps": 20, "wandb_api_key": "secret", "sample_prompts": "/x"}
        training = {"name": "cat", "run": "cat-1", "endings": [""], "values": values, "results": {"max_train_steps": 20}}
        self.running = self.job("running", reported, {"training": training}, pid=me.pid, created=me.create_time())
        other = {**training, "run": "dog-1", "name": "dog", "lengths": {"max_train_steps": 20}}
        self.ended = self.job(
            "ended", reported[:3], {"training": other, "launch": True}, outcome="failed", error="no memory\nmore", returncode=1
        )
        (self.home / "runs" / "dog-1").mkdir()
        self.waits = self.job("queued", [], {"training": {**training, "run": "bee-1"}, "background": True})
        part("nodes.jobs.queue").add(self.home, self.waits.id)
        self.running.log.write_bytes("eins\nsteps: 1%\rsteps: 2%\nDREI ホ\nsteps: 5%\rsteps: 6%".encode())

    def roots(self) -> list[Path]:
        return [self.home, *self.part("nodes.jobs.config").load(self.home).allowed_roots]

    def job(self, state: str, reported: list[events.Event], task: dict[str, Any], **status: Any) -> Any:
        folder = self.part("nodes.jobs.folder").JobFolder.create(self.home, "wan_train_network")
        folder.write_task({"tool": "wan_train_network", **task})
        folder.write_status(state, **status)
        folder.metrics.write_text("".join(line_of(event, time=1.0, clock=float(at), rank=0) for at, event in enumerate(reported)))
        return folder

    def ask(self, route: str, body: Any = None, headers: dict[str, str] | None = None, query: Any = None, **match: str) -> Any:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
        headers = OURS if headers is None else headers
        request = SimpleNamespace(headers=headers, host=headers.get("Host", ""), content=Content(sent), match_info=match, query=query or {})
        return self.loop.run_until_complete(self.handlers[route](request))

    def get(self, route: str, query: Any = None, **match: str) -> Any:
        answer = self.ask(route, query=query, **match)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)


@pytest.fixture
def server(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(part("nodes.background.submit"), "see_to_it", lambda home: None)  # no process: nothing is to run
    server = Server(part, tmp_path)
    yield server
    server.loop.run_until_complete(server.loop.shutdown_default_executor())
    server.loop.close()


def test_the_list_says_what_the_page_needs(server: Server) -> None:
    reported = server.get("GET jobs")
    by_id = {job["id"]: job for job in reported["jobs"]}
    running, ended, waits = (by_id[folder.id] for folder in (server.running, server.ended, server.waits))
    assert (running["state"], running["step"], running["seconds_left"], running["epochs"]) == ("running", 10, 20.0, 5)
    assert (ended["state"], ended["outcome"], ended["text"], ended["error"]) == ("ended", "failed", "failed: no memory", "no memory\nmore")
    assert (waits["state"], waits["place"], waits["can"], waits["background"]) == ("queued", 0, ["stop"], True)
    assert reported["queue"] == {"waiting": [server.waits.id], "running": [], "keeper": None}
    assert reported["settings"] == {"generation": "wait", "restarts": 0, "keep_jobs": 500}
    few = server.get("GET jobs", {"limit": "1", "before": by_id and max(by_id)})
    assert {job["state"] for job in few["jobs"]} <= {"running", "queued", "ended"} and few["total"] == 3


def test_the_list_is_searched_and_read_page_by_page(server: Server) -> None:
    tools = [server.part("nodes.jobs.folder").JobFolder.create(server.home, tool) for tool in ("tensorboard", "convert_lora")]
    for folder in tools:
        folder.write_status("ended", outcome="finished")

    def ids(**query: str) -> list[str]:
        return [job["id"] for job in server.get("GET jobs", query)["jobs"]]

    assert ids(find="DOG") == ids(find="dog") == [server.ended.id] and ids(find="") == ids()
    assert ids(find="nothing", verbs="tensorboard,train") == [tools[0].id], "what has a name is not called by its tool"
    assert ids(find=tools[1].id[-6:]) == [tools[1].id] and ids(find="wan") == ids(kind="training")
    assert ids(outcome="failed,lost") == [server.ended.id] and ids(find="x" * 10_000) == []
    pages, seen = [server.get("GET jobs", {"limit": "1"})], list[str]()
    while pages[-1]["next"]:
        pages.append(server.get("GET jobs", {"limit": "1", "before": pages[-1]["next"]}))
    for page in pages:
        seen += [job["id"] for job in page["jobs"] if job["state"] == "ended"]
    assert seen == [one for one in ids() if one in {server.ended.id, *(folder.id for folder in tools)}], (
        "each ended one once, the newest first"
    )


def test_one_job_has_settings_samples_and_files(server: Server) -> None:
    reported = server.get("GET jobs/{id}", id=server.running.id)
    assert {one["name"] for one in reported["settings"]} == {"network_dim", "max_train_steps", "sample_prompts"}, "and no key"
    assert reported["prompts"] == ["a cat", "out of the folders"] and [one["prompt"] for one in reported["samples"]] == [0, 1]
    assert [(one["content"], one["exists"], one["url"] is not None) for one in reported["files"]] == [
        ("state", True, False), ("lora", True, True), ("sample", True, True), ("sample", False, False), ("model", True, False),
    ]  # fmt: skip
    assert (reported["log"]["text"], reported["log"]["bar"]) == ("eins\nsteps: 2%\nDREI ホ\n", "steps: 6%")
    assert reported["series"] == ["loss", "average", "lr", "seconds"] and reported["jobs_of_run"] == [server.running.id]


def test_files_are_named_by_number_and_only_those_to_be_shown_are_given(server: Server) -> None:
    given = [server.ask("GET jobs/{id}/file/{number}", id=server.running.id, number=str(number)) for number in range(6)]
    assert [answer.status for answer in given] == [404, 200, 200, 404, 404, 404]
    lora, video = given[1], given[2]
    assert "attachment" in lora.headers["Content-Disposition"] and "Content-Disposition" not in video.headers
    assert video.headers["Content-Type"] == "video/mp4" and video.headers["X-Content-Type-Options"] == "nosniff"
    link = server.run / "sample" / "cat_000002_00.mp4"
    link.unlink()
    link.symlink_to(server.home.parent / "secret.png")
    assert server.ask("GET jobs/{id}/file/{number}", id=server.running.id, number="2").status == 404, "a link out of the folders"


def test_series_come_whole_in_part_and_anew(server: Server) -> None:
    whole = server.get("GET jobs/{id}/series", {"names": "loss,lr"}, id=server.running.id)
    assert (whole["first"], whole["last"], whole["width"], whole["steps"]) == (1, 10, 1, list(range(1, 11)))
    assert whole["series"]["loss"]["mean"][9] == 1.0
    assert server.get("GET jobs/{id}/series", {"after": "10"}, id=server.running.id)["steps"] == []
    with server.running.metrics.open("a") as log:
        log.write(line_of(events.Step(11, 20, 1, 0.3, 0.5, 1e-4, 2.0), time=1.0, clock=30.0, rank=0))
    new = server.get("GET jobs/{id}/series", {"after": "10"}, id=server.running.id)
    assert new["steps"] == [11] and new["last"] == 11
    assert server.ask("GET jobs/{id}/series", query={"names": "loss,moon"}, id=server.running.id).status == 400


def test_the_log_is_read_on_in_and_searched(server: Server) -> None:
    first = server.get("GET jobs/{id}/log", id=server.running.id)
    with server.running.log.open("a") as log:
        log.write("\rsteps: 7%\nvier\nhalf")
    more = server.get("GET jobs/{id}/log", {"after": str(first["next"])}, id=server.running.id)
    assert (more["text"], more["bar"], more["more"]) == ("steps: 7%\nvier\n", "half", False)
    assert server.get("GET jobs/{id}/log", {"find": "drei"}, id=server.running.id)["text"] == "DREI ホ\n"
    server.running.log.write_text("anew\n")
    again = server.get("GET jobs/{id}/log", {"after": str(more["next"])}, id=server.running.id)
    assert again["text"] == "anew\n" and again["next"] < more["next"]


def test_what_is_asked_reaches_whoever_runs_the_job(server: Server) -> None:
    assert server.ask("POST jobs/{id}/request", {"name": "save"}, id=server.running.id).status == 200
    assert server.ask("POST jobs/{id}/request", {"name": "stop_after_epoch"}, id=server.running.id).status == 200
    assert server.running.asked(0)[0] == ["save", "stop_after_epoch"]
    refused = server.ask("POST jobs/{id}/request", {"name": "resume"}, id=server.running.id)
    assert refused.status == 400 and "possible: stop, kill, save" in json.loads(refused.body)["error"]
    assert server.ask("POST jobs/{id}/request", {"name": "save"}, id=server.ended.id).status == 400
    board = [server.ask("POST jobs/{id}/tensorboard", {}, id=job) for job in (server.ended.id, "20260101-000000-x-000000")]
    assert [answer.status for answer in board] == [400, 404] and b"no logs" in board[0].body
    other = {**OURS, "Sec-Fetch-Site": "cross-site"}
    assert server.ask("POST jobs/{id}/tensorboard", {}, other, id=server.ended.id).status == 403
    gone = server.ask("POST jobs/{id}/request", {"name": "stop"}, id=server.waits.id)
    assert json.loads(gone.body)["job"]["outcome"] == "removed"
    assert server.part("nodes.jobs.queue").waiting(server.home) == []


def test_a_run_goes_on_in_the_background(server: Server) -> None:
    busy = server.ask("POST jobs/{id}/continue", {"steps": 5}, id=server.running.id)
    assert busy.status == 400 and "already" in json.loads(busy.body)["error"]
    made_by = {"workflow": {"nodes": []}, "prompt": None}
    server.ended.write_workflow(made_by)
    job = json.loads(server.ask("POST jobs/{id}/continue", {"steps": 5}, id=server.ended.id).body)["job"]
    assert server.get("GET jobs/{id}/workflow", id=job["id"]) == made_by
    assert (job["state"], job["run"], job["background"], job["place"]) == ("queued", "dog-1", True, 1)
    task = server.part("nodes.jobs.task").read(server.part("nodes.jobs.folder").JobFolder(server.home / "jobs" / job["id"]).task())
    assert task.training.values["max_train_steps"] == task.training.lengths["max_train_steps"] == 25
    assert task.gpus == ("0", "1") and task.background
    assert task.training.results == {"max_train_steps": 25} and task.training.resume[0] == "auto" and task.launch
    order = server.ask("POST queue", {"order": [job["id"], server.ended.id]})
    assert json.loads(order.body)["queue"]["waiting"] == [job["id"], server.waits.id]


def test_cleaning_spares_what_is_in_use(server: Server) -> None:
    seen = server.get("GET storage")
    assert {run["run"]: (run["busy"], run["states"], run["loras"], run["samples"]) for run in seen["runs"]} == {
        "cat-1": (True, 1, 1, 1), "dog-1": (False, 0, 0, 0),
    }  # fmt: skip
    jobs = [server.running.id, server.waits.id]
    reported = json.loads(server.ask("POST clean", {"jobs": jobs, "runs": ["cat-1", "dog-1", "no-1"]}).body)
    assert reported["removed"] == ["dog-1"] and {one["id"] for one in reported["kept"]} == {"cat-1", "no-1", *jobs}
    assert not server.ended.path.exists() and server.running.path.exists() and server.run.exists()


def test_old_jobs_go_by_themselves_but_none_of_a_run_that_is_there(server: Server) -> None:
    storage, index = server.part("nodes.monitor.storage"), server.part("nodes.jobs.index").index_of(server.home)
    caching = server.part("nodes.jobs.folder").JobFolder.create(server.home, "wan_cache_latents")
    caching.write_status("ended", outcome="finished")
    assert storage.retire(index, 4) == []
    assert storage.retire(index, 0) == [caching.id]
    (server.home / "runs" / "dog-1").rmdir()
    assert storage.retire(index, 0) == [server.ended.id]


def test_messages_name_what_changed_once(part: Any, server: Server) -> None:
    sent: list[tuple[str, Any]] = []
    index = server.part("nodes.jobs.index").Index(server.home)
    messages = part("nodes.monitor.messages").Messages(index, lambda: {}, lambda *message: sent.append(message))
    messages.look()
    messages.look()
    assert sent == []
    with server.running.metrics.open("a") as log:
        log.write(line_of(events.Step(11, 20, 1, float("nan")), time=1.0, clock=30.0, rank=0))
    messages.look()
    messages.look()
    ((name, reported),) = sent
    assert name == "musubi_tuner.jobs"
    assert [(job["id"], job["step"], job["loss"]) for job in reported["jobs"]] == [(server.running.id, 11, None)]
    json.dumps(reported, allow_nan=False)


def test_what_is_queued_comes_last_whatever_the_clock_and_damaged_places_say(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, ids = server.part("nodes.jobs.queue"), [f"20260101-000000-x-00000{number}" for number in range(3)]
    now = queue.time.time()
    for ahead, job in zip((0, -7200, -7300), ids, strict=True):
        monkeypatch.setattr(queue, "time", SimpleNamespace(time=lambda ahead=ahead: now + ahead))
        queue.add(server.home, job)
    assert queue.waiting(server.home) == [server.waits.id, *ids]
    for text in ("nan", "inf", "x", "1e999"):
        (server.home / "queue" / "waiting" / ids[0]).write_text(text)
        assert sorted(queue.waiting(server.home)) == sorted([server.waits.id, *ids])
        queue.order(server.home, [ids[2]])
        assert queue.waiting(server.home)[0] == ids[2]


def test_settings_of_the_queue_are_checked_and_kept(server: Server) -> None:
    assert json.loads(server.ask("POST queue_settings", {"generation": "warn"}).body)["settings"]["generation"] == "warn"
    for wrong in ({"generation": "maybe"}, {"restarts": -1}, {"restarts": True}, {"engine": "x"}, {"keep_jobs": 1.5}):
        assert server.ask("POST queue_settings", wrong).status == 400, wrong
    saved = json.loads((server.home / "config.json").read_text())
    assert saved["queue"] == {"generation": "warn", "restarts": 0, "keep_jobs": 500} and saved["interpreter"] == "/python"


STATUS = {"state": "running", "time": 1.5, "gpus": ["0"], "step": 3, "total": 9, "error": "x", "engine": "builtin", "pid": os.getpid()}


@pytest.mark.parametrize("name", ["task", "status"])
def test_damaged_notes_of_a_job_spoil_neither_its_page_nor_the_list(server: Server, name: str) -> None:
    index_of = server.part("nodes.jobs.index").index_of
    whole = STATUS if name == "status" else json.loads((server.ended.path / "task.json").read_text())
    (server.home / "queue" / "running").mkdir()
    (server.home / "queue" / "running" / server.ended.id).touch()
    asked = ["GET jobs/{id}", "GET jobs/{id}/checkpoints", "POST jobs/{id}/continue", "POST jobs/{id}/request"]
    for content in with_odd_values(whole, 40):
        (server.ended.path / f"{name}.json").write_bytes(content)
        index_of.cache_clear()
        assert server.running.id in {job["id"] for job in server.get("GET jobs")["jobs"]}, content
        for route in asked:
            answer = server.ask(route, {"steps": 5, "name": "save"}, id=server.ended.id)
            assert answer.status in (200, 400, 404), (route, content)
            json.loads(answer.body, parse_constant=pytest.fail)


def test_a_damaged_number_of_a_sample_makes_no_list_of_that_length(server: Server) -> None:
    with server.running.metrics.open("a") as log:
        log.write(line_of(events.Sample("/x.mp4", 10, "a dog", 2**28), time=1.0, clock=30.0, rank=0))
    assert server.get("GET jobs/{id}", id=server.running.id)["prompts"] == ["a cat", "out of the folders", "a dog"]


def test_damaged_settings_are_said_by_every_route(server: Server) -> None:
    (server.home / "config.json").write_text("{")
    answers = [server.ask(f"GET jobs/{{id}}{part}", id=server.running.id, number="1") for part in ("", "/file/{number}")]
    assert [answer.status for answer in answers] == [400, 400]
    assert all("config.json is damaged" in json.loads(answer.body)["error"] for answer in answers)


def test_what_is_removed_while_it_is_looked_through_is_left_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, kept = server.part("nodes.monitor.storage"), server.part("nodes.monitor.kept_workflows")
    kept.keep(server.home, "mine", {"1": {"class_type": "X"}}, None)
    monkeypatch.setattr(storage, "_runs", lambda home: iter([server.home / "runs" / "gone-1", server.run]))
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [*glob(path, pattern), path / "gone.json"])
    assert [run["run"] for run in server.get("GET storage")["runs"]] == ["cat-1"]
    gone = json.loads(server.ask("POST clean", {"runs": ["gone-1"], "states_only": True}).body)
    assert gone["removed"] == ["gone-1"] and gone["bytes"] == 0
    assert server.get("GET sampling_workflows") == {"names": ["mine"]}
    monkeypatch.setattr(type(server.running), "ask", lambda folder, name: (folder.path / "gone" / "x").touch())
    assert server.ask("POST jobs/{id}/request", {"name": "save"}, id=server.running.id).status == 404


def test_two_changes_of_the_settings_at_once_are_both_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    config, clips = server.part("nodes.jobs.config"), server.home / "clips"
    clips.mkdir()
    write, writing, other = config.write_text, threading.Event(), threading.Event()

    def slowly(path: Path, text: str) -> None:
        if not writing.is_set():
            writing.set()
            other.wait(0.2)  # the other one reads before this is written, if it can
        write(path, text)
        other.set()

    monkeypatch.setattr(config, "write_text", slowly)
    first = threading.Thread(target=config.allow_folders, args=(server.home, [str(clips)]))
    first.start()
    writing.wait()
    config.set_queue(server.home, {"restarts": 3})
    first.join()
    settings = config.load(server.home)
    assert (settings.allowed_roots, settings.queue["restarts"]) == ((clips,), 3)


ODD: list[Any] = [
    None, True, 0, -1, 2**63, 1.5, "", "x", "../" * 9, "a" * 5000, [], {}, [[]], "\x00", "..", ".", "/etc/passwd", "C:\\x", "漢" * 90,
    "\ud800", -(2**63) - 1, 10**400, 1.0, float("nan"), float("inf"), True, "con", "NUL.json", "a:b", "cat-1:stream", "C:cat",
    "\\\\host\\share", "cat-1/",
    "a.", "a ", "~", "cat-1/../dog-1", "x\ny", "٣", "\u202e", {"a": [None] * 99}, [1.0], [True], {"$": "x"},
    ["\x00"], [None], ["../.."], "-1", "1e9", "99999999999", "NaN", "０", "loss," * 99, "%2e%2e", "stop", "kill", "save", "jobs", "runs",
]  # fmt: skip
FIELDS = ["name", "steps", "epochs", "order", "jobs", "runs", "states_only", "generation", "restarts", "keep_jobs"]
FIELDS += ["step", "prompt_id", "workflow", "prompt"]
GRAPHS: list[Any] = [{"1": {"class_type": "X"}}, {"1": {"class_type": "X", "inputs": float("nan")}}, {"1": {"class_type": "\ud800"}}]
QUERY = ["limit", "kind", "before", "names", "points", "from", "to", "after", "find"]
HEADERS = ["Host", "Origin", "Sec-Fetch-Site", "Content-Type"]
WORDS = ["evil.example", "http://[", "", "null", "cross-site", "text/plain", "https://evil.example", "same-origin", "[::1"]


def test_two_thousand_odd_requests_break_nothing(server: Server) -> None:
    source = random.Random(13)
    root = server.home.parent
    outside = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and server.home not in path.parents}
    ids = [server.running.id, server.ended.id, server.waits.id]
    sample = "20261127-190000-1f2e3d"
    server.run.joinpath("workflow_samples").mkdir()
    server.run.joinpath("workflow_samples", f"{sample}.json").symlink_to(root / "secret.png")
    server.home.joinpath("sampling_workflows").mkdir()
    server.home.joinpath("sampling_workflows", "x.json").symlink_to(root / "secret.png")
    seen = dict.fromkeys((200, 400, 403, 404), 0)
    for number in range(2000):
        route = source.choice(sorted(server.handlers))
        match = {"id": source.choice([*ids, *ids, *map(str, ODD)]), "number": source.choice(["0", "1", "2", "3", *map(str, ODD)])}
        match |= {"sample": source.choice([sample, *map(str, ODD)]), "name": str(source.choice(["mine", *ODD]))}
        body: Any = {source.choice(FIELDS): source.choice([*ODD, *GRAPHS, ids, [ids[0]], ["cat-1"]]) for _ in range(source.randrange(4))}
        if number % 9 == 0:
            body = source.choice(
                [
                    b'{"step":' + b"9" * 5000 + b"}",
                    b'{"step":1e999}',
                    b'{"order":' * 9000,
                    b'{"a":"' + b"x" * 300_000 + b'"}',
                    b"",
                    b"null",
                    b"{",
                    b"[" * 30_000,
                    b'{"a":' * 3000,
                    b"\xff",
                    b"9" * 9000,
                    b"NaN",
                ]
            )
        query = {source.choice(QUERY): str(source.choice(ODD)) for _ in range(source.randrange(3))}
        headers = {**OURS, **({source.choice(HEADERS): source.choice(WORDS)} if number % 5 == 0 else {})}
        answer = server.ask(route, body, headers, query, **match)
        assert answer.status in seen, (route, match, body, query)
        seen[answer.status] += 1
        path = getattr(answer, "_path", None)
        assert path is None or path.resolve().is_relative_to(server.home), path
        if path is None:
            json.loads(answer.body, parse_constant=pytest.fail)
    assert min(seen.values()) > 20, seen
    assert {path: path.read_bytes() for path in outside} == outside
    left = {path.parent for path in root.rglob("*") if path.is_file() and path not in outside}
    assert all(path.is_relative_to(server.home) for path in left)
