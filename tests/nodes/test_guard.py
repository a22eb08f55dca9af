"""Paths and names from widgets: only what lies in the allowed roots, only what is a plain name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    inside = tmp_path / "allowed ルート"
    (inside / "clips").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed ルート secret").mkdir()
    return [inside]


@pytest.fixture
def inside(part: Any, roots: list[Path]) -> Any:
    return lambda text, **more: part("nodes.jobs.guard").inside(text, roots, "path", relative_to=(roots[0],), **more)


def test_paths_inside_are_taken(inside: Any, roots: list[Path]) -> None:
    assert inside("clips") == roots[0] / "clips"
    assert inside(f'"{roots[0] / "clips"}"') == roots[0] / "clips"
    assert inside("clips/../clips") == roots[0] / "clips"
    assert inside("new folder", must_exist=False) == roots[0] / "new folder"


@pytest.mark.parametrize("text", ["../secret", "clips/../../secret", "/etc", "../allowed ルート secret", "/", "clips/../.."])
def test_paths_that_lead_out_are_rejected(inside: Any, part: Any, text: str) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="outside the folders"):
        inside(text)


def test_a_link_that_leads_out_is_rejected(inside: Any, part: Any, roots: list[Path], tmp_path: Path) -> None:
    (roots[0] / "link").symlink_to(tmp_path / "secret", target_is_directory=True)
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="outside the folders"):
        inside("link")
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="outside the folders"):
        inside("link/new", must_exist=False)


@pytest.mark.parametrize("text", ["\\\\server\\share", "//server/share", "\\\\?\\C:\\clips"])
def test_a_server_nobody_allowed_is_rejected_by_its_name(part: Any, roots: list[Path], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **more: looked_at.append(path) or real(path, **more))
    assert not part("nodes.jobs.guard").is_inside(Path(text), roots)
    assert not looked_at, "looking it up on Windows would send it the user's credentials"


@pytest.mark.parametrize("text", ["--output_dir", "-x", "a\0b", "a\nb", "", "   ", "a" * 256, "あ" * 86 + ".png", "a/" * 2500, "a\ud83d"])
def test_what_is_no_path_is_rejected(inside: Any, part: Any, text: str) -> None:
    for must_exist in (True, False):
        with pytest.raises(part("backend.musubi_backend.errors").UserError):
            inside(text, must_exist=must_exist)


def test_a_relative_path_counts_from_the_first_folder_that_has_it(part: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second, second / "clips"):
        folder.mkdir()
    inside = part("nodes.jobs.guard").inside
    assert inside("clips", [tmp_path], "path", relative_to=(first, second)) == second / "clips"
    (first / "clips").mkdir()
    assert inside("clips", [tmp_path], "path", relative_to=(first, second)) == first / "clips"
    assert inside("new", [tmp_path], "path", relative_to=(first, second), must_exist=False) == first / "new"
    assert inside("new", [first, tmp_path], "path", must_exist=False) == first / "new", "else from the first root"


@pytest.mark.parametrize(("text", "folder"), [("/elsewhere/clips/a.mp4", "/elsewhere/clips"), ("/elsewhere/clips", "/elsewhere/clips")])
def test_the_folder_to_allow_is_named(inside: Any, part: Any, text: str, folder: str) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError) as caught:
        inside(text)
    assert f'--allow-root "{folder}")' in str(caught.value) and f"or allow {folder} in" in str(caught.value)


def test_a_root_that_is_a_link_itself_counts_as_its_target(part: Any, tmp_path: Path) -> None:
    (tmp_path / "real" / "clips").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    guard = part("nodes.jobs.guard")
    assert guard.is_inside(tmp_path / "real" / "clips", [tmp_path / "link"])
    assert guard.is_inside(tmp_path / "link" / "clips", [tmp_path / "real"])


ODD_NAMES = ["a/b", "..", "a\\b", "-x", "CON", "con.lora", "Com9.x.y", "x:y", "a\nb", "a\x1fb", "", ".hidden", "end."]
ODD_NAMES += ["nul .lora", "COM\u00b9", "conout$.x", "a\x85b", "a\u2028b", "a\u202egnp.exe", "\u2067a"]


@pytest.mark.parametrize("name", [*ODD_NAMES, "x" * 101, "猫" * 61, "\ud800"])
def test_names_that_are_no_file_names_are_rejected(part: Any, name: str) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError):
        part("nodes.jobs.guard").plain_name(name, "output_name")


@pytest.mark.parametrize("name", ["my lora", "猫のLoRA v1.2", "a'b", "x" * 100, "猫" * 60, "console", "com10", "a\u200d\u05d0\u0301"])
def test_plain_names_are_taken(part: Any, name: str) -> None:
    assert part("nodes.jobs.guard").plain_name(name, "output_name") == name


def test_job_folders_stay_in_the_jobs_folder(part: Any, tmp_path: Path) -> None:
    made = part("nodes.jobs.folder").JobFolder.create(tmp_path, "../Evil Tool")
    assert made.path.parent == tmp_path / "jobs"


def test_what_was_checked_is_what_is_used(inside: Any, roots: list[Path], tmp_path: Path) -> None:
    """`link/..` is the folder of the link for us, and above the link's target for the system."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "clips").mkdir()
    (roots[0] / "link").symlink_to(tmp_path / "elsewhere" / "deep", target_is_directory=True)
    assert inside("link/../clips") == inside(f"{roots[0]}/link/../clips") == roots[0] / "clips"


def test_a_missing_folder_says_what_is_there(inside: Any, part: Any, roots: list[Path]) -> None:
    error = part("backend.musubi_backend.errors").UserError
    (roots[0] / "Holiday 2024").mkdir()
    for text, said in (
        ("clps", "Did you mean clips, in"),
        ("holiday 2024", "Did you mean Holiday 2024"),
        ("xyz/deeper", "Holiday 2024, clips"),
    ):
        with pytest.raises(error, match="does not exist") as caught:
            inside(text)
        assert said in str(caught.value)
