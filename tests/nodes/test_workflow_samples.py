"""Sampling checkpoints with a graph of the user's own: which there are, what becomes of each prompt, and graphs that are kept."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_job_routes import Server

PLACES = ["output", "temp"]


class ComfyQueue:
    """What ComfyUI's `PromptQueue` knows, in its shapes."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.history: dict[str, Any] = {}

    def get_current_queue(self) -> tuple[list[Any], list[Any]]:
        return self.running, []

    def get_history(self, prompt_id: str | None = None, map_function: Any = None) -> dict[str, Any]:
        if prompt_id is None:
            return {name: map_function(entry) for name, entry in self.history.items()}
        return {prompt_id: self.history[prompt_id]} if prompt_id in self.history else {}


class Samples:
    """The routes over a home, with a ComfyUI next to it."""

    def __init__(self, part: Any, root: Path) -> None:
        self.server, self.queue = Server(part, root), ComfyQueue()
        self.module = part("nodes.monitor.workflow_samples")
        self.folders = {kind: root / kind for kind in PLACES}
        for folder in self.folders.values():
            folder.mkdir()

    def add(self, step: int = 2) -> str:
        prompt_id = str(uuid.uuid4())
        body = {"step": step, "prompt_id": prompt_id, "workflow": "my graph", "prompt": "a cat"}
        assert self.server.ask("POST jobs/{id}/workflow_samples", body, id=self.server.running.id).status == 200
        return prompt_id

    def note(self, step: int = 2) -> str:
        """As the page does before it queues the prompt. Returns the id of the sample."""
        answer = self.server.ask(
            "POST jobs/{id}/workflow_samples", {"step": step, "workflow": "my graph", "prompt": ""}, id=self.server.running.id
        )
        return str(json.loads(answer.body)["sample"])

    def ends(self, prompt_id: str, outputs: Any, status: str = "success", messages: Any = (), prompt: Any = None) -> None:
        done = {"status_str": status, "completed": status == "success", "messages": [list(one) for one in messages]}
        self.queue.history[prompt_id] = {"prompt": [1, prompt_id, prompt or {}, {}, []], "outputs": outputs, "status": done}

    def collect(self) -> set[str]:
        found: set[str] = self.module.pending_of(self.server.home).collect(self.queue, self.folders)
        return found

    def listed(self) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = self.server.get("GET jobs/{id}", id=self.server.running.id)["workflow_samples"]
        return shown

    def file(self, sample: str, number: str) -> Any:
        match = {"id": self.server.running.id, "sample": sample, "number": number}
        return self.server.ask("GET jobs/{id}/workflow_samples/{sample}/{number}", **match)


@pytest.fixture
def samples(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Samples]:
    monkeypatch.setattr(part("nodes.background.submit"), "see_to_it", lambda home: None)
    made = Samples(part, tmp_path)
    yield made
    made.server.loop.run_until_complete(made.server.loop.shutdown_default_executor())
    made.server.loop.close()


