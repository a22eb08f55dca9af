"""What the caching verbs do with what is there already, what is gone, what is broken, and a request to stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend import events, job
from musubi_backend.__main__ import main
from musubi_backend.architectures import protocol
from musubi_backend.caching import common, latents
from musubi_backend.caching.settings import CachingSettings
from musubi_backend.dataset.problems import Problem
from musubi_backend.demo.clips import write_clips
from musubi_backend.errors import StopRequested, UserError
from musubi_backend.options.parser import parse
from musubi_backend.weights.safetensors_file import load, save_atomic

Write = Callable[..., Path]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    write_clips(folder, count=3, size=(32, 32), frames=9)
    return folder


@pytest.fixture
def toml(tmp_path: Path, clips: Path, dataset_toml: Write) -> Path:
    return dataset_toml(tmp_path / "d.toml", "video", clips, tmp_path / "cache", resolution=[32, 32], target_frames=[1, 5])


def _latents(toml: Path, models: dict[str, Path], *flags: str) -> int:
    return main(["wan_cache_latents", "--dataset_config", str(toml), "--vae", str(models["vae"]), *flags])


def _text(toml: Path, models: dict[str, Path], *flags: str) -> int:
    return main(["wan_cache_text_encoder_outputs", "--dataset_config", str(toml), "--t5", str(models["t5"]), *flags])


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))}


def test_complete_caches_are_recognised_without_torch(toml: Path, demo_models: dict[str, Path], tmp_path: Path) -> None:
    assert _latents(toml, demo_models) == _text(toml, demo_models) == 0
    before = _times(tmp_path / "cache")
    assert len(before) == 3 * 2 + 3
    tools = {"wan_cache_latents": ["--vae", str(demo_models["vae"])], "wan_cache_text_encoder_outputs": ["--t5", str(demo_models["t5"])]}
    runs = [[tool, "--skip_existing", "--dataset_config", str(toml), *flags] for tool, flags in tools.items()]
    script = (
        "import sys; from musubi_backend.__main__ import main\n"
        f"assert [main(words) for words in {runs!r}] == [0, 0]\n"
        "loaded = {'torch', 'cv2', 'transformers', 'diffusers', 'safetensors'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    _python(script)
    assert _times(tmp_path / "cache") == before


def test_skip_existing_makes_what_is_missing_damaged_or_changed(
    toml: Path, demo_models: dict[str, Path], tmp_path: Path, clips: Path
) -> None:
    assert _latents(toml, demo_models) == _text(toml, demo_models) == 0
    cache = tmp_path / "cache"
    before = _times(cache)
    missing = cache / "chelsea_00000-005_0032x0032_wan.safetensors"
    missing.unlink()
    damaged = cache / "coffee_wan_te.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    (clips / "astronaut.txt").write_text("another caption", encoding="utf-8")
    assert _latents(toml, demo_models, "--skip_existing") == _text(toml, demo_models, "--skip_existing") == 0
    changed = {name for name, time in _times(cache).items() if before[name] != time}
    assert changed == {
        "chelsea_00000-001_0032x0032_wan.safetensors", missing.name, damaged.name, "astronaut_wan_te.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_caches_of_removed_items_are_removed_or_kept(
    keep: bool, toml: Path, demo_models: dict[str, Path], tmp_path: Path, clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _latents(toml, demo_models) == _text(toml, demo_models) == 0
    foreign = tmp_path / "cache" / "chelsea_00000-005_0032x0032_hv.safetensors"
    foreign.write_bytes(b"of another architecture")
    for name in ("chelsea.mp4", "chelsea.txt"):
        (clips / name).unlink()
    flags = ["--skip_existing", *(["--keep_cache"] if keep else [])]
    assert _latents(toml, demo_models, *flags) == _text(toml, demo_models, *flags) == 0
    left = [path.name for path in (tmp_path / "cache").glob("chelsea*_wan*")]
    wording = "Keep cache file not in the dataset: " if keep else "Removed old cache file: "
    assert len(left) == (3 if keep else 0)
    assert capfd.readouterr().err.count(wording) == 3
    assert foreign.exists()


def test_a_broken_clip_is_reported_while_the_others_are_cached(
    toml: Path, demo_models: dict[str, Path], tmp_path: Path, clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (clips / "chelsea.mp4").read_bytes()
    (clips / "chelsea.mp4").write_bytes(whole[: len(whole) // 2])
    old = tmp_path / "cache" / "gone_00000-005_0032x0032_wan.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"old")
    for flags in ([], ["--skip_existing"]):
        assert _latents(toml, demo_models, *flags) == 1
        errors = capfd.readouterr().err
        assert "ERROR: 1 item of the dataset cannot be used:" in errors
        assert str(clips / "chelsea.mp4") in errors
        assert len(list((tmp_path / "cache").glob("*_wan.safetensors"))) == 2 * 2 + 1
    assert old.exists(), "with an unreadable item it is not known which caches are old"
    (clips / "chelsea.mp4").write_bytes(whole)
    assert _latents(toml, demo_models, "--skip_existing") == 0
    assert not old.exists()


def test_other_files_beside_the_caches_stay(toml: Path, demo_models: dict[str, Path], tmp_path: Path) -> None:
    others = [tmp_path / "cache" / name for name in ("style_wan.safetensors", "gone_0032x0032_qi.safetensors", "notes.txt")]
    gone = tmp_path / "cache" / "gone_00000-005_0032x0032_wan.safetensors"
    gone.parent.mkdir()
    for path in (*others, gone):
        path.write_bytes(b"mine")
    assert _latents(toml, demo_models) == 0
    assert not gone.exists() and all(path.read_bytes() == b"mine" for path in others)


def test_a_full_disk_is_named_and_what_was_cached_is_whole(
    clips: Path, demo_models: dict[str, Path], small_disk: Path, dataset_toml: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    toml = dataset_toml(tmp_path / "d.toml", "video", clips, small_disk / "cache", resolution=[32, 32], target_frames=[1, 5])
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 16384))
    assert _latents(toml, demo_models) == 1
    assert "Is the disk full" in (errors := capfd.readouterr().err) and "Traceback" not in errors
    written = list((small_disk / "cache").glob("*.safetensors"))
    assert all(load(path) for path in written) and not [path for path in written if path.name.startswith(".")]
    (small_disk / "filler").unlink()
    assert _latents(toml, demo_models, "--skip_existing") == 0
    assert len(list((small_disk / "cache").glob("*.safetensors"))) == 6


def test_a_missing_caption_is_rejected_before_a_model_is_opened(
    toml: Path, clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (clips / "coffee.txt").unlink()
    not_a_model = tmp_path / "vae.safetensors"
    save_atomic({"of no known model": torch.zeros(1)}, not_a_model)
    assert _latents(toml, {"vae": not_a_model}) == 1
    errors = capfd.readouterr().err
    assert "coffee.txt is missing" in errors
    assert "vae.safetensors" not in errors


def test_a_wrong_vae_is_rejected_by_name(
    toml: Path, demo_models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _latents(toml, {"vae": demo_models["dit"]}) == 1
    assert "is a Wan transformer" in (errors := capfd.readouterr().err)
    assert "--vae expects a Wan VAE" in errors
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("flags", "advice"), [(["--skip_existing"], " (run again to continue)"), ([], "; run again with --skip_existing to continue")]
)
def test_a_stop_request_keeps_what_is_finished(
    flags: list[str], advice: str, toml: Path, demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes after the first item; the caches written by then are complete and are found by --skip_existing."""
    words = ["--dataset_config", str(toml), "--vae", str(demo_models["vae"]), "--batch_size", "1", *flags]
    args: Namespace = parse("wan_cache_latents", words)
    finished = common.Progress.item_done

    def stop_after_one(progress: common.Progress) -> None:
        finished(progress)
        job.request_stop()

    monkeypatch.setattr(common.Progress, "item_done", stop_after_one)
    try:
        with pytest.raises(StopRequested, match="1 of 3 items are cached") as stopped:
            latents.run(args, protocol.load("wan"))
        assert stopped.value.summary == f"1 of 3 items are cached{advice}"
    finally:
        job._stop.clear()
    monkeypatch.undo()
    written = _times(tmp_path / "cache")
    assert len(written) == 2
    assert _latents(toml, demo_models, "--skip_existing") == 0
    assert len(after := _times(tmp_path / "cache")) == 6
    assert written.items() <= after.items()


