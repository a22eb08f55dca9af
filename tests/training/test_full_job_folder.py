"""The disk of the job folder is full, that of the results is not: a training loses its log, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest


def test_a_training_goes_on_without_room_for_its_log_and_events(project: Any, small_disk: Path, backend_python: str) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(3 << 20))
    backend = Path(__file__).resolve().parents[2] / "backend"
    environment = {**os.environ, "PYTHONPATH": str(backend), "MUSUBITUNER_JOB_DIR": str(small_disk), "PYTHONUNBUFFERED": "1"}
    with (small_disk / "log.txt").open("ab") as log:
        argv = [backend_python, "-m", "musubi_backend", *project.argv("out", max_train_steps=2)]
        done = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert done.wait() == 0
    assert (project.folder / "out" / "out" / "cat.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "cat.loss.png"), ImportError("the _imagingft C module")])
def test_a_loss_image_that_cannot_be_drawn_costs_nothing(
    error: Exception, project: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("musubi_backend.training.loop.loss_curve", fails)
    project.train("out", max_train_steps=1)
    assert "no image of the losses" in capfd.readouterr().err
