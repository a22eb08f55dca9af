"""A web server that stands in for ComfyUI's page: our scripts on stubs of `/scripts/app.js` and `/scripts/api.js`, and recorded answers of
the routes in docs/monitor.md, among them one training in every state."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WEB = Path(__file__).resolve().parents[2] / "web"
PAGE = Path(__file__).with_name("page")
NOW = time.time()
PROMPTS = ["a red chessboard on a table, seen from above", "a dog on a beach"]


def job(number: int, **changes: Any) -> dict[str, Any]:
    """One job of the list, as the server gives it."""
    created = NOW - 3600 * number
    return {
        "id": f"20261127-{235959 - number}-wan_train_network-{number:06x}",
        "tool": "wan_train_network",
        "kind": "training",
        "verb": "train",
        "architecture": "wan",
        "engine": "builtin",
        "name": f"character_{number}",
        "run": f"character_{number}-5d0c31f2a9",
        "state": "ended",
        "paused": False,
        "outcome": "finished",
        "text": "finished · 1600 steps",
        "error": None,
        "phase": "training",
        "step": 1600,
        "total": 1600,
        "first_step": 0,
        "epoch": 40,
        "epochs": 40,
        "loss": 0.0731,
        "average": 0.0784,
        "lr": 1e-4,
        "seconds_per_step": 1.25,
        "seconds_left": None,
        "created": created,
        "started": created + 1,
        "ended": created + 2300,
        "seen": created + 2300,
        "pid": None,
        "background": True,
        "gpus": ["0"],
        "place": None,
        "attempt": 1,
        "can": [],
        "cannot": "",
        "version": 1,
        **changes,
    }


_BEFORE: dict[str, Any] = {"step": 0, "loss": None, "average": None, "seconds_left": None, "started": None}
_GOING: dict[str, Any] = {"outcome": None, "ended": None, "pid": 4711, "step": 640, "seconds_left": 1200.0, "text": "training"}
_ALL = ["stop", "kill", "save", "sample", "pause", "stop_after_epoch"]
_OOM = (
    "CUDA out of memory: 2.1 GB were asked for, 0.4 GB are free of 23.6 GB. Raise blocks_to_swap or lower the resolution.\n"
    "The whole log: /home/me/jobs/x/log.txt"
)
STATES = {
    "running": job(1, **_GOING, name="my_cat", state="running", can=_ALL),
    "queued": job(2, **{**_GOING, **_BEFORE}, name="next", state="queued", place=0, can=["stop"]),
    "waiting": job(3, **{**_GOING, **_BEFORE}, name="after", state="queued", place=1, can=["stop"]),
    "paused": job(4, **_GOING, name="on hold", state="running", paused=True, can=["stop", "kill", "resume"]),
    "stopping": job(5, **_GOING, name="ending", state="stopping", can=["kill"]),
    "finished": job(6, name="finished one"),
    "stopped": job(7, name="stopped one", outcome="stopped", step=700, text="stopped at step 700, state saved (run again to continue)"),
    "failed": job(8, name="failed one", outcome="failed", step=3, text="failed", error=_OOM),
    "lost": job(9, name="lost one", outcome="lost", step=90, text=""),
    "starting": job(
        10, **{**_GOING, **_BEFORE}, name="warming up", state="starting", total=None, phase="loading the transformer", can=["stop"]
    ),
    "foreign": job(
        11, **_GOING, name="other engine", state="running", engine="musubi-tuner", can=["stop"], cannot="musubi-tuner listens to stop only"
    ),
}


class Recorded:
    """The answers, which a test may change, and what was asked."""

    def __init__(self) -> None:
        self.jobs = [dict(one) for one in STATES.values()]
        self.queue: dict[str, Any] = {
            "waiting": [STATES["queued"]["id"], STATES["waiting"]["id"]],
            "running": [STATES["running"]["id"]],
            "keeper": 1,
        }
        self.asked: list[tuple[str, Any]] = []
        self.settings: dict[str, Any] = {"generation": "wait", "restarts": 0, "keep_jobs": 500}
        self.runs = [
            {
                "run": f"{name}-5d0c31f2a9",
                "name": name,
                "bytes": size,
                "states": 2,
                "loras": 3,
                "samples": 12,
                "modified": NOW,
                "jobs": [],
                "busy": busy,
            }
            for name, size, busy in (("old", 700_000_000, False), ("my_cat", 900_000_000, True))
        ]
        self.inputs: dict[str, list[str]] = {}
        self.failed: list[str] = []
        self.kept: dict[str, Any] = {}
        self.occupied: str | None = None
        self.workflow_samples: list[dict[str, Any]] = []
        self.broken = False
        self.refuses_orders = False
        self.most = 5000  # that are listed at once
        self.video = b""

    def answer(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if body is not None:
            self.asked.append((path, body))
        parts = path.strip("/").split("/")
        if self.broken:
            return 400, {"error": "config.json is damaged: line 3 is not JSON. Fix it or remove it."}
        if parts == ["jobs"]:
            return 200, {**self.listed(query), "queue": self.queue, "settings": self.settings}
        if parts == ["queue"] and self.refuses_orders:
            return 400, {"error": "order is a list of ids of jobs"}
        if parts == ["queue"]:
            self.queue = {**self.queue, "waiting": body["order"]}
            return 200, {"queue": self.queue}
        if parts == ["queue_settings"]:
            if body.get("restarts", 0) > 10:
                return 400, {"error": "restarts of queue is 11, and a whole number from 0 to 10 is needed"}
            self.settings |= body
            return 200, {"settings": self.settings}
        if parts == ["allowed_folders"]:
            return 200, {"folders": body["folders"]} if body else {"folders": ["/data/clips"], "own": ["/comfy/input"]}
        if parts == ["backend"]:
            install = '"python" "install.py"'
            other = f"{install} --engine musubi-tuner"
            return 200, {"home": "/home/me", "engine": "builtin", "installed": False, "command": install, "other_engine": other}
        if parts == ["storage"]:
            return 200, {"jobs": {"count": len(self.jobs), "bytes": 1}, "runs": self.runs}
        if parts[0] == "captions":
            return 200, {"names": [name for name in self.inputs.get(unquote(parts[1]), []) if name.endswith(".txt")]}
        if parts == ["clean"]:
            self.runs = [run for run in self.runs if run["run"] not in body["runs"]]
            self.jobs = [one for one in self.jobs if one["id"] not in body["jobs"]]
            return 200, {"removed": body["runs"] + body["jobs"], "kept": [], "bytes": 700_000_000}
        if parts[0] == "sampling_workflows":
            name = unquote(parts[1]) if len(parts) > 1 else ""
            if body is not None:
                self.kept = {**self.kept, name: body} if body else {key: one for key, one in self.kept.items() if key != name}
            return 200, self.kept[name] if body is None and name else {"names": list(self.kept)}
        known = {one["id"]: one for one in self.jobs}
        if parts[0] != "jobs" or parts[1] not in known:
            return 404, {"error": "this job is not there any more"}
        one = known[parts[1]]
        what = parts[2] if len(parts) > 2 else ""
        if what == "series":
            return 200, self.series(one, query)
        if what == "log":
            text = "".join(f"step {step}: loss {0.3 / (1 + step / 200):.4f}\n" for step in range(one["step"]))
            if "find" in query:
                return 200, {
                    "text": "".join(f"{x}\n" for x in text.splitlines() if query["find"].lower() in x.lower()),
                    "next": 1,
                    "more": False,
                }
            return 200, {"text": "", "bar": "", "next": int(query.get("after", 0)), "more": False}
        if what in ("request", "continue"):
            return 200, {"job": {**one, "version": one["version"] + 1}}
        if what == "checkpoints" and body is None:
            listed = [{"step": step, "files": {"": f"{one['name']}-step{step:08d}.safetensors"}} for step in range(600, 0, -200)]
            return 200, {"checkpoints": listed, "occupied": self.occupied, "generation": self.settings["generation"]}
        if what == "checkpoints":
            return 200, {"step": body["step"], "loras": {"": f"musubi_tuner/{body['step']}.safetensors"}}
        if what == "workflow_samples" and parts[-1] == "refused":
            self.workflow_samples = [sample for sample in self.workflow_samples if sample["id"] != parts[3]]
            return 200, {"sample": parts[3]}
        if what == "workflow_samples":
            files = [{"media": "video/mp4", "url": f"/musubi_tuner/jobs/{one['id']}/file/{body['step']}"}]
            sample = {"id": f"note-{len(self.workflow_samples)}", "state": "finished", "text": "", "time": NOW, "files": files, **body}
            self.workflow_samples.append(sample)
            return 200, {"sample": sample["id"]}
        if what == "tensorboard":
            return 200, {"address": "http://127.0.0.1:6006/"}
        if what == "workflow":
            return 200, {"workflow": {"nodes": []}, "prompt": None}
        return 200, self.detail(one)

    def listed(self, query: dict[str, str]) -> dict[str, Any]:
        verbs, outcomes = query.get("verbs", "").split(","), query.get("outcome", "").split(",")
        meant = [
            one
            for one in self.jobs
            if query.get("kind", one["kind"]) == one["kind"]
            and ("outcome" not in query or one["outcome"] in outcomes)
            and (query.get("find", "") in one["name"] or (not one["name"] and one["verb"] in verbs))
        ]
        older = [one for one in meant if one["id"] < query.get("before", "9")]
        shown, behind = older[: self.most], older[self.most :]
        going = [one for one in behind if one["state"] != "ended"]
        return {"jobs": shown + going, "total": len(meant), "next": shown[-1]["id"] if len(behind) > len(going) else None}

    def upload(self, form: bytes) -> dict[str, str]:
        """As ComfyUI's own route: a file into a folder of the input folder."""
        folder = re.search(rb'name="subfolder"\r\n\r\n(.*?)\r\n', form)
        name = re.search(rb'filename="(.*?)"', form)
        assert folder and name
        names = self.inputs.setdefault(folder[1].decode(), [])
        names += {name[1].decode()} - {*names}
        return {"name": name[1].decode()}

    def detail(self, one: dict[str, Any]) -> dict[str, Any]:
        base = f"/musubi_tuner/jobs/{one['id']}"
        every = one.get("samples_every", 200)
        steps = range(every, one["step"] + 1, every)
        prompts = one.get("prompts", PROMPTS)
        samples = [
            {"step": step, "prompt": prompt, "file": 100 + step + prompt, "media": "video/mp4", "url": f"{base}/file/{100 + step + prompt}"}
            for step in steps
            for prompt in range(len(prompts))
        ]
        saves = [{"step": step, "epoch": None, "content": "lora", "expert": "", "file": number} for number, step in enumerate(steps)]
        lora = {"content": "lora", "bytes": 153_000_000, "exists": True}
        names = [f"{one['name']}-step{step:08d}.safetensors" for step in steps]
        files = [
            {**lora, "file": number, "step": step, "name": name, "url": f"{base}/file/{number}"}
            for number, (step, name) in enumerate(zip(steps, names, strict=True))
        ]
        settings = [
            {"name": "network_dim", "value": 32, "default": 4},
            {"name": "optimizer_type", "value": "AdamW8bit", "default": "AdamW"},
            {"name": "dit", "value": "/models/diffusion_models/wan2.1_t2v_14B_bf16.safetensors", "default": None},
            *one.get("more_settings", []),
        ]
        home = "/home/me/ComfyUI/user/__musubituner"
        return {
            **one,
            "folder": f"{home}/jobs/{one['id']}",
            "run_folder": f"{home}/runs/{one['run']}",
            "settings": settings,
            "series": ["loss", "average", "lr", "seconds", "vram", "validation"],
            "prompts": prompts if samples else [],
            "samples": samples,
            "saves": saves,
            "files": files,
            "items": [{"name": "blurred", "loss": 0.42, "count": 9.5}, {"name": "cat_on_a_wall", "loss": 0.07, "count": 10.0}],
            "answers": [],
            "optimizer": {"step": 600, "lines": ["importance_statistics / mean: 0.41"]} if one["name"] == "my_cat" else None,
            "log": {"text": "INFO: training starts\n" * 3, "bar": "steps: 40%", "next": 60, "more": False},
            "workflow": f"{base}/workflow",
            "workflow_samples": self.workflow_samples,
            "jobs_of_run": sorted((other["id"] for other in self.jobs if other["run"] == one["run"]), reverse=True),
        }

    def series(self, one: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        first = int(query.get("after", 0)) + 1
        steps = list(range(first, one["step"] + 1))
        wobble = [math.sin(step * 12.9898 + len(one["name"])) * 43758.5453 % 1 for step in steps]
        values = {
            "loss": [0.06 + 0.25 / (1 + step / 150) + 0.12 * (part - 0.5) for step, part in zip(steps, wobble, strict=True)],
            "lr": [1e-4 * min(1, step / 100) for step in steps],
            "seconds": [1.2 + 0.1 * part for part in wobble],
            "vram": [18.2e9 + 2e8 * part for part in wobble],
            "validation": [0.25 + 1e-4 * step if step % 80 == 0 and step <= one.get("validated", step) else None for step in steps],
        }
        names = query.get("names", "loss").split(",")
        none: list[Any] = [None] * len(steps)
        series = {name: {part: values.get(name, none) for part in ("low", "high", "mean")} for name in names}
        return {"id": one["id"], "first": 1, "last": one["step"], "width": 1, "steps": steps, "series": series}


@contextlib.contextmanager
def page(recorded: Recorded) -> Iterator[str]:
    """The address of the page while it is served."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/upload/image":
                self._send(200, json.dumps(recorded.upload(body)).encode(), "application/json")
            else:
                self._answer(json.loads(body))

        def do_HEAD(self) -> None:
            self._answer(None)

        def _answer(self, body: Any) -> None:
            url = urlsplit(self.path)
            kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
            file = {"/": PAGE / "index.html", "/scripts/app.js": PAGE / "app.js", "/scripts/api.js": PAGE / "api.js"}.get(url.path)
            if url.path.startswith("/extensions/pack/"):
                file = WEB / url.path.removeprefix("/extensions/pack/")
            if file is not None:
                self._send(200, file.read_bytes(), kinds[file.suffix])
            elif "/file/" in url.path:
                self._send(200, recorded.video, "video/mp4")
            elif url.path.startswith("/api/musubi_tuner/"):
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                status, values = recorded.answer(url.path.removeprefix("/api/musubi_tuner/"), query, body)
                self._send(status, json.dumps(values).encode(), "application/json")
            else:
                self._send(404, b"", "text/plain")

        def _send(self, status: int, data: bytes, kind: str) -> None:
            if status != 200 and self.path != "/favicon.ico":
                recorded.failed.append(self.path)
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text") else kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