def test_how_far_it_is_is_told_again_once_the_encoder_is_loaded(
    toml: Path, demo_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded while clips are decoded, and the first item of a real model takes minutes."""
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    architecture = protocol.load("wan")
    load, log = type(architecture).latent_encoder, tmp_path / events.FILE_NAME

    def load_late(self: Any, device: torch.device) -> Any:
        while events.Progress.kind not in log.read_text(encoding="utf-8"):
            time.sleep(0.01)
        return load(self, device)

    monkeypatch.setattr(type(architecture), "latent_encoder", load_late)
    latents.run(parse("wan_cache_latents", ["--dataset_config", str(toml), "--vae", str(demo_models["vae"])]), architecture)
    told = [event for event in events.Reader().feed(log.read_bytes()) if isinstance(event, events.Phase | events.Progress)]
    loaded = max(place for place, event in enumerate(told) if isinstance(event, events.Phase))
    assert told[loaded - 1].text == "loading the VAE" and told[loaded].text == "encoding the dataset"
    assert told[loaded + 1] == events.Progress(0, 3, "", time=told[loaded + 1].time, clock=told[loaded + 1].clock)


@pytest.mark.parametrize("name", ["猫の 動画's [1]", 'a "quoted" & 100% folder', "--looks-like-a-flag"])
def test_paths_of_every_kind(name: str, clips: Path, demo_models: dict[str, Path], tmp_path: Path, dataset_toml: Write) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for suffix in (".mp4", ".txt"):
        shutil.copy(clips / f"coffee{suffix}", folder / f"{name}{suffix}")
    toml = dataset_toml(folder / "d.toml", "video", folder, folder / "cache", resolution=[32, 32], target_frames=[5])
    vae, t5 = folder / "vae.safetensors", folder / "t5.safetensors"
    shutil.copy(demo_models["vae"], vae)
    shutil.copy(demo_models["t5"], t5)
    assert _latents(toml, {"vae": vae}) == _text(toml, {"t5": t5}) == 0
    assert sorted(path.name for path in (folder / "cache").glob("*.safetensors")) == sorted(
        [f"{name}_00000-005_0032x0032_wan.safetensors", f"{name}_wan_te.safetensors"]
    )


def test_progress_has_a_total(toml: Path, demo_models: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert _latents(toml, demo_models) == 0
    errors = capfd.readouterr().err
    assert "3/3 [" in errors
    assert "Encoding dataset [0]" in errors


def test_batches_give_what_single_items_give(toml: Path, demo_models: dict[str, Path], tmp_path: Path) -> None:
    results = []
    for size in ("1", "3"):
        assert _latents(toml, demo_models, "--batch_size", size, "--vae_dtype", "float32") == 0
        results.append({path.name: load(path)["latents_2x4x4_float32"] for path in (tmp_path / "cache").glob("*-005_*")})
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-5, atol=1e-5)


def test_every_problem_is_listed() -> None:
    with pytest.raises(UserError, match="2 items of the dataset") as refused:
        common.report([Problem(Path("a.mp4"), "x"), Problem(Path("b.mp4"), "y")], "", CachingSettings(on_bad_items="stop"))
    assert "a.mp4: x" in str(refused.value)
    assert "b.mp4: y" in str(refused.value)


def _python(script: str) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry.endswith("backend"))
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_skipped_items_are_named_and_all_others_cached(
    toml: Path, demo_models: dict[str, Path], tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "broken.mp4").write_bytes(b"no clip")
    (clips / "broken.txt").write_text("a clip", encoding="utf-8")
    (clips / "silent.mp4").write_bytes(next(clips.glob("c*.mp4")).read_bytes())  # without a caption
    assert _latents(toml, demo_models) == 1
    assert _latents(toml, demo_models, "--on_bad_items", "skip") == 0
    said = capsys.readouterr().err
    assert "Skipped, as --on_bad_items says" in said and "broken.mp4: the video cannot be read" in said
    assert len(list((tmp_path / "cache").glob("*_wan.safetensors"))) == 3 * 2


@pytest.mark.parametrize("tool", [_latents, _text])
def test_a_cache_folder_that_cannot_be_written_is_reported_before_the_encoder_is_loaded(
    tool: Callable[..., int],
    clips: Path,
    tmp_path: Path,
    dataset_toml: Write,
    demo_models: dict[str, Path],
    unwritable: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, words = unwritable
    architecture = protocol.load("wan")
    for loader in ("latent_encoder", "text_encoder"):
        monkeypatch.setattr(type(architecture), loader, lambda *_: pytest.fail("the encoder is loaded"))
    toml = dataset_toml(tmp_path / "d.toml", "video", clips, folder, resolution=[32, 32], target_frames=[1, 5])
    assert tool(toml, demo_models) == 1
    assert f"cache_directory {folder}: " in (reported := capfd.readouterr().err.splitlines()[-1]) and words in reported
