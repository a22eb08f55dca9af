"""A result that ComfyUI keeps holds for itself: by its files, and by what its node looked at, also over links."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    return part("headless.terminal").TerminalHost(tmp_path)


@pytest.fixture
def kept(part: Any, host: Any) -> Any:
    """Remembers a result of Dataset Config at a place, as a run would."""
    reuse, node, result = part("nodes.reuse"), part("nodes.dataset").DatasetConfig(), part("nodes.spec").Result
    results = reuse.KeptResults()

    class Kept:
        def run(self, place: str, path: Path, *files: Path, prompt: str = "prompt 1") -> None:
            inputs = {entry.name: entry.default for entry in node.spec.inputs if entry.is_widget}
            before = reuse.Kept.before(node, host, {**inputs, "path": str(path), "previous": None})
            results.remember(place, prompt, before.after(result((), files=files)))

        def generation(self, place: str) -> int:
            return int(results.generation(place, host))

    return Kept()


@pytest.fixture
def clips(host: Any) -> Path:
    folder: Path = host.input_dir / "clips"
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"clip a")
    return folder


def test_deleting_one_result_leaves_the_others(kept: Any, clips: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.mp4", tmp_path / "other.mp4"
    for video in (one, other):
        video.write_bytes(b"video")
    kept.run("workflow 1", clips, one)
    kept.run("workflow 2", clips, other, prompt="prompt 2")
    assert (kept.generation("workflow 1"), kept.generation("workflow 2")) == (0, 0)
    one.unlink()
    assert (kept.generation("workflow 1"), kept.generation("workflow 2")) == (1, 0)
    one.write_bytes(b"video")
    kept.run("workflow 1", clips, one, prompt="prompt 3")
    assert (kept.generation("workflow 1"), kept.generation("workflow 2")) == (1, 0)


def test_a_file_that_another_run_replaced_does_not_count(kept: Any, clips: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"first")
    kept.run("first training", clips, lora)
    lora.write_bytes(b"later")
    kept.run("second training", clips, lora, prompt="prompt 2")
    assert (kept.generation("first training"), kept.generation("second training")) == (1, 0)


def test_what_is_behind_a_link_is_looked_at_again(kept: Any, clips: Path) -> None:
    kept.run("linked path", clips)
    assert kept.generation("linked path") == 0
    (clips / "b.mp4").write_bytes(b"clip b")
    assert kept.generation("linked path") == 1
    kept.run("linked path", clips, prompt="prompt 2")
    clip, time = clips / "a.mp4", (clips / "a.mp4").stat().st_mtime_ns
    clip.write_bytes(b"other!")  # of the same size, and with the old time
    os.utime(clip, ns=(time, time))
    assert kept.generation("linked path") == 2
    kept.run("linked path", clips, prompt="prompt 3")
    for file in clips.iterdir():
        file.unlink()
    clips.rmdir()
    assert kept.generation("linked path") == 3


def test_frames_of_a_clip_in_a_list_are_looked_at(part: Any, host: Any, clips: Path) -> None:
    frames = clips / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(b"one")
    jsonl = clips / "list.jsonl"
    jsonl.write_text(json.dumps({"video_path": str(frames), "caption": "x"}))
    node = part("nodes.dataset").DatasetConfig()
    before = node.fingerprint(host, path=str(jsonl), source="video JSONL")
    assert node.fingerprint(host, path=str(jsonl), source="video JSONL") == before
    (frames / "0.png").write_bytes(b"two")
    assert node.fingerprint(host, path=str(jsonl), source="video JSONL") != before


def test_caching_beside_the_media_changes_nothing(kept: Any, clips: Path) -> None:
    kept.run("caches next to media", clips)
    for name in ("a_wan.safetensors", "cache_sources.json", ".cache_sources.json.lock"):
        (clips / name).write_bytes(b"x")
    assert kept.generation("caches next to media") == 0


def test_every_item_of_a_list_counts(kept: Any, clips: Path, tmp_path: Path) -> None:
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for video in videos:
        video.write_bytes(b"video")
        kept.run("list", clips, video)
    videos[0].unlink()
    assert kept.generation("list") == 1


def test_a_place_is_the_node_with_everything_before_it(part: Any) -> None:
    place_of = part("nodes.reuse").place_of

    def place(text: str, seed: int, ids: tuple[str, str] = ("1", "2"), output: int = 0) -> str:
        prompt = {
            ids[0]: {"class_type": "Text", "inputs": {"text": text}},
            ids[1]: {"class_type": "Generator", "inputs": {"seed": seed, "prompt": [ids[0], output]}, "is_changed": [1]},
        }
        return str(place_of(ids[1], prompt.__getitem__))

    assert place("a dog", 1) == place("a dog", 1, ids=("7", "9"))
    assert len({place("a dog", 1), place("a cat", 1), place("a dog", 2), place("a dog", 1, output=1)}) == 4