def lora(path: Path, step: int, expert: str = "") -> None:
    """A LoRA without tensors."""
    said = {"ss_steps": str(step), **({"ss_expert": expert} if expert else {})}
    header = json.dumps({"__metadata__": said}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_checkpoints_are_offered_by_step_and_put_where_comfyui_lists_them(samples: Samples) -> None:
    server, job = samples.server, samples.server.running.id
    lora(server.run / "cat-step00000002.safetensors", 2)
    lora(server.run / "cat-step00000004.safetensors", 4)
    lora(server.run / "cat.safetensors", 4)
    (server.run / "cat-step00000006.safetensors").write_bytes(b"half")
    offered = server.get("GET jobs/{id}/checkpoints", id=job)
    files = [{"step": 4, "files": {"": "cat.safetensors"}}, {"step": 2, "files": {"": "cat-step00000002.safetensors"}}]
    assert offered == {"checkpoints": files, "occupied": None, "generation": "wait"}
    lora(server.run / "cat-step00000008-low.safetensors", 8, "low")
    lora(server.run / "cat-step00000008-high.safetensors", 8, "high")
    for step, names in ((2, ["cat-step00000002"]), (2, ["cat-step00000002"]), (8, ["cat-step00000008-low", "cat-step00000008-high"])):
        answer = json.loads(server.ask("POST jobs/{id}/checkpoints", {"step": step}, id=job).body)
        assert set(answer["loras"].values()) == {os.path.join("musubi_tuner", f"{name}.safetensors") for name in names}  # noqa: PTH118
    assert sorted(path.name for path in (server.home / "loras" / "musubi_tuner").iterdir()) == [
        "cat-step00000002.safetensors", "cat-step00000008-high.safetensors", "cat-step00000008-low.safetensors",
    ]  # fmt: skip
    assert [server.ask("POST jobs/{id}/checkpoints", {"step": step}, id=job).status for step in (3, "2", None, True)] == [404] * 4


def test_a_training_that_has_the_gpu_is_named(samples: Samples, part: Any) -> None:
    server = samples.server
    (server.home / "queue" / "waiting" / server.running.id).write_text("0")
    part("nodes.jobs.queue").take(server.home, server.running.id)
    gpus = {"pid": os.getpid(), "gpus": ["0"]}
    server.running.write_status("running", **gpus)
    assert server.get("GET jobs/{id}/checkpoints", id=server.ended.id)["occupied"] == server.running.id
    server.running.write_status("running", **{**gpus, "gpus": ["1"]})
    assert server.get("GET jobs/{id}/checkpoints", id=server.ended.id)["occupied"] is None, "it is on another GPU"


def test_what_the_graph_saved_comes_into_the_gallery_and_stays(samples: Samples) -> None:
    prompt = samples.add()
    samples.queue.running = [(1, prompt, {}, {}, [])]
    assert samples.collect() == set()
    assert [(one["state"], one["step"], one["workflow"], one["prompt"]) for one in samples.listed()] == [("queued", 2, "my graph", "a cat")]
    output = samples.folders["output"]
    (output / "sub").mkdir()
    for name in ("a.PNG", "sub/b.mp4", "notes.txt"):
        (output / name).write_bytes(name.encode())
    (samples.folders["temp"] / "preview.png").write_bytes(b"preview")
    (output / "link.png").symlink_to(samples.server.home.parent / "secret.png")
    saved = [
        *(
            {"filename": name, "subfolder": "", "type": "output"}
            for name in ("a.PNG", "notes.txt", "gone.png", "link.png", "../secret.png")
        ),
        {"filename": "secret.png", "subfolder": "..", "type": "output"},
        {"filename": str(samples.server.home.parent / "secret.png"), "subfolder": "", "type": "output"},
        {"filename": "secret.png", "subfolder": "", "type": "/"},
        {"filename": "\0.png", "type": "output"},
        {"filename": 3, "type": "output"},
        "text",
    ]
    outputs = {
        "9": {"images": saved, "animated": (False,), "text": "hello"},
        "10": {"gifs": [{"filename": "b.mp4", "subfolder": "sub", "type": "output", "format": "video/h264-mp4"}], "count": 3},
        "11": {"images": [{"filename": "preview.png", "subfolder": "", "type": "temp"}]},
    }
    samples.queue.running = []
    samples.ends(prompt, outputs)
    assert samples.collect() == {"cat-1"} and samples.collect() == set()
    (shown,) = samples.listed()
    assert (shown["state"], [one["media"] for one in shown["files"]]) == ("finished", ["image/png", "video/mp4"])
    (output / "a.PNG").unlink()
    samples.module.pending_of.cache_clear()  # ComfyUI starts anew
    samples.queue.history.clear()
    assert samples.collect() == set() and samples.listed() == [shown]
    given = samples.file(shown["id"], "0")
    assert (given.status, given.headers["Content-Type"], given._path.read_bytes()) == (200, "image/png", b"a.PNG")
    assert given.headers["X-Content-Type-Options"] == "nosniff"
    odd = [(shown["id"], "2"), (shown["id"], "-1"), (shown["id"], "x"), ("../" + shown["id"], "0"), (shown["id"][:-1], "0")]
    assert [samples.file(*one).status for one in odd] == [404] * 5
    storage = samples.server.get("GET storage")
    assert next(run["samples"] for run in storage["runs"] if run["run"] == "cat-1") == 3, "one of the training, two of the graph"


def test_what_went_wrong_is_said_in_words(samples: Samples) -> None:
    error = {"node_type": "KSampler", "exception_message": "out of memory\n", "exception_type": "X"}
    ends: dict[str, tuple[Any, str, Any]] = {
        "KSampler: out of memory": ({}, "error", [("execution_start", {}), ("execution_error", error)]),
        samples.module.CANCELLED: ({}, "error", [("execution_interrupted", {})]),
        samples.module.NOTHING: ({"3": {"text": ["hello"]}}, "success", []),
    }
    prompts = {text: samples.add() for text in ends}
    for text, (outputs, status, messages) in ends.items():
        samples.ends(prompts[text], outputs, status, messages)
    samples.add()  # which somebody takes out of ComfyUI's queue
    assert samples.collect() == {"cat-1"}
    assert sorted((one["state"], one["text"]) for one in samples.listed()) == sorted(
        ("failed", text) for text in [*ends, samples.module.LOST]
    )


def test_a_prompt_is_found_by_its_mark_whatever_becomes_of_the_page(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, fails, closed, refused = (samples.note(step) for step in (1, 2, 3, 4))
    odd = {"7": {"_meta": None}, "8": {"_meta": {"musubi_tuner_sample": [1]}}, "9": 3}

    def prompt(sample: str) -> dict[str, Any]:
        return {**odd, "1": {"class_type": "X", "inputs": {}, "_meta": {"title": "x", "musubi_tuner_sample": sample}}}

    samples.queue.running = [(1, "a", prompt(waits), {}, [])]
    samples.ends("b", {}, "error", [("execution_interrupted", {})], prompt(fails))
    match = {"id": samples.server.running.id, "sample": refused}
    refusals = [samples.server.ask("POST jobs/{id}/workflow_samples/{sample}/refused", {}, **match).status for _ in range(2)]
    assert refusals == [200, 404], "and only once"
    states = {1: "", 2: samples.module.CANCELLED, 3: ""}
    for _ in range(2):
        samples.collect()
        assert {one["step"]: one["text"] for one in samples.listed()} == states, closed
    monkeypatch.setattr(samples.module, "_COMES", 0.0)
    samples.queue.running = [(1, "a", {}, {}, [])]  # it is known by its id from now on
    samples.collect()
    assert {one["step"]: one["text"] for one in samples.listed()} == {**states, 3: samples.module.NEVER}
    samples.queue.running = []
    samples.ends("a", {}, "success", [], prompt(waits))
    samples.collect()
    assert {one["step"]: one["text"] for one in samples.listed()} == {**states, 1: samples.module.NOTHING, 3: samples.module.NEVER}


def test_samples_of_a_comfyui_that_has_ended_are_lost_and_those_of_another_are_left_to_it(samples: Samples) -> None:
    samples.add()
    (note,) = (samples.server.run / "workflow_samples").glob("*.json")
    for pid, state in ((os.getppid(), "queued"), (2**22 + 1, "failed")):
        changed = note.with_suffix(".new")
        changed.write_text(json.dumps({**json.loads(note.read_text()), "pid": pid, "created": None, "boot": ""}))
        changed.replace(note)
        samples.module.pending_of.cache_clear()
        samples.collect()
        assert json.loads(note.read_text())["state"] == state


def test_a_disk_that_is_full_loses_no_sample(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.ends(samples.add(), {}, "error", [("execution_interrupted", {})])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as meanwhile, pytest.raises(OSError, match="space"):
        meanwhile.setattr(samples.module, "write_text", full)
        samples.collect()
    assert samples.collect() == {"cat-1"} and samples.listed()[0]["text"] == samples.module.CANCELLED


def test_what_is_cleaned_up_stays_away(samples: Samples) -> None:
    samples.ends(samples.add(), {})
    for path in (samples.server.run / "workflow_samples").iterdir():
        path.unlink()
    assert samples.collect() == set() and samples.listed() == []


def test_previews_are_taken_where_nothing_is_saved(samples: Samples) -> None:
    prompt = samples.add()
    (samples.folders["temp"] / "preview.png").write_bytes(b"preview")
    samples.ends(prompt, {"11": {"images": [{"filename": "preview.png", "subfolder": "", "type": "temp"}]}})
    samples.collect()
    assert [len(one["files"]) for one in samples.listed()] == [1]


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": True}, {"prompt_id": "../x"}, {"prompt_id": "X" * 36}, {"workflow": ""}, {"prompt": None}, {"step": 2**40}],
)
def test_odd_samples_are_rejected(samples: Samples, change: dict[str, Any]) -> None:
    body = {"step": 2, "prompt_id": str(uuid.uuid4()), "workflow": "x", "prompt": "", **change}
    assert samples.server.ask("POST jobs/{id}/workflow_samples", body, id=samples.server.running.id).status == 400
    assert not (samples.server.run / "workflow_samples").exists()


def test_graphs_are_kept_by_name_and_forgotten(samples: Samples) -> None:
    server, prompt = samples.server, {"1": {"class_type": "SaveImage", "inputs": {}, "text": "x" * 300_000}}
    for name, body in (("猫 1", {"prompt": prompt, "workflow": {"nodes": []}}), ("b", {"prompt": prompt})):
        assert server.ask("POST sampling_workflows/{name}", body, name=name).status == 200
    assert sorted(server.get("GET sampling_workflows")["names"]) == ["b", "猫 1"]
    assert server.get("GET sampling_workflows/{name}", name="猫 1") == {"prompt": prompt, "workflow": {"nodes": []}}
    assert json.loads(server.ask("POST sampling_workflows/{name}", {}, name="b").body) == {"names": ["猫 1"]}
    assert [server.ask("GET sampling_workflows/{name}", name=name).status for name in ("b", "..", "a/b", "x" * 300)] == [404, 400, 400, 400]
    bad: list[Any] = [{"prompt": {}}, {"prompt": [1]}, {"prompt": {"1": {}}}, {"prompt": prompt, "workflow": "x"}]
    assert [server.ask("POST sampling_workflows/{name}", body, name="c").status for body in bad] == [400] * 4
