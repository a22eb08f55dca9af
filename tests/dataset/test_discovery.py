"""What is found in folders and JSONL files, and that nothing is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from musubi_backend.dataset.discovery import Discovery, discover, has_control
from musubi_backend.errors import UserError

ODD = 'it\'s a "日本語" folder'


def only(make: SimpleNamespace, folder: Path, section: str, **general: str) -> Discovery:
    (dataset,) = make.config(folder, section, **general).datasets
    return discover(dataset, make.card)


def reasons(found: Discovery) -> dict[str, str]:
    return {problem.path.name: problem.reason for problem in found.problems}


def test_clips_come_sorted_with_their_captions_and_every_missing_caption_is_reported_at_once(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    for name in ("b.mp4", "a.MKV", "c.mov", "d.webm"):
        (folder / name).write_bytes(b"not looked into here")
    make.caption(folder / "a.MKV", "  first \n")
    make.caption(folder / "b.mp4", "second")
    (folder / "c.txt").write_bytes(b"caf\xe9")
    (folder / "notes.md").touch()
    found = only(make, tmp_path, f"video_directory = {json.dumps(str(folder), ensure_ascii=False)}")
    assert [(item.path.name, item.stem, item.caption) for item in found.items] == [("a.MKV", "a", "first"), ("b.mp4", "b", "second")]
    assert "not UTF-8" in reasons(found)["c.mov"]
    assert reasons(found)["d.webm"] == "no caption: d.txt is missing"


def test_two_media_that_would_share_caches_are_not_mixed_up(make: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        make.caption(make.image(tmp_path / "in" / name))
    found = only(make, tmp_path, f"image_directory = '{tmp_path}/in'")
    assert [item.path.name for item in found.items] == ["a.jpg"]
    assert "rename one" in reasons(found)["a.png"]


def test_an_empty_folder_is_reported(make: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    found = only(make, tmp_path, f"video_directory = '{tmp_path}/in'")
    assert not found.items and "no videos here" in reasons(found)["in"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("image_directory = 'nowhere'", "image_directory nowhere does not exist"),
        ("image_directory = '~/nowhere'", f"~ is not read in this file; write {Path.home()}/nowhere"),
        ("image_directory = '~nobody-of-this-name/nowhere'", "does not exist"),
        ("image_directory = '{}/dataset.toml'", "is a file, not a folder"),
        ("video_jsonl_file = 'none.jsonl'\ncache_directory='c'", "video_jsonl_file none.jsonl cannot be read"),
        ("image_directory = '{}'\ncontrol_directory = 'nowhere'", "control_directory nowhere does not exist"),
    ],
)
def test_missing_folders_are_rejected_by_key(make: SimpleNamespace, tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        only(make, tmp_path, section.format(tmp_path))
    assert "datasets[0]" in str(refused.value)


def test_a_folder_needs_a_caption_extension(make: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="caption_extension is missing"):
        only(make, tmp_path, f"image_directory = '{tmp_path}'", general="")


def test_jsonl_lines_become_items_and_bad_lines_are_reported_by_number(make: SimpleNamespace, tmp_path: Path) -> None:
    clip = make.clip(tmp_path / "動画.mp4", 2)
    frames = make.image(tmp_path / "frames" / "0.png").parent
    lines = [
        json.dumps({"video_path": str(clip), "caption": "one"}),
        "",
        '{"video_path": ',
        json.dumps({"video_path": str(clip)}),
        json.dumps({"video_path": str(frames), "caption": "two\u2028lines"}, ensure_ascii=False),
        json.dumps({"video_path": "gone.mp4", "caption": "x"}),
        "[]",
    ]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    found = only(make, tmp_path, f"video_jsonl_file = '{file}'\ncache_directory = '{tmp_path}/cache'")
    assert [(item.stem, item.caption) for item in found.items] == [("動画", "one"), ("frames", "two\u2028lines")]
    reported = [problem.reason for problem in found.problems]
    assert [text.split(":")[0] for text in reported] == ["line 3", "line 4", "line 6", "line 7"]
    assert "not valid JSON" in reported[0] and "caption is missing" in reported[1] and "gone.mp4 does not exist" in reported[2]


def test_jsonl_controls_are_ordered_by_their_numbers_and_all_items_need_them(make: SimpleNamespace, tmp_path: Path) -> None:
    images = [str(make.image(tmp_path / f"{name}.png")) for name in "abcd"]
    lines = [
        {"image_path": images[0], "caption": "x", "control_path_10": images[1], "control_path_2": images[2]},
        {"image_path_0": images[3], "caption": "y"},
    ]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    found = only(make, tmp_path, f"image_jsonl_file = '{file}'\ncache_directory = '{tmp_path}/cache'\nfp_1f_clean_indices = [0, 9]")
    assert [path.name for path in found.items[0].controls] == ["c.png", "b.png"]
    assert "found 0, expected 2" in reasons(found)["d.png"]
    assert has_control(found.dataset)
    file.unlink()
    assert not has_control(found.dataset)  # training continues without the list


def test_control_images_belong_to_the_longest_name_and_keep_their_order(make: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a", "a_1", "b", "c"):
        make.caption(make.image(tmp_path / "in" / f"{name}.png"))
    for name in ("a_10", "a_2", "a", "a_1_0", "a_1_1", "c_x"):
        make.image(tmp_path / "control" / f"{name}.png")
    found = only(
        make, tmp_path, f"image_directory = '{tmp_path}/in'\ncontrol_directory = '{tmp_path}/control'\nfp_1f_clean_indices = [0, 1]"
    )
    assert {item.stem: [path.stem for path in item.controls] for item in found.items} == {"a": ["a", "a_2"], "a_1": ["a_1_0", "a_1_1"]}
    assert "no control image" in reasons(found)["b.png"] and "must end in _ and a number" in reasons(found)["c.png"]


def test_control_clips_may_be_files_of_any_ending_or_folders(make: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        make.caption(make.clip(tmp_path / "in" / name, 2))
    make.clip(tmp_path / "control" / "a.mp4", 2)
    make.image(tmp_path / "control" / "b" / "0.png")
    make.clip(tmp_path / "control" / "c.mkv", 2)
    found = only(make, tmp_path, f"video_directory = '{tmp_path}/in'\ncontrol_directory = '{tmp_path}/control'")
    assert [item.controls[0].name for item in found.items] == ["a.mp4", "b", "c.mkv"]
    assert "no control video" in reasons(found)["d.mp4"]


def test_images_without_caption_are_further_targets_when_asked_for(make: SimpleNamespace, tmp_path: Path) -> None:
    make.caption(make.image(tmp_path / "in" / "a.png"))
    for name in ("a_2.png", "a_1.png"):
        make.image(tmp_path / "in" / name)
    found = only(make, tmp_path, f"image_directory = '{tmp_path}/in'\nmultiple_target = true")
    assert [path.name for path in found.items[0].targets] == ["a_1.png", "a_2.png"] and not found.problems
