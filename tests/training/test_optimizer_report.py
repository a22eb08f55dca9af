"""What an optimizer says of itself comes into TensorBoard and the job's events at an interval, and from there onto the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from musubi_backend import events, job


def test_it_is_noted_at_an_interval_where_it_is_asked_for(
    project: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    logs = project.folder / "logs"
    asked = {"optimizer_type": "AdaptiveHinaAdamW", "log_optimizer_every": 2, "logging_dir": logs, "max_train_steps": 4}
    project.train("reports", **asked, optimizer_args=["relationship_discovery_interval=1", "warmup_steps=3"])
    said = [one for one in events.read(tmp_path / events.FILE_NAME) if isinstance(one, events.Optimizer)]
    assert [one.step for one in said] == [2, 4]
    lines = dict(line.split(": ", 1) for line in said[-1].lines)
    assert lines["optimizer_type"] == "AdaptiveHinaAdamW" and lines["features / use_spd"] == "on"
    assert lines["training_stats / global_step"] == "4" and int(lines["total_relationships"]) > 0
    assert float(lines["importance_statistics / mean"]) > 0 and lines["training_phase / in_warmup"] == "off"
    history = part("nodes.jobs.history").History(part("nodes.jobs.folder").JobFolder(tmp_path))
    history.read_on()
    assert history.optimizer.lines == said[-1].lines
    (folder,) = logs.glob("*/network_train")
    board = accumulator.EventAccumulator(str(folder))
    board.Reload()
    tags = {tag for tag in board.Tags()["scalars"] if tag.startswith("optimizer/")}
    assert {"optimizer/importance_statistics/mean", "optimizer/global_statistics/avg_lr_scale", "optimizer/lr_mask"} <= tags
    assert [scalar.step for scalar in board.Scalars("optimizer/importance_statistics/mean")] == [2, 4]
    assert "has no effect" not in capfd.readouterr().err


def test_an_optimizer_that_says_nothing_is_named(project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    project.train("silent", log_optimizer_every=1, max_train_steps=1)
    log = events.read(tmp_path / events.FILE_NAME)
    assert not [one for one in log if isinstance(one, events.Optimizer)]
    assert "adamw says nothing of itself" in str([one for one in log if isinstance(one, events.Warned)])
