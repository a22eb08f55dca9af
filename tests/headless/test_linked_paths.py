"""In `headless/`, what lies behind a linked path is looked at in every run."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any


def test_a_video_behind_a_linked_path_is_read_again_when_it_changes(part: Any, tmp_path: Path) -> None:
    run, nodes, workflow = part("headless.run"), part("nodes.spec"), part("headless.workflow")
    host = part("headless.terminal").TerminalHost(tmp_path, (), part("headless.terminal").Screen(io.StringIO()))
    runs: list[str] = []

    class Names(nodes.Node):
        spec = nodes.NodeSpec("Names", "Names", "", "", (), (nodes.Output("name", "STRING"),))

        async def run(self, host: Any, **inputs: Any) -> Any:
            return nodes.Result((str(tmp_path / "clip.mp4"),))

    class Reads(nodes.Node):
        spec = nodes.NodeSpec("Reads", "Reads", "", "", (nodes.Input("path", "STRING", "", default=""),), (nodes.Output("text", "STRING"),))

        def fingerprint(self, host: Any, **constants: Any) -> str:
            return str(part("backend.musubi_backend.content").of_files([Path(constants["path"])]))

        async def run(self, host: Any, **inputs: Any) -> Any:
            runs.append(inputs["path"])
            return nodes.Result(("read",))

    steps = {
        "1": workflow.Step("1", "Names", Names()),
        "2": workflow.Step("2", "Reads", Reads(), links={"path": ("1", 0)}),
    }
    (tmp_path / "clip.mp4").write_bytes(b"one")
    for _ in range(2):
        assert asyncio.run(run.run(steps, host)) == 0
    assert len(runs) == 1
    (tmp_path / "clip.mp4").write_bytes(b"two")
    assert asyncio.run(run.run(steps, host)) == 0
    assert len(runs) == 2
