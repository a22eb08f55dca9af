"""The terminal as a host: model folders, what is printed of a running node, and Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def terminal(part: Any) -> Any:
    return part("headless.terminal")


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_models_are_found_in_the_given_folders_first_then_at_home_then_in_the_demo(part: Any, terminal: Any, tmp_path: Path) -> None:
    given, home = tmp_path / "models", tmp_path / "home"
    names = ("first.safetensors", "second.safetensors", "third.safetensors")
    folders = [given, home / "models", home / "demo" / "models"]
    for number, folder in enumerate(folders):
        for name in names[number:]:
            file(folder / "diffusion_models" / "sub" / name)
    host = terminal.TerminalHost(home, [given])
    assert host.model_names("diffusion_models") == [f"sub/{name}" for name in names]
    for one in (host, host.named("a node")):
        found = [one.model_path("diffusion_models", f"sub\\{name}") for name in names]
        assert [path.parents[2] for path in found] == [given] * 3
    (given / "diffusion_models" / "sub" / "third.safetensors").unlink()
    assert host.model_path("diffusion_models", "sub/third.safetensors").parents[2] == home / "models"
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"none is not in .*diffusion_models or "):
        host.model_path("diffusion_models", "none")
    (home / "config.json").write_text(json.dumps({"allowed_roots": [str(tmp_path / "clips")]}), encoding="utf-8")
    assert {given, home, tmp_path / "clips"} < set(host.allowed_roots())


@pytest.mark.parametrize(
    ("place", "key", "found"),
    [
        ("unet/a.sft", "diffusion_models", ["a.sft"]),
        ("clip/a.PTH", "text_encoders", ["a.PTH"]),
        ("a.safetensors", "diffusion_models", ["a.safetensors"]),
        ("a.safetensors", "vae", ["a.safetensors"]),
        ("a.safetensors", "clip_vision", ["a.safetensors"]),
        ("a.safetensors", "loras", []),
        ("vae/a.txt", "vae", []),
        ("vae/a.pt", "loras", []),
    ],
)
def test_folders_of_older_comfyui_and_without_any_are_known(terminal: Any, tmp_path: Path, place: str, key: str, found: list[str]) -> None:
    file(tmp_path / "given" / place)
    assert terminal.TerminalHost(tmp_path / "home", [tmp_path / "given"]).model_names(key) == found


def test_a_folder_of_its_own_hides_the_loose_files(terminal: Any, tmp_path: Path) -> None:
    file(tmp_path / "given" / "loose.safetensors")
    file(tmp_path / "given" / "vae" / "own.safetensors")
    assert terminal.TerminalHost(tmp_path / "home", [tmp_path / "given"]).model_names("vae") == ["own.safetensors"]


def test_files_of_the_input_folder_are_offered_by_their_ending(terminal: Any, tmp_path: Path) -> None:
    host = terminal.TerminalHost(tmp_path)
    assert host.input_files((".mp4",)) == []
    for name in ("b.MP4", "a.mp4", "c.txt"):
        file(host.input_dir / name)
    (host.input_dir / "folder.mp4").mkdir()
    assert host.input_files((".mp4",)) == ["a.mp4", "b.MP4"]


def test_one_image_is_a_file_and_several_are_a_folder(terminal: Any, tmp_path: Path) -> None:
    import numpy as np

    host, image = terminal.TerminalHost(tmp_path), np.zeros((4, 4, 3), np.uint8)
    one, two = Path(host.images([image], tmp_path / "one")), Path(host.images([image] * 2, tmp_path / "two"))
    assert one.is_file() and two.is_dir() and len(list(two.iterdir())) == 2
    assert host.image_files(one, tmp_path / "x", "start") == [one]
    assert [path.name for path in host.image_files(two, tmp_path / "x", "start")] == ["start_000.png", "start_001.png"]


def test_without_a_terminal_a_line_comes_when_something_new_is_said(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = terminal.Screen(io.StringIO()), [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for seconds, value, total, text in (
        (0, 0, 1, "loading"),
        (1, 1, 1, "loading · 1/1"),
        (0, 1, 9, "training · 1/9"),
        (4, 2, 9, "training · 2/9"),
        (2, 3, 9, "training · 3/9"),
        (1, 4, 9, "training · 4/9"),
        (1, 9, 9, "training · 9/9"),
    ):
        now[0] += seconds
        screen.show("T", value, total, text)
    assert screen.stream.getvalue() == "T  loading\nT  training · 1/9\nT  training · 3/9\nT  training · 9/9\n"


def test_without_a_terminal_another_loss_is_nothing_new(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal.Screen(io.StringIO())
    monkeypatch.setattr(terminal.time, "monotonic", lambda: 100.0)
    for step, text in (
        (1, "loss 0.5 · epoch 1 of 9 · 1/9 · 00:08 left · 1.00it/s"),
        (2, "loss 0.25 · epoch 2 of 9 · 2/9 · 00:07 left · 1.00s/it"),
        (3, "loss 0.25 · saving the state, 2 MB · 3/9"),
    ):
        screen.show("T", step, 9, text)
    assert [line.split(" · ")[1] for line in screen.stream.getvalue().splitlines()] == ["epoch 1 of 9", "saving the state, 2 MB"]


def test_on_a_terminal_each_node_has_one_line_that_changes(terminal: Any) -> None:
    class Live(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = terminal.Screen(Live())
    screen.show("T", 1, 4, "training")
    screen.show("T", 8, 4, "training" + "x" * 200)
    screen.show("U", 0, 0, "waiting")
    screen.line("done")
    screen.line("more")
    lines = screen.stream.getvalue().replace("\r\033[K", "|").split("\n")
    assert lines[0] == f"|T  [{'#' * 6}{'.' * 18}] training|T  [{'#' * 24}] training{'x' * 102}"
    assert lines[1:] == [f"|U  [{'.' * 24}] waiting", "done", "more", ""]


def test_the_first_ctrl_c_cancels_and_the_second_ends_at_once(terminal: Any, tmp_path: Path) -> None:
    host, cancelled, former = terminal.TerminalHost(tmp_path), [], signal.getsignal(signal.SIGINT)
    other = host.named("another node")

    async def story() -> None:
        with host.ctrl_c.calling(lambda: cancelled.append(1)):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            other.check_interrupted()
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
            with pytest.raises(KeyboardInterrupt):
                other.check_interrupted()

    asyncio.run(story())
    assert cancelled == [1] and host.ctrl_c.presses == 2 and signal.getsignal(signal.SIGINT) is former
