"""Samples during training: made when due, named as musubi-tuner names them, and without a trace in what is learned."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.demo.models import write_models
from musubi_backend.weights.safetensors_file import load, save_atomic

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def sampling(project: Any, build: SimpleNamespace, *lines: str) -> dict[str, Path]:
    """Let the project train the demo transformer on two clips. Returns the models that samples of the prompt lines need."""
    models = write_models(project.folder / "models")
    project.config = build.caches(project.folder, clips=2, frames=5, side=32, text_dim=64)
    project.dit = models["dit"]
    prompts = project.folder / "prompts.txt"
    prompts.write_text("\n".join(lines), encoding="utf-8")
    return {"vae": models["vae"], "t5": models["t5"], "sample_prompts": prompts}


@pytest.mark.slow
def test_samples_are_made_when_due_and_change_nothing(
    project: Any, build: SimpleNamespace, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["# two samples", "a cat --w 32 --h 32 --f 5 --s 2 --d 3 --l 1", "a dog --w 32 --h 32 --s 2 --l 2 --n ugly"]
    samples = sampling(project, build, *lines)
    settings = {"max_train_steps": 4, "network_dropout": 0.1}
    project.train("without", **settings)
    out = project.train(
        "with", "--sample_at_first", sample_every_n_steps=3, sample_every_n_epochs=1, **samples, **settings,
    )  # fmt: skip
    assert same.bits(project.lora("with"), project.lora("without"))
    names = sorted(re.sub(r"\d{14}", "TIME", path.name) for path in (out / "sample").iterdir())
    assert names == sorted(
        f"cat_{when}_{ending}" for when in ("000000", "000003", "e000001", "e000002") for ending in ("00_TIME_3.mp4", "01_TIME_000.png")
    )
    assert "Sampling timesteps for prompt 1: 100%" in capsys.readouterr().err


def test_samples_by_step_and_by_epoch_on_one_step_are_made_once(project: Any, build: SimpleNamespace) -> None:
    """Two clips are an epoch, so steps 2 and 4 end one."""
    samples = sampling(project, build, "a cat --w 32 --h 32 --s 1 --l 1")
    out = project.train("both", sample_every_n_steps=4, sample_every_n_epochs=1, max_train_steps=4, **samples)
    made = sorted(re.sub(r"\d{14}", "TIME", path.name) for path in (out / "sample").iterdir())
    assert made == ["cat_000004_00_TIME_000.png", "cat_e000001_00_TIME_000.png"]


def test_samples_that_fail_cost_neither_the_training_nor_what_is_saved(
    project: Any, build: SimpleNamespace, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VAE that lacks a tensor looks like one, and is found out when the first sample is decoded."""
    samples = sampling(project, build, "a cat --w 32 --h 32 --s 1 --l 1")
    whole = load(samples["vae"])
    whole.pop("decoder.head.2.bias")
    samples["vae"] = project.folder / "incomplete_vae.safetensors"
    save_atomic(whole, samples["vae"])
    settings = {"max_train_steps": 2, "save_every_n_steps": 1}
    project.train("without", **settings)
    out = project.train("with", sample_every_n_steps=1, **samples, **settings)
    printed = capsys.readouterr().err
    assert "no samples at step 1, training continues: " in printed and "incomplete_vae.safetensors: 1 tensor is missing" in printed
    assert (out / "cat-step00000001.safetensors").exists() and same.bits(project.lora("with"), project.lora("without"))


def test_samples_without_their_models_are_rejected_at_once(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prompts: Path = project.folder / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    assert project.refused("without", sample_prompts=prompts, sample_every_n_steps=1) == 1
    assert "--vae is required" in capsys.readouterr().err
