"""More than 500 damaged ones of each file that nodes, terminal and installer read: read, or rejected in one sentence that names the
file."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged import damaged, with_odd_values
from musubi_backend import documents, texts
from musubi_backend.dataset import clip_lengths

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = "quickstart"


def _ways(whole: Any) -> Iterator[bytes]:
    yield from damaged(json.dumps(whole).encode())
    yield from with_odd_values(whole)


@pytest.fixture
def refuse(part: Any) -> Callable[..., Any]:
    """Call a reader; what it gives, or None where it rejects in one sentence that names the file."""
    refusal = part("backend.musubi_backend.errors").UserError

    def call(read: Callable[[], Any], path: Path) -> Any:
        try:
            return read()
        except refusal as error:
            assert path.name in str(error) or "node" in str(error) or ":" in str(error)
            assert "Traceback" not in str(error)
            str(error).encode("utf-8")
            return None

    return call


@pytest.mark.parametrize("form", ["ui", "api"])
def test_workflows(form: str, part: Any, refuse: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As far as a run goes before anything starts; every third, or with `--full` all of them."""
    workflow, run = part("headless.workflow"), part("headless.run")
    host = part("headless.terminal").TerminalHost(tmp_path, screen=part("headless.terminal").Screen(io.StringIO()))
    whole = json.loads((ROOT / "workflows" / f"{WORKFLOW}.json").read_text(encoding="utf-8"))
    if form == "api":
        whole = {
            step.id: {"class_type": step.node.spec.id, "_meta": {"title": step.title}, "inputs": {**step.constants, **step.links}}
            for step in workflow.read(ROOT / "workflows" / f"{WORKFLOW}.json").values()
        }
    path = tmp_path / "workflow.json"

    def check() -> bool:
        steps = workflow.read(path)
        for step in steps.values():
            host.named(step.title)
        run._check(workflow.order(steps), host)
        return True

    path.write_text(json.dumps(whole), encoding="utf-8")
    assert len(workflow.read(path)) > 5
    for content in itertools.islice(_ways(whole), 0, None, 1 if request.config.getoption("--full") else 3):
        path.write_bytes(content)
        refuse(check, path)


CONFIG = {
    "interpreter": "/venv/bin/python",
    "engine": "musubi-tuner",
    "musubi_tuner": {"path": "/musubi", "python": "/musubi/python"},
    "allowed_roots": ["/data", "/more"],
    "cpu_threads": 4,
}


def test_settings(part: Any, refuse: Any, tmp_path: Path) -> None:
    """The nodes reject what the installer, by the same rules, sets aside; what is taken can be used as paths."""
    from installer.console import Console
    from installer.settings import Settings

    path = tmp_path / "config.json"
    taken = 0
    for content in _ways(CONFIG):
        path.write_bytes(content)
        found = refuse(lambda: part("nodes.jobs.config").load(tmp_path), path)
        for place in [] if found is None else [found.interpreter, found.musubi_path, *found.allowed_roots]:
            assert place is None or not place.exists() or place.is_absolute()
        settings = Settings(path, Console(tmp_path / "nowhere"))
        assert path.exists() == (found is not None)
        assert found is None or settings.allowed_roots == list(found.allowed_roots)
        taken += found is not None
    assert 50 < taken < 900


STATE = {
    "steps": {"environment": "3.11", "torch": "cef2"},
    "running": "torch",
    "torch": "cpu",
    "torch_index": None,
    "torch_is": {"version": "2", "cuda": None},
}


def test_the_state_of_an_installation(tmp_path: Path) -> None:
    """Damaged, it counts for nothing: every step is looked at again."""
    from installer.state import State

    path = tmp_path / "install.json"
    for content in _ways(STATE):
        path.write_bytes(content)
        state = State.load(tmp_path)
        state.done("torch", "cef2")
        assert set(map(type, state.finished())) <= {str}
        assert state.interrupted in (True, False)
        assert state.data.get("torch", "auto") in ("auto", "cpu", "cuda")
        known = state.data.get("torch_is")
        assert known is None or (isinstance(known["version"], str) and isinstance(known["cuda"], (str, type(None))))


def test_the_record_of_what_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, it counts as none, or names a package too many."""
    from installer import record
    from installer.environment import Contents

    monkeypatch.setattr(record, "inspect", lambda environment, files: None)  # the real one starts a python
    (tmp_path / "a").write_text("abc")
    packages = {"torch": {"version": "2.13", "files": {"a": 3, "b/c": 4}}, "tqdm": {"version": "4", "files": {}}}
    for content in _ways(packages):
        (tmp_path / record.FILE).write_bytes(content)
        found = record.damage(tmp_path, tmp_path, Contents("3.11", {"torch": "2.13", "tqdm": "4"}))
        assert all(isinstance(fault, str) for fault in found.values())


def test_files_of_a_job(part: Any, tmp_path: Path) -> None:
    folder = part("nodes.jobs.folder").JobFolder(tmp_path)
    progress = part("nodes.jobs.progress")
    for content in _ways({"state": "running", "time": 1.5, "pid": 7, "created": 1.5, "returncode": None}):
        (tmp_path / "status.json").write_bytes(content)
        assert isinstance(folder.status(), dict)
    events = [
        {"event": "step", "time": 1.0, "step": 3, "total": 10, "loss": 0.25, "seconds": 0.5},
        {"event": "keep", "time": 1.0, "what": "the steps"},
        {"event": "sample", "time": 1.0, "path": "/x.png", "step": 3},
        {"event": "stopping", "time": 1.0, "file": "x", "bytes": 5},
    ]
    for event in events:
        for content in _ways(event):
            follower = progress.EventFollower(progress.Progress())
            follower.feed(content + b"\n")
            assert isinstance(follower.progress.text, str)


def test_lengths_of_clips_and_results_of_earlier_runs(part: Any, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    clip_lengths.remember(tmp_path, clip, (81, 5.0625, False))
    lengths = tmp_path / "cache_clip_lengths.json"
    assert clip_lengths.recall(tmp_path, clip) == (81, 5.0625, False)
    for content in _ways(json.loads(lengths.read_text())):
        lengths.write_bytes(content)
        found = clip_lengths.recall(tmp_path, clip)
        assert found is None or 0 < found[0] < 2**31

    store, result = part("headless.run").ResultStore, part("nodes.spec").Result
    store(tmp_path).put("key", result(("a", 1), "text", (clip,), (clip,)))
    results = tmp_path / "headless_cache.json"
    assert store(tmp_path).get("key").files == (clip,)
    for content in _ways(json.loads(results.read_text())):
        results.write_bytes(content)
        kept = store(tmp_path).get("key")
        assert kept is None or isinstance(kept.text, str)


@pytest.mark.skipif(os.name == "nt", reason="pipes as files")
def test_what_is_no_text_is_said_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(OSError, match="a pipe or a device"):
        documents.read_json(tmp_path / "pipe.json", dict)
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate((texts.MOST_MEGABYTES + 1) * 1_000_000)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match="too long for a text: 257 MB"):
        documents.read_json(tmp_path / "long.json", dict)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        documents.read_json(tmp_path, dict)


def test_a_path_that_is_no_unicode_is_kept_as_it_is(tmp_path: Path) -> None:
    odd = os.fsdecode(b"/data/\xff\xe3\x81\x82")
    written = documents.json_text({"a": odd, "b": "あ"})
    written.encode("utf-8")
    assert documents.parse_json(written, dict, paths=True) == {"a": odd, "b": "あ"}
    assert "あ" in documents.json_text({"b": "あ"}), "people can read it"
