"""Trainings write their log in musubi-tuner's two languages; a stdout that does not hold them all must not end them."""

from __future__ import annotations

from typing import Any


def test_a_training_goes_through(project: Any) -> None:
    process = project.start("out", environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, max_train_steps=1, output_name="映画")
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert (project.folder / "out" / "out" / "映画.safetensors").is_file()
    assert "running training / \\u5b66\\u7fd2" in shown
