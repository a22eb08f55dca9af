"""Nodes of datasets, caches and videos with a small program in the place of the backend's python: what they tell it, what they make of
what it leaves, and when they run it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def error(bench: Any) -> Any:
    return bench.part("backend.musubi_backend.errors").UserError


def flag(words: list[str], name: str) -> str | None:
    """What follows a flag, or "" for one without a value; None where it is not given."""
    for index, word in enumerate(words):
        if word.partition("=")[0] == f"--{name}":
            following = [*words, ""][index + 1]
            return word.partition("=")[2] if "=" in word else "" if following.startswith("--") else following
    return None


def models(bench: Any, card: str = "wan", task: str = "t2v-1.3B", **more: str) -> dict[str, Any]:
    parts = ("dit", "vae", "t5", "clip", "text_encoder1", "text_encoder2")
    return {"architecture": card, "task": task, **{part: str(bench.home / f"{part}.safetensors") for part in parts}, **more}


def cached(bench: Any, node: str, task: str = "t2v-1.3B", **more: Any) -> Any:
    given = {"dataset": {**bench.dataset(), "on_bad_items": more.pop("on_bad_items", "skip")}, "models": models(bench, task=task), **more}
    return bench.run(getattr(bench.part("nodes.cache"), node)(), **given)


def test_caching_tells_the_tool_what_the_task_takes(bench: Any) -> None:
    cached(bench, "VAELatentCache")
    cached(bench, "VAELatentCache", "i2v-14B")
    cached(bench, "TextEncoderCache")
    latents, images, text = bench.calls
    assert flag(latents, "i2v") is None and flag(images, "i2v") is not None
    assert flag(images, "clip") == str(bench.home / "clip.safetensors")
    assert flag(text, "t5") == str(bench.home / "t5.safetensors") and flag(text, "vae") is None
    assert flag(latents, "on_bad_items") == flag(text, "on_bad_items") == "skip"


def test_musubi_tuner_is_not_reported_what_it_does_not_know(bench: Any) -> None:
    bench.engine("musubi-tuner")
    (bench.home / "musubi").mkdir()
    (bench.home / "musubi" / "wan_cache_latents.py").write_text("")
    cached(bench, "VAELatentCache")
    assert flag(bench.calls[0], "on_bad_items") is None


def test_caching_that_leaves_no_cache_is_an_error_and_names_its_kind(bench: Any) -> None:
    (bench.cache / bench.names["text"]).unlink()
    assert cached(bench, "VAELatentCache").text == "1 cache file"
    with pytest.raises(error(bench), match="made no cache file"):
        cached(bench, "TextEncoderCache")


def test_caches_lie_in_the_cache_folder_not_beside_the_media(bench: Any) -> None:
    folders = bench.part("nodes.cache").cache_folders
    assert folders({"datasets": [{"cache_directory": "/c", "video_directory": "/v"}, {"image_directory": "/i"}]}) == [
        Path("/c"),
        Path("/i"),
    ]


def generated(bench: Any, **inputs: Any) -> Any:
    node = bench.part("nodes.catalog").BY_NAME["WanVideoGenerator"]()
    return bench.run(node, models=models(bench, task="t2v-A14B", dit_high_noise=str(bench.dit)), prompt="a cat", **inputs)


def test_a_generation_is_reported_height_before_width_and_gives_the_first_video(bench: Any) -> None:
    bench.plan(makes=["b.mp4", "a.mp4", "notes.txt"])
    result = generated(bench, width=64, height=48)
    words = bench.calls[0]
    at = words.index("--video_size")
    assert words[at + 1 : at + 3] == ["48", "64"]
    assert Path(result.values[2]).name == "a.mp4" and result.files == result.shown == (Path(result.values[2]),)
    again = generated(bench, width=64, height=48)
    assert again.values[2] != result.values[2] and Path(result.values[2]).is_file(), "no result is overwritten"


def test_a_generation_without_a_video_is_an_error(bench: Any) -> None:
    bench.plan(makes=["notes.txt"])
    with pytest.raises(error(bench), match="wrote no video"):
        generated(bench)


@pytest.mark.parametrize("widget", ["lora_1", "high_lora_1"])
def test_a_changed_lora_makes_another_video(bench: Any, widget: str) -> None:
    node = bench.part("nodes.catalog").BY_NAME["WanVideoGenerator"]()
    lora = bench.host.loras_dir() / "cat.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"one")
    before = node.fingerprint(bench.host, **{widget: lora.name})
    assert node.fingerprint(bench.host, **{widget: lora.name}) == before
    lora.write_bytes(b"other")
    assert node.fingerprint(bench.host, **{widget: lora.name}) != before


def dataset(bench: Any, **inputs: Any) -> Any:
    folder = bench.home / "clips"
    folder.mkdir(exist_ok=True)
    return bench.run(bench.part("nodes.dataset").DatasetConfig(), **{"path": str(folder), **inputs})


def entry(bench: Any, **inputs: Any) -> dict[str, Any]:
    return dataset(bench, **inputs).values[0]["datasets"][-1]


def test_only_what_changes_the_caches_gives_them_another_folder(bench: Any) -> None:
    first = entry(bench)["cache_directory"]
    assert entry(bench, batch_size=2)["cache_directory"] == entry(bench, num_repeats=3)["cache_directory"] == first
    held_out = entry(bench, validation_split=0.5)
    assert held_out == {**entry(bench), "validation_split": 0.5} and "validation_split" not in entry(bench)
    for change in ({"width": 64}, {"target_frames": "5"}, {"enable_bucket": False}, {"source_fps": 24.0}, {"frame_extraction": "chunk"}):
        assert entry(bench, **change)["cache_directory"] != first, change


def test_a_dataset_chained_twice_is_rejected(bench: Any) -> None:
    first = dataset(bench).values[0]
    with pytest.raises(error(bench), match="chained twice"):
        dataset(bench, previous=first, num_repeats=2)
    assert len(dataset(bench, previous=first, width=64).values[0]["datasets"]) == 2


def test_caching_skips_if_either_of_two_datasets_may_skip(bench: Any) -> None:
    for first, second, together in (("skip", "stop", "skip"), ("stop", "skip", "skip"), ("stop", "stop", "stop")):
        earlier = dataset(bench, on_bad_items=first).values[0]
        assert dataset(bench, on_bad_items=second, previous=earlier, width=64).values[0]["on_bad_items"] == together


@pytest.mark.parametrize(("frames", "fits"), [("1", True), ("2048", True), ("0", False), ("2049", False), ("", False), ("5, x", False)])
def test_window_lengths_at_their_bounds(bench: Any, frames: str, fits: bool) -> None:
    problems = list(bench.part("nodes.dataset").DatasetConfig().validate(bench.host, target_frames=frames))
    assert (not problems) is fits


@pytest.mark.parametrize(("line", "words"), [("a.mp4", "write whole paths"), ("/etc/passwd", "outside the folders")])
def test_a_list_that_points_elsewhere_is_rejected_before_anything_runs(bench: Any, line: str, words: str) -> None:
    listed = bench.home / "list.jsonl"
    listed.write_text(json.dumps({"video_path": line, "caption": "x"}) + "\n", encoding="utf-8")
    with pytest.raises(error(bench), match=words):
        dataset(bench, path=str(listed), source="video JSONL")
    assert not bench.calls


def test_what_needs_no_gpu_runs_beside_what_has_it(bench: Any) -> None:
    follow = bench.part("nodes.jobs.follow")
    assert follow._gpu.acquire(blocking=False)
    try:
        assert dataset(bench).text == "1 item"
    finally:
        follow._gpu.release()


def test_a_job_that_needs_the_gpu_waits_for_its_turn(bench: Any) -> None:
    follow, said = bench.part("nodes.jobs.follow"), []

    def progress(value: float, total: float, text: str, preview: Path | None = None) -> None:
        said.append(text)
        if follow._gpu.locked() and len(said) == 2:
            assert not bench.calls, "it did not wait"
            follow._gpu.release()

    bench.host.progress = progress
    assert follow._gpu.acquire(blocking=False)
    cached(bench, "VAELatentCache")
    assert said[:2] == ["waiting for another job"] * 2 and len(bench.calls) == 1
    assert not follow._gpu.locked()


def test_a_widget_at_its_bound_and_one_beyond(part: Any, bench: Any) -> None:
    spec = part("nodes.spec")
    entry = spec.Input("count", "INT", "How many.", default=4, minimum=2, maximum=8)
    off = spec.Input("size", "INT", "How large.", default=0, minimum=16, maximum=32, off=0)
    node = type("One", (spec.Node,), {"spec": spec.NodeSpec("x", "One", "", "", (entry, off)), "run": None})()

    def refused(**values: Any) -> bool:
        return bool(part("nodes.checks").check(node, bench.host, values))

    assert [refused(count=value) for value in (1, 2, 8, 9, True, 2.0, "2", None)] == [True, False, False, True, True, True, True, True]
    assert [refused(size=value) for value in (0, 15, 16, 32, 33)] == [False, True, False, False, True]


@pytest.mark.parametrize("verdict", [["2 problems:", "- no GPU", "- no ffmpeg"], ["Nothing is wrong."], []])
def test_backend_info_tells_what_is_wrong_from_what_it_saw(part: Any, verdict: list[str]) -> None:
    seen = ["Python:  3.11", "- a folder that is listed", "GPU:     none"]
    assert part("nodes.system")._parts([*(seen if verdict else []), *verdict]) == (seen if verdict else [], verdict)
