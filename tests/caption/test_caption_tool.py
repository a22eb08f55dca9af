"""Captioning a folder from end to end: formats, resuming, kills, bad files, wrong arguments."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.__main__ import main
from musubi_backend.dataset.jsonl import read_records
from musubi_backend.tools import caption

from .conftest import PHOTOS, SEEN

Caption = Callable[..., str]
Start = Callable[..., "subprocess.Popen[str]"]
COUNT = 44


@pytest.fixture
def many(photos: Path) -> Path:
    """So many photographs that a run takes a while."""
    for number in range(COUNT - len(PHOTOS)):
        (photos / f"more_{number:02d}.png").write_bytes((photos / "rocket.png").read_bytes())
    return photos


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    while not file.is_file() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        time.sleep(0.01)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def described(file: Path) -> dict[str, str]:
    return {Path(record["image_path"]).stem: record["caption"] for record in lines(file)}


def test_a_folder_becomes_lists_that_datasets_read(photos: Path, clip: Path, caption: Caption, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"not an image")
    said = caption(photos, "--output_file", str(tmp_path / "out" / "captions.jsonl"), "--batch_size", "3")
    assert "broken.png: this is not an image" in said and "5 captions written" in said
    assert described(tmp_path / "out" / "captions.jsonl") == SEEN
    assert lines(tmp_path / "out" / "captions_videos.jsonl") == [{"video_path": str(clip), "caption": SEEN["coffee"]}]
    assert len(read_records(tmp_path / "out" / "captions.jsonl", "image")[0]) == 4
    assert len(read_records(tmp_path / "out" / "captions_videos.jsonl", "video")[0]) == 1


def test_text_files_are_written_beside_and_existing_ones_kept(photos: Path, caption: Caption) -> None:
    (photos / "coffee.txt").write_text("my own words", encoding="utf-8")
    (photos / "rocket.txt").write_text("  \n", encoding="utf-8")
    caption(photos, "--output_format", "text", "--fp8_vl", "--media", "images")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in photos.glob("*.txt")}
    assert texts == {**SEEN, "coffee": "my own words"}


def test_a_second_run_keeps_what_is_there_and_needs_no_model(photos: Path, caption_process: Start, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    records = [{"image_path": str(photos / f"{name}.png"), "caption": f"mine, {name}", "note": 1} for name in PHOTOS]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    before = file.read_bytes()
    said = caption_process(photos, "--output_file", str(file), env={"PYTHONPROFILEIMPORTTIME": "1"}).communicate()[1]
    assert "0 captions written, 4 kept" in said
    assert file.read_bytes() == before
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "musubi_backend" in imported and not imported & {"torch", "transformers", "numpy"}, "nothing to do, yet it loaded libraries"


def test_overwriting_replaces_captions_and_keeps_the_rest_of_their_lines(photos: Path, caption: Caption, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    elsewhere = {"image_path": str(tmp_path / "elsewhere.png"), "caption": "another folder's"}
    mine = {"image_path": str(photos / "coffee.png"), "caption": "old", "control_path": "c.png"}
    file.write_text(f"{json.dumps(elsewhere)}\n{json.dumps(mine)}\n", encoding="utf-8")
    caption(photos, "--output_file", str(file), "--overwrite")
    found = lines(file)
    assert found[0] == elsewhere
    assert found[1] == {**mine, "caption": SEEN["coffee"]}
    assert described(file) == {**SEEN, "elsewhere": "another folder's"}


@pytest.mark.slow
def test_a_killed_run_loses_nothing_and_goes_on(many: Path, caption_process: Start, tmp_path: Path) -> None:
    file = tmp_path / "captions.jsonl"
    process = caption_process(many, "--output_file", str(file))
    wait_for_lines(file, 3, process)
    process.kill()
    process.communicate()
    before = file.read_text(encoding="utf-8").split("\n")[:-1]
    assert 3 <= len(before) < COUNT, "it was done before it was killed: this proves nothing"
    with file.open("ab") as opened:  # what a kill in the middle of a write leaves
        opened.write(b'{"image_path": "/somew')
    process = caption_process(many, "--output_file", str(file))
    assert f"{COUNT - len(before)} captions written, {len(before)} kept" in process.communicate()[1]
    after = file.read_text(encoding="utf-8").split("\n")
    assert after[: len(before)] == before and len(after) == COUNT + 1 and after[-1] == ""
    assert len(described(file)) == COUNT


@pytest.mark.slow
@pytest.mark.full(reason="a kill is tested, a stop takes the way of every tool")
def test_a_stop_ends_between_items(many: Path, caption_process: Start, tmp_path: Path) -> None:
    file, job = tmp_path / "captions.jsonl", tmp_path / "job"
    job.mkdir()
    process = caption_process(many, "--output_file", str(file), env={"MUSUBITUNER_JOB_DIR": str(job)})
    wait_for_lines(file, 1, process)
    said = process.communicate("stop\n")[1]
    assert process.returncode == 3 and "captions made so far are saved" in said
    assert all(record["caption"] in SEEN.values() for record in lines(file))


def test_an_image_and_a_clip_of_one_name_cannot_share_a_text_file(photos: Path, clip: Path, caption: Caption) -> None:
    clip.rename(photos / "rocket.mp4")
    said = caption(photos, "--output_format", "text")
    assert "rocket.png: its caption would be in the same file as that of rocket.mp4" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output_file is required with --output_format jsonl"),
        (["--output_file", "captions.txt"], "must end in .jsonl"),
        (["--output_format", "text", "--prompt", " "], "--prompt is empty"),
        (["--output_format", "text", "--caption_extension", "/../x"], "must be an ending such as .txt"),
        (["--output_format", "text", "--max_size", "20"], "at least 56"),
    ],
)
def test_wrong_arguments_are_rejected_at_once(
    flags: list[str], message: str, photos: Path, vl_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption_images_by_qwen_vl", "--image_dir", str(photos), "--model_path", str(vl_model), *flags]) == 1
    assert message in capsys.readouterr().err


def test_an_existing_file_that_is_no_list_of_captions_is_not_touched(
    photos: Path, vl_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text('{"image_path": "a.png", "caption": "x"}\n{"video_path": "b.mp4"}\nrest\n', encoding="utf-8")
    before = file.read_bytes()
    argv = ["caption_images_by_qwen_vl", "--image_dir", str(photos), "--model_path", str(vl_model), "--output_file", str(file)]
    assert main(argv) == 1
    assert "captions.jsonl, line 2 is no caption of this kind" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_folder_with_nothing_to_describe_is_reported(tmp_path: Path, vl_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["caption_images_by_qwen_vl", "--image_dir", str(tmp_path), "--model_path", str(vl_model), "--output_format", "text"]
    assert main(argv) == 1
    assert f"there are no images or clips in {tmp_path}" in capsys.readouterr().err


def test_captions_that_cannot_be_written_are_reported_before_the_model_is_loaded(
    photos: Path,
    caption_flags: Callable[..., list[str]],
    unwritable: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, words = unwritable
    monkeypatch.setattr(caption, "Describer", lambda _: pytest.fail("the model is loaded"))
    assert main(caption_flags(photos, "--output_format", "jsonl", "--output_file", str(folder / "all.jsonl"))) == 1
    reported = capfd.readouterr().err
    assert words in reported.splitlines()[-1] and "Traceback" not in reported
