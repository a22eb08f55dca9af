"""The tool that tells a person, and the nodes, what a dataset file comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.dataset.config import parse_config
from musubi_backend.tools.inspect_dataset import inspect


def test_places_are_reported_without_looking_into_them(tmp_path: Path) -> None:
    config, output = tmp_path / "d.toml", tmp_path / "places.json"
    config.write_text(
        "[[datasets]]\nvideo_directory = '/nowhere/clips'\n[[datasets]]\nimage_jsonl_file = 'x.txt'\ncache_directory = '/nowhere/c'\n"
    )
    assert main(["inspect_dataset", "--dataset_config", str(config), "--output", str(output), "--places_only"]) == 0
    video, image = json.loads(output.read_text())["datasets"]
    assert (video["source"], video["cache_directory"]) == ("/nowhere/clips", "/nowhere/clips")
    assert (image["source"], image["cache_directory"]) == (str(Path("x.txt").absolute()), "/nowhere/c")


def test_windows_buckets_caches_and_everything_unusable_are_listed(make: SimpleNamespace, tmp_path: Path) -> None:
    clips, images = tmp_path / "clips 日本", tmp_path / "images"
    for name, length in (("long.mp4", 33), ("short.mp4", 10), ("tiny.mp4", 3)):
        make.caption(make.clip(clips / name, length))
    make.clip(clips / "mute.mp4", 2)
    (clips / "broken.mp4").write_bytes(b"x" * 100)
    make.caption(clips / "broken.mp4")
    make.caption(make.image(images / "a.png"))
    cache = tmp_path / "cache"
    latents = {"latents": torch.zeros(16, 3, 6, 8)}
    save_latents(cache / "long_00000-009_0064x0048_wan.safetensors", latents, make.card, width=64, height=48, frame_count=9)
    save_text(cache / "short_wan_te.safetensors", {"varlen_t5": torch.zeros(1, 4)}, make.card, caption="a pan over a photo")
    config = make.config(
        tmp_path,
        f"video_directory = '{clips}'\ncache_directory = '{cache}'\ntarget_frames = [9, 25]\nframe_extraction = 'chunk'\nnum_repeats = 2",
        f"image_directory = '{images}'",
    )
    report = inspect(config, make.card)
    assert report["summary"] == "2 datasets: 1 image, 2 videos, 5 windows, 3 not usable"
    video, image = report["datasets"]
    assert {problem["path"].rsplit("/", 1)[1] for problem in video["problems"]} == {"tiny.mp4", "mute.mp4", "broken.mp4"}
    long, short = video["items"]
    assert long["windows"] == [(0, 9), (9, 9), (18, 9), (0, 25)] and long["latents_cached"] == 1 and not long["text_cached"]
    assert short["windows"] == [(0, 9)] and short["too_short_for"] == (25,) and short["text_cached"]
    assert video["buckets"] == [{"size": (64, 48), "frames": 25, "count": 2}, {"size": (64, 48), "frames": 9, "count": 8}]
    assert image["items"][0]["bucket"] == (64, 48) and image["source"] == str(images)
    again = parse_config({"datasets": [video["table"], image["table"]]})
    assert [(one.resolution, one.num_repeats, one.caption_extension, one.cache_folder) for one in again] == [
        ((64, 48), 2, ".txt", cache),
        ((64, 48), 1, ".txt", images),
    ]
    assert all(
        getattr(again[0], key) == getattr(config.datasets[0], key) for key in ("target_frames", "frame_extraction", "video_directory")
    )
    for reported in ("mute.txt is missing", "3 frames", "short.mp4: 10 frames, no window of 25"):
        assert reported in report["text"]


def test_the_tool_writes_json_and_needs_no_torch(make: SimpleNamespace, tmp_path: Path) -> None:
    make.caption(make.clip(tmp_path / "in" / "a.mp4", 9))
    make.config(tmp_path, f"video_directory = '{tmp_path}/in'\ntarget_frames = [9]")
    output = tmp_path / "report.json"
    program = (
        "import sys; from musubi_backend.__main__ import main\n"
        f"code = main(['inspect_dataset', '--dataset_config', {str(tmp_path / 'dataset.toml')!r}, '--output', {str(output)!r}])\n"
        "assert 'torch' not in sys.modules and 'cv2' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(Path(main.__code__.co_filename).parents[1])})
    assert json.loads(output.read_text(encoding="utf-8"))["datasets"][0]["items"][0]["windows"] == [[0, 9]]


def test_a_wrong_file_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "d.toml"
    config.write_text("[[datasets]]\nvideo_directory = 'nowhere'\ncaption_extension = '.txt'\n")
    assert main(["inspect_dataset", "--dataset_config", str(config)]) == 1
    assert "video_directory nowhere does not exist" in capsys.readouterr().err


def test_a_text_cache_without_all_of_its_tensors_does_not_count(make: SimpleNamespace, tmp_path: Path) -> None:
    """HunyuanVideo has two text encoders; the preview says what caching would do."""
    from musubi_backend.architectures import cards

    card = cards()["hv"]
    make.caption(make.image(tmp_path / "images" / "a.png"))
    config = make.config(tmp_path, f"image_directory = '{tmp_path / 'images'}'")
    half = {"llm": torch.zeros(1, 4), "llm_mask": torch.ones(1, dtype=torch.bool)}
    save_text(tmp_path / "images" / "a_hv_te.safetensors", half, card, caption="a pan over a photo")
    assert not inspect(config, card)["datasets"][0]["items"][0]["text_cached"]
    whole = {**half, "clipL": torch.zeros(4), "clipL_mask": torch.ones(1, dtype=torch.bool)}
    save_text(tmp_path / "images" / "a_hv_te.safetensors", whole, card, caption="a pan over a photo")
    assert inspect(config, card)["datasets"][0]["items"][0]["text_cached"]
