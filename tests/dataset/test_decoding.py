"""Pixels out of media: the recorded resizes bit for bit, the right frames, and clear reasons for what cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from musubi_backend.dataset import decoding
from musubi_backend.dataset.ahead import decoded
from musubi_backend.dataset.clips import ClipFrame, frames_of
from musubi_backend.dataset.container import missing_bytes
from musubi_backend.dataset.decoding import decode
from musubi_backend.dataset.discovery import discover
from musubi_backend.dataset.images import fit
from musubi_backend.dataset.items import MediaItem, plan
from musubi_backend.dataset.probe import probe
from musubi_backend.dataset.problems import Problem, UnusableMedium
from PIL import Image
from safetensors.numpy import load_file

BUCKETED = 'resolution = [64, 48]\ncaption_extension = ".txt"\nenable_bucket = true'


def items(make: SimpleNamespace, folder: Path, section: str, **general: str) -> list[MediaItem]:
    (dataset,) = make.config(folder, section, **general).datasets
    found = discover(dataset, make.card)
    assert not found.problems
    return list(found.items)


def test_recorded_resizes_are_matched_bit_for_bit(shared: Path) -> None:
    recorded = load_file(shared / "golden/dataset/resize.safetensors")
    for case in sorted({name.split(".")[0] for name in recorded}):
        width, height = recorded[f"{case}.bucket_wh"].tolist()
        ours = fit(recorded[f"{case}.in"], (width, height))
        assert np.array_equal(ours, recorded[f"{case}.out_np"]) and np.array_equal(ours, recorded[f"{case}.out_pil"])


def test_the_windows_of_a_clip_hold_its_frames(make: SimpleNamespace, tmp_path: Path) -> None:
    make.caption(make.clip(tmp_path / "in" / "it's 日本.mp4", 20))
    (item,) = items(make, tmp_path, f"video_directory = '{tmp_path}/in'\ntarget_frames = [1, 9]\nframe_extraction = 'chunk'")
    entries = decode(item, make.card)
    assert isinstance(entries, list)
    names = [entry.entry.latent_paths(make.card)[0].name for entry in entries]
    assert names[0] == "it's 日本_00000-001_0064x0048_wan.safetensors" and names[-1] == "it's 日本_00009-009_0064x0048_wan.safetensors"
    photo = np.stack(make.pan(20, 64, 48)).astype(float)
    distance = [np.abs(entries[-1].pixels - photo[start : start + 9]).mean() for start in range(12)]
    assert int(np.argmin(distance)) == 9
    facts = probe(item, make.card)
    assert (facts.size, facts.count, facts.fps) == ((64, 48), 20, 16.0)
    assert plan(item, make.card, facts.size, facts.count) == [entry.entry for entry in entries]


def test_only_the_frames_of_windows_are_made_and_nothing_behind_them_is_decoded(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make.clip(tmp_path / "in" / "a.mp4", 40, fps=32)
    make.caption(clip)
    whole = [frame.pixels() for frame in frames_of(clip)]
    made, decoded_frames = [], []
    real = decoding.frames_of

    def counting(path: Path) -> Iterator[ClipFrame]:
        for frame in real(path):
            decoded_frames.append(frame)
            yield frame

    monkeypatch.setattr(decoding, "frames_of", counting)
    monkeypatch.setattr(decoding, "fit", lambda pixels, bucket: made.append(1) or fit(pixels, bucket))
    section = f"video_directory = '{tmp_path}/in'\nsource_fps = 32.0\ntarget_frames = [5]\nframe_extraction = "
    (item,) = items(make, tmp_path, section + "'head'")
    (entry,) = decode(item, make.card)
    assert np.array_equal(entry.pixels, whole[0:10:2])
    assert len(made) == 5 and len(decoded_frames) == 9
    made.clear()
    (item,) = items(make, tmp_path, section + "'uniform'\nframe_sample = 2")
    first, last = decode(item, make.card)
    assert len(made) == 10 and np.array_equal(last.pixels, whole[30:40:2]) and np.array_equal(first.pixels, entry.pixels)


def test_frames_are_resized_to_the_bucket_while_decoding_and_folders_are_clips(make: SimpleNamespace, tmp_path: Path) -> None:
    for number in range(6):
        make.image(tmp_path / "frames" / f"{number:03d}.png", (120, 90), "L" if number else "RGB")
    file = tmp_path / "list.jsonl"
    file.write_text('{"video_path": "%s", "caption": "x"}' % (tmp_path / "frames"))
    (item,) = items(make, tmp_path, f"video_jsonl_file = '{file}'\ncache_directory = '{tmp_path}/c'\ntarget_frames = [5]")
    (entry,) = decode(item, make.card)
    assert entry.pixels.shape == (5, 48, 64, 3) and entry.pixels.dtype == np.uint8
    assert probe(item, make.card).count == 5


def test_images_of_any_mode_become_rgb(make: SimpleNamespace, tmp_path: Path) -> None:
    make.caption(make.image(tmp_path / "in" / "a.png", (80, 64), "RGBA"))
    make.caption(make.image(tmp_path / "in" / "b.png", (50, 90), "P"))
    first, second = items(make, tmp_path, f"image_directory = '{tmp_path}/in'", general=BUCKETED)
    (rgba,) = decode(first, make.card)
    assert rgba.pixels.shape == (1, 48, 64, 3)
    assert rgba.entry.latent_paths(make.card)[0].name == "a_0080x0064_wan.safetensors"
    (palette,) = decode(second, make.card)
    assert palette.pixels.shape == (1, 64, 48, 3)


def test_a_control_clip_is_cut_or_its_last_frame_repeated(make: SimpleNamespace, tmp_path: Path) -> None:
    for name, length in (("a.mp4", 3), ("b.mp4", 30)):
        make.caption(make.clip(tmp_path / "in" / name, 9))
        make.clip(tmp_path / "control" / name, length)
    found = items(make, tmp_path, f"video_directory = '{tmp_path}/in'\ncontrol_directory = '{tmp_path}/control'\ntarget_frames = [9]")
    (short,), (long,) = (decode(item, make.card) for item in found)
    assert short.controls[0].shape == long.controls[0].shape == (9, 48, 64, 3)
    assert np.array_equal(short.controls[0][2], short.controls[0][8])
    assert not np.array_equal(long.controls[0][2], long.controls[0][8])


@pytest.mark.parametrize("damage", ["cut in the middle", "cut without index", "empty", "text", "sound only", "too short"])
def test_each_broken_clip_is_reported_with_its_reason_and_the_others_go_on(make: SimpleNamespace, tmp_path: Path, damage: str) -> None:
    whole = make.clip(tmp_path / "whole.mp4", 60, faststart=damage == "cut in the middle").read_bytes()
    bad = tmp_path / "in" / "bad clip.mp4"
    good = make.clip(tmp_path / "in" / "good.mp4", 9)
    part = whole[: len(whole) * 6 // 10]
    content = {"cut in the middle": part, "cut without index": part, "empty": b"", "text": b"hello " * 99}
    if damage == "sound only":
        write_sound(bad)
    elif damage == "too short":
        make.clip(bad, 3)
    else:
        bad.write_bytes(content[damage])
    make.caption(bad)
    make.caption(good)
    found = items(make, tmp_path, f"video_directory = '{tmp_path}/in'\ntarget_frames = [5]")
    (_, problem), (_, entries) = decoded(found, make.card)
    assert isinstance(entries, list)
    assert isinstance(problem, Problem) and problem.path == bad
    words = {"empty": "0 bytes", "text": "cannot be read", "sound only": "no video", "too short": "3 frames"}
    assert words.get(damage, "cut off") in problem.reason
    if damage != "too short":
        with pytest.raises(UnusableMedium):
            probe(found[0], make.card)


@pytest.mark.parametrize("junk", [b"x" * 500, b"\0" * 500, b"\0\0\xff\xfffree" + b"\0" * 50], ids=["text", "zeros", "half a box"])
def test_what_other_programs_leave_behind_a_whole_clip_does_not_make_it_cut_off(make: SimpleNamespace, tmp_path: Path, junk: bytes) -> None:
    for faststart in (False, True):
        clip = make.clip(tmp_path / f"clip{faststart}.mp4", 9, faststart=faststart)
        clip.write_bytes(clip.read_bytes() + junk)
        assert missing_bytes(clip) == 0


def write_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_broken_images_are_reported_too(make: SimpleNamespace, tmp_path: Path) -> None:
    make.caption(make.image(tmp_path / "in" / "whole.png"))
    content = (tmp_path / "in" / "whole.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "empty.jpg").touch()
    Image.new("RGB", (200, 2)).save(tmp_path / "in" / "thin.png")
    for name in ("cut.png", "empty.jpg", "thin.png"):
        make.caption(tmp_path / "in" / name)
    found = items(make, tmp_path, f"image_directory = '{tmp_path}/in'", general=f"{BUCKETED}\nbucket_no_upscale = true")
    results = {item.path.name: result for item, result in decoded(found, make.card, 3)}
    assert isinstance(results["whole.png"], list)
    assert "cannot be read" in results["cut.png"].reason and "not an image" in results["empty.jpg"].reason
    assert "too small" in results["thin.png"].reason


def test_decoding_runs_ahead_but_never_further_than_allowed(make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        make.caption(make.image(tmp_path / "in" / f"{number:02d}.png"))
    started: list[str] = []
    lock = threading.Lock()
    real = decoding.read_image

    def counting(path: Path, **kwargs: bool) -> np.ndarray:
        with lock:
            started.append(path.name)
        return real(path, **kwargs)

    monkeypatch.setattr(decoding, "read_image", counting)
    seen = []
    for item, _ in decoded(items(make, tmp_path, f"image_directory = '{tmp_path}/in'"), make.card, workers=3):
        seen.append(item.path.name)
        assert len(started) - len(seen) <= 3
    assert seen == sorted(seen) and len(seen) == 12


def test_leaving_early_drops_what_was_queued(make: SimpleNamespace, tmp_path: Path) -> None:
    for number in range(8):
        make.caption(make.image(tmp_path / "in" / f"{number}.png"))
    before = set(threading.enumerate())  # another test's thread may still be ending
    stream = decoded(items(make, tmp_path, f"image_directory = '{tmp_path}/in'"), make.card, workers=2)
    next(stream)
    assert set(threading.enumerate()) - before
    stream.close()
    assert not set(threading.enumerate()) - before
