"""Validation while training: what is held out is never trained on, and training is what it is without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import events, job
from musubi_backend.dataset.batches import CachedDataset
from musubi_backend.seeds import derived_seed
from musubi_backend.training.settings import TimestepSampling
from musubi_backend.training.timesteps import noise_levels
from musubi_backend.training.validation import LEVELS, levels
from musubi_backend.weights.safetensors_file import read_header

SETTINGS = {"max_train_steps": 5, "network_dropout": 0.2, "num_timestep_buckets": 3, "gradient_accumulation_steps": 2, "seed": 7}
ASKED = {"validation_split": 0.3, "validate_every_n_steps": 2}


@pytest.fixture
def losses(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The validation losses by step since they were asked for last, as the page gets them."""
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))

    def told() -> dict[int, float]:
        history = part("nodes.jobs.history").History(part("nodes.jobs.folder").JobFolder(tmp_path))
        history.read_on()
        found = history.between(("loss", "validation"), None, None, 800)
        (tmp_path / events.FILE_NAME).unlink()
        assert found["steps"][0] == (history.series["validation"].steps or history.series["loss"].steps)[0], "also the one before training"
        every = dict(zip(found["steps"], found["series"]["validation"]["mean"], strict=True))
        return {step: loss for step, loss in every.items() if loss is not None}

    return told


def test_a_training_with_validation_is_that_of_the_other_items_and_goes_on_from_its_state_to_the_same_bits(
    project: Any, same: SimpleNamespace, losses: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    trained: set[str] = set()
    collate = CachedDataset.collate
    monkeypatch.setattr(CachedDataset, "collate", lambda *given: trained.update(given[1].names) or collate(*given))  # type: ignore[func-returns-value]
    out = project.train("with", "--save_state", save_every_n_steps=3, **ASKED, **SETTINGS)
    whole = losses()
    assert [*whole] == [0, 2, 4, 5] and whole[5] < whole[0]
    project.train("resumed", resume=out / "cat-step00000003-state", **ASKED, **SETTINGS)
    assert losses() == {step: loss for step, loss in whole.items() if step > 3}
    assert same.bits(project.lora("resumed"), project.lora("with"))
    pictures = [(project.folder / "out" / name / "cat.loss.png").read_bytes() for name in ("resumed", "with")]
    assert pictures[0] == pictures[1], "also what was measured before it was stopped is drawn"
    metadata = read_header(out / "cat.safetensors").metadata
    said = {name: metadata[f"ss_{name}"] for name in ("num_train_items", "num_validation_images", "validation_split")}
    assert said == {"num_train_items": "3", "num_validation_images": "1", "validation_split": "0.3"}

    left_out = min(range(4), key=lambda number: derived_seed(7, "validation", f"clip{number}"))
    cache = Path(shutil.copytree(project.config.parent, tmp_path / "data")) / "cache"
    for one in cache.glob(f"clip{left_out}_*"):
        one.unlink()
    project.config = tmp_path / "data/dataset.toml"
    project.config.write_text(project.config.read_text().replace(str(project.dit.parent.as_posix()), project.config.parent.as_posix()))
    trained.clear()
    project.train("without", validate_every_n_steps=1, **SETTINGS)
    assert "--validate_every_n_steps: nothing is held out, so there is no validation loss" in capsys.readouterr().err
    assert same.bits(project.lora("with"), project.lora("without"))
    assert losses() == {} and len(trained) == 3
    assert not [name for name in read_header(project.folder / "out/without/cat.safetensors").metadata if "valid" in name]


@pytest.mark.parametrize("mode", ["sigma", "uniform", "shift", "flux_shift", "logsnr", "qinglong_flux"])
@pytest.mark.parametrize("limits", [(None, None), (200, 600)])
def test_levels_stand_for_equal_shares_of_what_is_trained(mode: str, limits: tuple[int | None, int | None]) -> None:
    sampling = TimestepSampling(
        timestep_sampling=mode, discrete_flow_shift=3.0, min_timestep=limits[0], max_timestep=limits[1], preserve_distribution_shape=True
    )
    found = levels(sampling, (32, 48), None)
    drawn, _ = noise_levels(sampling, (4000, 16, 1, 32, 48), torch.Generator().manual_seed(99))
    below = [(drawn < one.t).float().mean().item() for one in found]
    assert below == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.03)
    assert [one.share for one in found] == [0.25] * LEVELS
    assert all(one.timesteps.item() == pytest.approx(1000 * one.t.item() + (mode != "sigma"), abs=1e-3) for one in found)


@pytest.mark.parametrize(
    ("limits", "boundary", "high"),
    [((None, None), 0.875, 1), ((None, None), 0.995, 1), ((None, None), 0.3, 3), ((0, 500), 0.875, 0), ((900, None), 0.875, 4)],
)
def test_each_expert_has_a_level_if_it_is_trained(limits: tuple[int | None, int | None], boundary: float, high: int) -> None:
    sampling = TimestepSampling(timestep_sampling="uniform", min_timestep=limits[0], max_timestep=limits[1])
    found = levels(sampling, (32, 48), boundary)
    assert [one.timesteps.item() / 1000 >= boundary for one in found] == [False] * (LEVELS - high) + [True] * high
    assert sum(one.share for one in found) == pytest.approx(1)
    if limits == (None, None):
        assert sum(one.share for one in found[LEVELS - high :]) == pytest.approx(1 - boundary, abs=0.02)
