"""Clips that cannot be used: Dataset Config stops with the list of them, or they are skipped, there and in caching."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.demo.clips import write_clips


@pytest.fixture
def host(part: Any, tmp_path: Path, backend_python: str) -> Any:
    home = tmp_path / "home"
    clips = home / "input" / "clips"
    write_clips(clips, count=2, size=(32, 32), frames=5)
    (clips / "broken.mp4").write_bytes(b"no clip")
    (clips / "broken.txt").write_text("a broken clip", encoding="utf-8")
    (home / "config.json").write_text(json.dumps({"interpreter": backend_python, "engine": "builtin"}), encoding="utf-8")
    return part("headless.terminal").TerminalHost(home)


@pytest.fixture
def configured(part: Any, host: Any) -> Any:
    def run(name: str = "DatasetConfig", **changes: Any) -> Any:
        node = getattr(part("nodes.dataset"), name)()
        given = {"path": "clips", "width": 32, "height": 32, "target_frames": "1, 5"} if name == "DatasetConfig" else {}
        return asyncio.run(node.run(host, **part("nodes.checks").prepared(node, host, {**given, **changes})))

    return run


def test_stop_lists_them_and_names_the_widget(configured: Any, part: Any) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError) as refused:
        configured()
    said = str(refused.value)
    assert said.startswith("1 item cannot be used:\n") and "broken.mp4" in said
    assert said.endswith("set on_bad_items to skip.") and "--" not in said


def test_an_empty_folder_is_said_in_one_line_with_the_usual_endings(configured: Any, part: Any, host: Any) -> None:
    clips = host.home / "input" / "clips"
    for file in clips.iterdir():
        file.unlink()
    with pytest.raises(part("backend.musubi_backend.errors").UserError) as refused:
        configured()
    said = part("nodes.spec").opening(str(refused.value))
    why = "no videos here; put some there (.mp4, .webm, .avi, .mkv, .mov, …)"
    assert said == f"nothing in this dataset can be used: {clips}: {why}"


def test_skip_goes_on_and_caching_is_reported(configured: Any, part: Any, monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
    result = configured(on_bad_items="skip")
    assert "1 not usable" in result.text
    chained = configured(previous=result.values[0], path="clips", num_repeats=2, cache_directory="other", on_bad_items="skip")
    loaded = configured("DatasetConfigLoader", path=result.values[0]["toml"], on_bad_items="skip")
    cache = part("nodes.cache")
    seen: list[list[str]] = []

    async def recorded(host: Any, tool: str, arguments: list[str]) -> Any:
        seen.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(cache, "run_tool", recorded)
    for dataset in (result.values[0], chained.values[0], loaded.values[0]):
        models = {"architecture": "wan", "task": "t2v-1.3B", "vae": "/m/vae.safetensors", "t5": "/m/t5.safetensors"}
        for node in (cache.VAELatentCache(), cache.TextEncoderCache()):
            values = part("nodes.checks").complete(node.spec, {"dataset": dataset, "models": models})
            with pytest.raises(InterruptedError):
                asyncio.run(node.run(host, **values))
    assert len(seen) == 6 and all("--on_bad_items skip" in " ".join(arguments) for arguments in seen), seen


def test_a_loader_stops_too(configured: Any, part: Any) -> None:
    toml = configured(on_bad_items="skip").values[0]["toml"]
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"broken\.mp4"):
        configured("DatasetConfigLoader", path=toml)


def test_an_extension_without_its_dot_is_the_same(configured: Any, part: Any, host: Any) -> None:
    with_dot, without = (configured(on_bad_items="skip", caption_extension=end).values[0] for end in (".txt", "txt"))
    assert with_dot == without
    node = part("nodes.dataset").DatasetConfig()
    assert [problem.input for problem in part("nodes.checks").check(node, host, {"caption_extension": " . "})] == ["caption_extension"]


def test_messages_of_jobs_name_widgets(part: Any) -> None:
    said = part("nodes.jobs.wording").in_widgets
    assert said("wan_cache_latents", "run again with --skip_existing, or install.py --allow-root x") == (
        "run again with skip_existing, or install.py --allow-root x"
    )
    assert said("wan_generate_video", "--one_frame_inference: bad") == "one_frame: bad"
    assert said("wan_train_network", "a--seed --no_such") == "a--seed --no_such"
