"""A finished file is never lost: one that cannot get its name stays where it was made, and the message says where."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest


def full_disk(made: Path, target: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def test_a_file_that_cannot_be_placed_stays_and_is_named(part: Any, tmp_path: Path) -> None:
    publishing = part("nodes.publishing")
    wanted = tmp_path / "models" / "merged.safetensors"
    reported = r"merged\.safetensors could not be written: there is no space left"
    with pytest.raises(publishing.NotPlaced, match=reported) as caught, publishing.made_beside(wanted) as new:
        new.write_bytes(b"28 GB")
        publishing.place(new, wanted, full_disk)
    assert str(new) in str(caught.value)
    assert new.read_bytes() == b"28 GB" and not wanted.exists()


def test_what_a_failed_tool_left_is_removed(part: Any, tmp_path: Path) -> None:
    publishing = part("nodes.publishing")
    with pytest.raises(ValueError), publishing.made_beside(tmp_path / "merged.safetensors") as new:
        new.write_bytes(b"half")
        raise ValueError
    with publishing.made_beside(tmp_path / "merged.safetensors") as new:
        new.write_bytes(b"whole")
        path, said = publishing.place(new, tmp_path / "merged.safetensors")
    assert (path.read_bytes(), said) == (b"whole", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["merged.safetensors"]


def test_a_lora_whose_place_cannot_be_written_is_named_where_it_lies(part: Any, tmp_path: Path, unwritable: tuple[Path, str]) -> None:
    publishing, (loras, words) = part("nodes.publishing"), unwritable
    lora = tmp_path / "runs" / "cat.safetensors"
    lora.parent.mkdir()
    lora.write_bytes(b"hours of work")
    with pytest.raises(publishing.UserError, match="output_name: ") as before:
        publishing.try_to_publish(loras, ["cat"], "output_name")
    assert words in str(before.value)
    with pytest.raises(publishing.NotPlaced, match=r"cat\.safetensors could not be written: ") as caught:
        publishing.publish(lora, loras, "cat")
    assert str(caught.value).endswith(f"the finished file is {lora}") and lora.read_bytes() == b"hours of work"


def test_a_trainer_tries_the_place_of_its_lora_first_and_names_a_finished_one(
    bench: Any, monkeypatch: pytest.MonkeyPatch, part: Any
) -> None:
    folder = bench.host.loras_dir() / "musubi_tuner"
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    errors = part("nodes.publishing")
    with pytest.raises(errors.UserError, match=f"output_name: {folder} is a file"):
        bench.train(output_name="cat")
    assert not bench.calls, "nothing was trained"
    folder.unlink()
    (folder / "cat.safetensors").mkdir(parents=True)
    real = errors.publish

    def spoilt(*given: Any) -> Any:
        """The folder goes while the training runs."""
        import shutil

        shutil.rmtree(folder)
        folder.write_text("in the way")
        return real(*given)

    monkeypatch.setattr(part("nodes.train"), "publish", spoilt)
    with pytest.raises(errors.NotPlaced) as caught:
        bench.train(output_name="cat")
    finished = Path(str(caught.value).rpartition("the finished file is ")[2])
    assert finished.read_text() == "weights" and bench.home / "runs" in finished.parents


def test_a_batch_tries_its_place_before_anything_runs(bench: Any, part: Any, unwritable: tuple[Path, str]) -> None:
    folder, words = unwritable
    bench.host.output_dir = folder
    node = part("nodes.catalog").BY_NAME["BatchProcessor"]()
    models = {"architecture": "wan", "task": "t2v-1.3B", "dit": str(bench.dit), "vae": str(bench.vae), "t5": str(bench.vae)}
    with pytest.raises(part("nodes.publishing").UserError, match="filename_prefix: ") as caught:
        bench.run(node, models=models, prompts="a cat", filename_prefix="here/cat")
    assert words in str(caught.value) and not bench.calls


def test_a_cancelled_batch_keeps_the_videos_that_are_finished(bench: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cancelled(BaseException):
        """The host's own interrupt."""

    def look() -> None:
        if list(bench.home.glob("jobs/*/results/*.mp4")):
            raise Cancelled

    bench.plan(makes=["20261127_000000_8.mp4"])
    monkeypatch.setattr(bench.host, "check_interrupted", look)
    models = {"architecture": "wan", "task": "t2v-1.3B", "dit": str(bench.dit), "vae": str(bench.vae), "t5": str(bench.vae)}
    with pytest.raises(Cancelled):
        bench.run(part("nodes.batch").BatchProcessor(), models=models, prompts="a dog\na cat", seed=7)
    assert [path.name for path in (bench.host.output_dir / "musubi_tuner").iterdir()] == ["batch_00001.mp4"]
    assert "1 of 2 prompts made a video: batch_00001.mp4" in bench.host.screen.stream.getvalue()


@pytest.mark.parametrize("put", ["copied", "linked"])
def test_a_file_that_another_comfyui_publishes_at_the_same_moment_stays(put: str, part: Any, tmp_path: Path) -> None:
    publishing, made, wanted = part("nodes.publishing"), tmp_path / "made.mp4", tmp_path / "cat.mp4"
    made.write_bytes(b"ours")

    def slowly(file: Path, target: Path) -> None:
        (shutil.copyfile if put == "copied" else publishing.linked)(file, target)
        wanted.write_bytes(b"theirs")

    path, said = publishing.place(made, wanted, slowly)
    assert (wanted.read_bytes(), path.read_bytes()) == (b"theirs", b"ours")
    assert path.name in said and sorted(one.name for one in tmp_path.iterdir()) == sorted(["made.mp4", "cat.mp4", path.name])


def test_what_another_program_has_open_is_tried_again_where_that_is_in_the_way(
    part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where each reader of a file is in the way of whoever replaces it."""
    atomic, replace, tries = part("backend.musubi_backend.atomic"), Path.replace, []

    def open_at_first(self: Path, target: Path) -> Path:
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(13, "used by another process")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", open_at_first)
    monkeypatch.setattr(atomic, "_READERS_HOLD", True)
    atomic.write_text(tmp_path / "status.json", "ended")
    assert (tmp_path / "status.json").read_text() == "ended"
    monkeypatch.setattr(atomic, "_READERS_HOLD", False)
    tries.clear()
    with pytest.raises(PermissionError):
        atomic.write_text(tmp_path / "status.json", "elsewhere it is no such thing")
