"""The place for a result is tried before the work, and names are counted as the file system counts them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import __main__ as command_line
from musubi_backend import place
from musubi_backend.errors import UserError
from musubi_backend.training import saved_states

TOOLS = {
    "convert_lora": ["--input", "IN", "--target", "other", "--output", "OUT"],
    "lora_post_hoc_ema": ["IN", "IN2", "--output_file", "OUT"],
    "video_convert": ["--input", "IN", "--format", "mp4", "--output", "OUT"],
}


def test_a_training_tries_all_its_names_first(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("猫" * 80, "x" * 230, "é" * 112):
        assert project.refused("long", output_name=name) == 1
        reported = capfd.readouterr().err
        assert "too long" in reported
        assert "bytes" in reported
        assert "create LoRA" not in reported, "nothing was loaded"
    assert not (project.folder / "out" / "long").exists()


def test_the_longest_name_that_is_taken_can_be_saved_and_resumed(project: Any) -> None:
    limit = 255 - max(len(os.fsencode(part)) - 1 for name in saved_states.names_of_run("x") for part in Path(name).parts)
    name = "猫" * (limit // 3)
    out = project.train("fits", "--save_state", output_name=name, save_every_n_steps=1, max_train_steps=2)
    assert (out / f"{name}.safetensors").is_file()
    state = out / f"{name}-step00000001-state"
    project.train("fits", output_name=name, resume=state, max_train_steps=3)
    assert project.refused("fits", output_name=f"{name}猫") == 1


@pytest.mark.parametrize(
    ("folder", "name", "allowed", "over", "is_path"),
    [
        ("/" + "f" * 200, "n" * 58, place.WINDOWS, 1, True),  # 1 + 200 + 1 + 58 = 260
        ("/" + "f" * 200, "n" * 57, place.WINDOWS, 0, False),
        ("/" + "f" * 200, "n" * 58, place.WINDOWS_LONG_PATHS, 0, False),
        ("/f", "n" * 256, place.WINDOWS_LONG_PATHS, 1, False),
        ("/f", "猫" * 86, place.POSIX, 3, False),  # 258 bytes
        ("/f", "猫" * 86, place.WINDOWS, 0, False),
        ("/f", "😀" * 130, place.WINDOWS, 5, False),  # two of UTF-16 each: 260 for the name, 263 for the path
        ("/f", f"{'s' * 250}-state/x", place.POSIX, 1, False),
        ("/" + "/".join(["f" * 99] * 40), "n" * 94, place.POSIX, 0, False),  # 4000 + 95
        ("/" + "/".join(["f" * 99] * 40), "n" * 96, place.POSIX, 2, True),
    ],
)
def test_names_and_paths_are_measured_as_each_system_does(folder: str, name: str, allowed: Any, over: int, is_path: bool) -> None:
    found = place.too_long(Path(folder), ["a", name, "b/c"], allowed)
    assert (found.over, found.is_path) == (over, is_path) if found else over == 0


def test_a_training_and_a_dataset_are_rejected_by_the_limit_of_windows(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(place, "limits", lambda: place.WINDOWS)
    deep = project.folder / "deep" / "deeper"
    name = "x" * (259 - len(str(deep)) - len("/x.safetensors"))
    assert project.refused("unused", output_dir=deep, output_name=name) == 1
    reported = capfd.readouterr().err
    assert "characters too long, 259 are allowed" in reported and "long paths in Windows" in reported and "create LoRA" not in reported
    assert not deep.exists()
    over = place.too_long(deep, saved_states.names_of_run(name), place.WINDOWS).over  # type: ignore[union-attr]
    assert over > len("-step00000001-state/") and str(over) in reported
    assert place.too_long(deep, saved_states.names_of_run(name[:-over]), place.WINDOWS) is None


def test_a_file_in_the_place_of_the_output_folder_is_named(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    in_the_way = project.folder / "taken"
    in_the_way.write_text("x")
    assert project.refused("unused", output_dir=in_the_way / "deep") == 1
    reported = capfd.readouterr().err
    assert f"{in_the_way} is a file" in reported
    assert "create LoRA" not in reported


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_try_their_place(tool: str, project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    out = project.train("lora", max_train_steps=1)
    lora = out / "cat.safetensors"
    (project.folder / "copy.safetensors").write_bytes(lora.read_bytes())
    words = {"IN": str(lora), "IN2": str(project.folder / "copy.safetensors"), "OUT": str(lora / "inside" / "x.safetensors")}
    assert command_line.main([tool, *(words.get(word, word) for word in TOOLS[tool])]) == 1
    reported = capfd.readouterr().err
    assert f"{lora} is a file, so that the folder" in reported
    words["OUT"] = str(project.folder / f"{'猫' * 90}.safetensors")
    assert command_line.main([tool, *(words.get(word, word) for word in TOOLS[tool])]) == 1
    assert "too long" in capfd.readouterr().err


def test_trying_leaves_nothing_and_finds_a_full_disk(small_disk: Path) -> None:
    place.try_folder(small_disk / "new", ["a/b/c.txt"], "here")
    assert [*small_disk.rglob("*")] == [small_disk / "new"]
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(3 << 20))
    with pytest.raises(UserError, match=r"here: nothing can be written into .*there is no space left"):
        place.try_folder(small_disk / "new", ["a"], "here")


def test_an_error_of_the_file_system_is_a_sentence(monkeypatch: pytest.MonkeyPatch, project: Any, capfd: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "/models/cat.safetensors")

    monkeypatch.setattr("musubi_backend.training.train.prepare", refuse)
    assert project.refused("out") == 1
    assert capfd.readouterr().err.splitlines()[-1] == "ERROR: /models/cat.safetensors: Permission denied"


def test_where_nothing_can_be_written_the_folder_is_named_and_what_to_do() -> None:
    error = OSError(errno.EROFS, "Read-only file system", "/runs/a/.state.json.17efb62a.part")
    assert place.in_words(error) == "/runs/a: this folder is read-only: make it writable, then run this again"
