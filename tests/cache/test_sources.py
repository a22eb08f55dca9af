"""What caches were made from is noted next to them, and noticed when it changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from musubi_backend import content
from musubi_backend.caching.sources import Made, Sources
from musubi_backend.content import RECORD

SETTINGS = {"vae": "0123", "vae_dtype": None, "source_fps": 24.0}


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., Made]:
    """A clip with a control clip and its cache, noted. Returns what the cache would be made from now."""
    (tmp_path / "clip.mp4").write_bytes(b"clip one" * 1000)
    (tmp_path / "control.mp4").write_bytes(b"control" * 1000)
    cache = tmp_path / "cache" / "clip_wan.safetensors"
    cache.parent.mkdir()
    cache.write_bytes(b"latents")

    def now(**settings: object) -> Made:
        media = Sources(cache.parent).media([tmp_path / "clip.mp4", tmp_path / "control.mp4"])
        return Made(media, {**SETTINGS, **settings})

    sources = Sources(cache.parent)
    sources.made("clip_wan", [cache], Made(sources.media([tmp_path / "clip.mp4", tmp_path / "control.mp4"]), SETTINGS))
    sources.save()
    return now


def problem(folder: Path, made: Made) -> str | None:
    return Sources(folder / "cache").problem("clip_wan", [folder / "cache" / "clip_wan.safetensors"], made)


def same_size_and_time(path: Path, data: bytes) -> None:
    """What `cp -p` of another file of the same size and time does."""
    before = path.stat()
    assert len(data) == before.st_size
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_what_was_not_touched_is_good_and_other_settings_are_not(tmp_path: Path, cached: Callable[..., Made]) -> None:
    assert problem(tmp_path, cached()) is None
    assert problem(tmp_path, cached(vae="4567")) == "another vae"
    assert problem(tmp_path, cached(vae_dtype="float16", source_fps=None)) == "another source_fps, vae_dtype"
    assert problem(tmp_path, cached(a_setting_of_a_later_version=1)) is None


@pytest.mark.parametrize(("name", "reason"), [("clip.mp4", "the image or clip has changed"), ("control.mp4", "control or target")])
def test_a_medium_of_the_same_name_size_and_time_is_noticed(tmp_path: Path, cached: Callable[..., Made], name: str, reason: str) -> None:
    data = (tmp_path / name).read_bytes()
    same_size_and_time(tmp_path / name, data[:4000] + b"#" + data[4001:])
    assert reason in (problem(tmp_path, cached()) or "")


def test_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with film.open("wb") as file:
        file.truncate(5 * 2**20)
    before = content.look([film])
    with film.open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"#")
    os.utime(film, ns=(1, 1))
    assert content.look([film], before).digest != before.digest


def test_restored_moved_and_touched_files_are_the_same(tmp_path: Path, cached: Callable[..., Made]) -> None:
    for name in ("clip.mp4", "cache/clip_wan.safetensors"):
        shutil.copyfile(tmp_path / name, tmp_path / "backup")
        (tmp_path / "backup").replace(tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    made = cached()
    assert problem(tmp_path, made) is None
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("clip.mp4", "control.mp4", "cache"):
        (tmp_path / name).rename(moved / name)
    sources = Sources(moved / "cache")
    assert Made(sources.media([moved / "clip.mp4", moved / "control.mp4"]), SETTINGS) == made
    assert sources.problem("clip_wan", [moved / "cache" / "clip_wan.safetensors"], made) is None
    sources.save()
    noted = json.loads((moved / "cache" / RECORD).read_text())
    assert str(moved / "clip.mp4") in noted["media"]  # so that it is not read the next time


def test_a_folder_of_frames_and_a_link_are_looked_into(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.png").write_bytes(b"image")
    link = tmp_path / "link.png"
    link.symlink_to(frames / "0.png")
    before = Sources(tmp_path).media([frames, link])
    (frames / "notes.txt").write_text("no frame")
    assert Sources(tmp_path).media([frames, link]) == before
    same_size_and_time(frames / "0.png", b"other")
    after = Sources(tmp_path).media([frames, link])
    assert after[0] != before[0] and after[1] != before[1]


def test_caches_without_notes_and_rewritten_ones_are_taken_as_they_are(tmp_path: Path, cached: Callable[..., Made]) -> None:
    cache = tmp_path / "cache" / "clip_wan.safetensors"
    cache.write_bytes(b"other latents")
    sources = Sources(cache.parent)
    assert sources.problem("clip_wan", [cache], cached(vae="4567")) is None and not sources.known("clip_wan", [cache])
    assert sources.problem("other_wan", [cache], cached()) is None and not sources.known("other_wan", [cache])


def test_what_a_killed_process_began_is_cached_again(tmp_path: Path, cached: Callable[..., Made]) -> None:
    script = (
        "import os, sys; from pathlib import Path; from musubi_backend.caching.sources import Sources\n"
        "folder = Path(sys.argv[1]); Sources(folder).begin(['clip_wan', 'new_wan'])\n"
        "(folder / 'clip_wan.safetensors').write_bytes(b'latents of another clip'); (folder / 'new_wan.safetensors').write_bytes(b'new')\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], check=False).returncode == 9
    assert problem(tmp_path, cached()) == "caching was interrupted"
    new = tmp_path / "cache" / "new_wan.safetensors"
    sources = Sources(tmp_path / "cache")
    assert sources.problem("new_wan", [new], cached()) == "caching was interrupted"
    sources.made("new_wan", [new], cached())
    sources.save()
    assert Sources(tmp_path / "cache").problem("new_wan", [new], cached()) is None


def test_several_processes_lose_no_notes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from musubi_backend.caching.sources import Made, Sources\n"
        "folder, who = Path(sys.argv[1]), sys.argv[2]\n"
        "sources = Sources(folder)\n"
        "for number in range(15):\n"
        "    path = folder / f'{who}{number}_wan.safetensors'; path.write_bytes(b'x')\n"
        "    sources.begin([path.stem]); sources.made(path.stem, [path], Made((who,), {'vae': who})); sources.save()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), who]) for who in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    noted = json.loads((tmp_path / RECORD).read_text())
    assert sorted(noted["items"]) == sorted(f"{who}{number}_wan" for who in "abc" for number in range(15))
    assert not any(item.get("unfinished") for item in noted["items"].values())


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    clip = tmp_path / os.fsdecode(b"cl\xefp \xe7\x8c\xab.mp4")
    cache = clip.with_name(f"{clip.stem}_wan.safetensors")
    for path in (clip, cache):
        path.write_bytes(b"x")
    sources = Sources(tmp_path)
    sources.begin([cache.stem])
    made = Made(sources.media([clip]), SETTINGS)
    sources.made(cache.stem, [cache], made)
    sources.save()
    assert Sources(tmp_path).known(cache.stem, [cache]) and Sources(tmp_path).problem(cache.stem, [cache], made) is None


def test_notes_on_what_was_deleted_are_dropped(tmp_path: Path, cached: Callable[..., Made]) -> None:
    (tmp_path / "cache" / "clip_wan.safetensors").unlink()
    other = tmp_path / "cache" / "other_wan.safetensors"
    other.write_bytes(b"x")
    sources = Sources(tmp_path / "cache")
    sources.made("other_wan", [other], Made((), {"t5": "1"}))
    sources.save()
    noted = json.loads((tmp_path / "cache" / RECORD).read_text())
    assert list(noted["items"]) == ["other_wan"] and list(noted["settings"].values()) == [{"t5": "1"}] and not noted["media"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"items": {"clip_wan": 1}, "settings": {}, "media": {}}',
    '{"items": {"clip_wan": {"files": {"clip_wan.safetensors": 3}, "media": [], "settings": "x"}}, "settings": {}, "media": {}}',
    '{"items": {"clip_wan": {}}, "settings": {}, "media": {}}', '{"items": {}, "settings": {}, "media": {"a": 1}}'])  # fmt: skip
def test_damaged_notes_are_as_none(tmp_path: Path, cached: Callable[..., Made], text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache" / RECORD).write_text(text)
    assert problem(tmp_path, cached(vae="4567")) is None
    assert RECORD in caplog.text


def test_untouched_items_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1_000
    (tmp_path / "media").mkdir()
    caches = tmp_path / "cache"
    caches.mkdir()
    sources = Sources(caches)
    for number in range(count):
        for path in (tmp_path / "media" / f"{number}.png", caches / f"{number}_wan.safetensors"):
            path.write_bytes(b"%d" % number)
    for number in range(count):
        made = Made(sources.media([tmp_path / "media" / f"{number}.png"]), SETTINGS)
        sources.made(f"{number}_wan", [caches / f"{number}_wan.safetensors"], made)
    sources.save()
    read: list[Path] = []
    monkeypatch.setattr(content, "_hash", read.append)
    sources = Sources(caches)
    for number in range(count):
        made = Made(sources.media([tmp_path / "media" / f"{number}.png"]), SETTINGS)
        assert sources.problem(f"{number}_wan", [caches / f"{number}_wan.safetensors"], made) is None
    assert not read
