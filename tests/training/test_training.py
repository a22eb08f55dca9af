"""A training learns its clip, saves what was asked for, reports how it goes, and rejects what cannot work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import events, job
from musubi_backend.architectures import protocol
from musubi_backend.architectures.wan.demo_transformer import wan_transformer
from musubi_backend.cache.tensor_keys import base_name
from musubi_backend.errors import UserError
from musubi_backend.lora.network import LoRANetwork, ranks_from_weights
from musubi_backend.options.parser import parse
from musubi_backend.training import loop, trackers
from musubi_backend.training.losses import flow_matching_loss
from musubi_backend.training.settings import LoggingSettings
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

STEP_LINE = re.compile(r"steps:\s+(\d+)%\|.*?\|\s*(\d+)/(\d+) \[([^<]+)<([^,]+),\s*([^,\]]+)(?:,\s*(.*))?\]")


def _cached(path: Path, name: str) -> torch.Tensor:
    return next(tensor for stored, tensor in load(path).items() if base_name(stored) == name)


class Judge:
    """The loss of a LoRA on one clip, at fixed noise and timesteps."""

    def __init__(self, project: Any) -> None:
        self.wan = protocol.load("wan").configured(vars(parse("wan_train_network", project.argv("judge")[1:])))
        cache = project.config.parent / "cache"
        self.latents = _cached(next(cache.glob("clip0_0*_wan.safetensors")), "latents").float()[None]
        self.text = [_cached(cache / "clip0_wan_te.safetensors", "t5")]
        self.noise = torch.randn((8, *self.latents.shape[1:]), generator=torch.Generator().manual_seed(1))
        self.t = torch.linspace(0.15, 0.95, 8)

    @torch.no_grad()
    def loss(self, lora: dict[str, torch.Tensor] | None, scale: float = 1.0) -> float:
        """scale: factor on the LoRA's effect."""
        transformer = self.wan.transformer(torch.device("cpu"), torch.float32)
        if lora is not None:
            network = LoRANetwork.create(transformer, self.wan.card, ranks=ranks_from_weights(lora))
            network.load_weights({key: tensor * scale if "lora_up" in key else tensor for key, tensor in lora.items()})
            network.eval()
        total = 0.0
        for noise, t in zip(self.noise, self.t, strict=True):
            noisy = (1 - t) * self.latents + t * noise
            prediction = self.wan.predict(transformer, noisy, (1000 * t + 1)[None], {"t5": self.text})
            total += flow_matching_loss(prediction, self.latents, noise[None], None).item() / len(self.t)
        return total


@pytest.fixture
def one_clip(project: Any, build: SimpleNamespace) -> Any:
    """A project with one small clip and the demo transformer, whose frozen parts lose nothing, so that a LoRA can teach it."""
    project.config = build.caches(project.folder, clips=1, frames=1, side=32)
    tensors, metadata = wan_transformer(build.geometry.text_dim, seed=0)
    project.dit = project.folder / "demo.safetensors"
    save_atomic(tensors, project.dit, metadata)
    return project


LEARNING = {
    "network_dim": 16, "network_alpha": 16, "timestep_sampling": "uniform", "max_train_steps": 400, "learning_rate": "3e-3",
    "lr_scheduler": "cosine", "optimizer_args": ["weight_decay=0"], "seed": 3,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.full(reason="e2e/test_learning trains and generates with every family")
def test_training_on_one_clip_learns_it(one_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one_clip.train("learned", **LEARNING)
    judge, lora = Judge(one_clip), one_clip.lora("learned")
    untrained, trained = judge.loss(None), judge.loss(lora)
    nothing = flow_matching_loss(torch.zeros_like(judge.noise), judge.latents.expand_as(judge.noise), judge.noise, None).item()
    assert trained < 0.2 * untrained, f"at least 80 % of the loss is gone: {untrained} -> {trained}"
    assert trained < 0.5 * nothing, f"and not by predicting next to nothing, which would give {nothing}: {trained}"
    # what a broken LoRA would give is far from that
    assert judge.loss(lora, scale=0.0) == pytest.approx(untrained)
    assert judge.loss(lora, scale=-1.0) > 0.5 * untrained

    def backwards(prediction: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, weight: Any) -> torch.Tensor:
        return flow_matching_loss(prediction, noise, latents, weight)

    monkeypatch.setattr(loop, "flow_matching_loss", backwards)
    one_clip.train("backwards", **LEARNING)
    assert judge.loss(one_clip.lora("backwards")) > nothing, "the opposite velocity does not pass"


def test_the_model_is_given_how_noisy_its_input_is(one_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input, latents and reported timestep give back the noise; with a wrong timestep convention it would not be standard normal."""
    seen: list[tuple[torch.Tensor, float]] = []
    original = type(protocol.load("wan")).predict

    def watched(self: Any, transformer: Any, noisy: torch.Tensor, timesteps: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append((noisy.clone(), timesteps.item()))
        return original(self, transformer, noisy, timesteps, *rest)

    monkeypatch.setattr(type(protocol.load("wan")), "predict", watched)
    one_clip.train("watched", max_train_steps=40, timestep_sampling="uniform")
    latents = Judge(one_clip).latents

    def noise_for(share: Any) -> torch.Tensor:
        found = [(noisy - (1 - share(reported)) * latents) / share(reported) for noisy, reported in seen if 0.05 < share(reported) < 0.95]
        return torch.cat(found).flatten()

    right = noise_for(lambda reported: (reported - 1) / 1000)
    assert abs(right.mean()) < 0.05 and abs(right.std() - 1) < 0.03
    for wrong in (lambda reported: 1 - reported / 1000, lambda reported: (reported / 1000) ** 2):
        assert abs(noise_for(wrong).std() - 1) > 0.1


def test_what_is_printed_is_what_musubi_tuner_prints(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    out = project.train("printed", "--save_state", save_every_n_epochs=1, save_every_n_steps=3, max_train_steps=None, max_train_epochs=2)
    printed = capfd.readouterr()
    for line in (
        "import network module: networks.lora_wan", "prepare optimizer, data loader etc.", "running training / 学習開始",
        "  num train items / 学習画像、動画数: 4", "  num batches per epoch / 1epochのバッチ数: 4", "  num epochs / epoch数: 2",
        "  batch size per device / バッチサイズ: 1", "  gradient accumulation steps / 勾配を合計するステップ数 = 1",
        "  total optimization steps / 学習ステップ数: 8", "epoch 1/2", "epoch 2/2",
        f"saving checkpoint: {out / 'cat-000001.safetensors'}", f"saving checkpoint: {out / 'cat-step00000003.safetensors'}",
    ):  # fmt: skip
        assert line in printed.out.splitlines(), line
    assert "saving state at step 3" in printed.err and "saving state at epoch 1" in printed.err and "model saved." in printed.err
    bars = [match for part in re.split(r"[\r\n]", printed.err) if (match := STEP_LINE.search(part))]
    assert bars[-1].group(2, 3) == ("8", "8") and "avr_loss=" in bars[-1][7]
    first_done = next(bar for bar in bars if bar[2] == "1" and "avr_loss" in (bar[7] or ""))
    assert first_done[4] == "00:00", "the clock starts after the first step"


def test_events_in_the_job_folder_tell_the_run(project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    out = project.train("job", "--save_state", save_every_n_steps=5)
    log = events.read(tmp_path / events.FILE_NAME)
    steps = [event for event in log if isinstance(event, events.Step)]
    assert [event.step for event in steps] == list(range(1, 11)) and {event.total for event in steps} == {10}
    assert all(event.loss and event.lr == 0.01 and event.seconds is not None and event.clock > 0 < event.time for event in steps)
    files = [Path(event.path) for event in log if isinstance(event, events.Saved)]
    begun = [(Path(event.path), event.bytes) for event in log if isinstance(event, events.Saving)]
    assert [path for path, _ in begun] == files
    loras = [out / f"cat-step{step:08d}.safetensors" for step in (5, 10)] + [out / "cat.safetensors"]
    assert [path for path in files if path.is_file()] == loras
    for path, expected in begun:  # what is reported beforehand is what there is, but for headers and settings
        there = sum(part.stat().st_size for part in path.rglob("*")) if path.is_dir() else path.stat().st_size
        assert expected <= there < expected + 60_000, path
    told_often = (
        "phase",
        "progress",
        "keep",
        "step",
        "saving",
        "saved",
        "memory",
        "items",
        "stopping",
    )  # the last one of a stop in an earlier test
    others = [one.kind for one in log if one.kind not in told_often]
    assert others == ["start", "output", "ended"]
    assert all(one.ram > 1e6 and one.vram is None for one in log if isinstance(one, events.Memory))
    assert (out / "cat.loss.png").read_bytes().startswith(b"\x89PNG")


STAND_IN = """
import json, pathlib, sys
class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)
class init:
    def __init__(self, settings, **values):
        seen = [] if settings.x_disable_meta else sys.argv
        self.file = pathlib.Path(values["dir"], "told.txt")
        self.file.write_text(json.dumps([values, seen], default=str))
        self.found = bool(settings.api_key)
    def log(self, values, step):
        with self.file.open("a") as file:
            file.write(f"{step} {sorted(values)}")
    def finish(self):
        with self.file.open("a") as file:
            file.write(f"finished, key: {self.found}")
"""
"""Writes down what Weights & Biases is given and, as it does, the command line, unless it is told not to look."""


@pytest.mark.slow
def test_all_trackers_of_a_run_write_into_one_folder_and_the_key_of_one_nowhere(
    project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard gets musubi-tuner's tags."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "wandb.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    times = iter(range(10**6))
    monkeypatch.setattr("musubi_backend.training.trackers.time.strftime", lambda *_: str(next(times)))
    logs, key = project.folder / "logs", "0123secret4567"
    monkeypatch.setattr(sys, "argv", ["x", "--wandb_api_key", key])
    more = {"network_args": ["loraplus_lr_ratio=4"], "scale_weight_norms": 1.0, "log_with": "all", "wandb_api_key": key}
    project.train("board", "--log_config", "--save_state", logging_dir=logs, log_prefix="p-", max_train_steps=5, **more)
    (folder,) = logs.glob("p-*")
    events = accumulator.EventAccumulator(str(folder / "network_train"))
    events.Reload()
    tags = {
        "loss/current", "loss/average", "loss/epoch", "lr/unet", "lr/unet plus",
        "max_norm/keys_scaled", "max_norm/average_key_norm", "max_norm/max_key_norm",
    }  # fmt: skip
    assert set(events.Tags()["scalars"]) == tags
    assert [scalar.step for scalar in events.Scalars("loss/current")] == [1, 2, 3, 4, 5]
    assert events.Scalars("lr/unet plus")[0].value == pytest.approx(0.04)
    told = (folder / "told.txt").read_text(encoding="utf-8")
    assert told.endswith("finished, key: True") and f"5 {sorted(tags - {'loss/epoch'})}" in told
    written = [path for path in project.folder.rglob("*") if path.is_file()]
    assert len(written) > 4 and not [path for path in written if key.encode() in path.read_bytes()]
    assert key not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("package", "command"), [("wandb", "install.py --with wandb"), ("tensorboard", "install.py")])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, package: str, command: str) -> None:
    monkeypatch.setattr("musubi_backend.training.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{package}, which is not installed .*: run {command}$"):
        trackers.chosen(LoggingSettings(logging_dir="logs", log_with=package))


def test_accumulating_two_halves_is_one_step_of_the_mean(project: Any) -> None:
    project.train("two", max_train_steps=2, gradient_accumulation_steps=2)
    metadata = read_header(project.folder / "out/two/cat.safetensors").metadata
    assert metadata["ss_num_epochs"] == "1" and metadata["ss_gradient_accumulation_steps"] == "2" and metadata["ss_steps"] == "2"


def test_gradient_checkpointing_changes_nothing(project: Any, same: SimpleNamespace) -> None:
    project.train("plain", max_train_steps=4)
    project.train("recomputed", "--gradient_checkpointing", max_train_steps=4)
    assert same.difference(project.lora("plain"), project.lora("recomputed")) < 1e-6


def test_weights_can_be_continued_and_their_ranks_taken(project: Any, same: SimpleNamespace) -> None:
    first = project.train("first", network_dim=6, network_alpha=3, max_train_steps=2) / "cat.safetensors"
    project.train("second", "--dim_from_weights", network_weights=first, max_train_steps=1, learning_rate="1e-12")
    assert same.difference(load(first), project.lora("second")) < 1e-6


def test_base_weights_are_part_of_what_is_trained_on(project: Any) -> None:
    base = project.train("base", max_train_steps=4, learning_rate="5e-2") / "cat.safetensors"
    plain, merged = (project.train(name, max_train_steps=1, **more) for name, more in (("plain", {}), ("merged", {"base_weights": base})))
    assert not torch.equal(*(next(t for k, t in load(out / "cat.safetensors").items() if "lora_up" in k) for out in (plain, merged)))


def test_a_broken_item_stops_the_training_by_name_and_keeps_what_was_good(
    project: Any, build: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    project.config = build.caches(project.folder)
    (cache,) = (project.folder / "cache").glob("clip2_0*_wan.safetensors")
    header = read_header(cache)
    save_atomic({name: torch.full_like(tensor, float("inf")) for name, tensor in load(cache).items()}, cache, header.metadata)
    assert project.refused("broken", "--save_state", save_every_n_steps=1) == 1
    message = capsys.readouterr().err.rpartition("ERROR:")[2]
    assert cache.name in message and "not finite" in message and "clip1" not in message
    for path in (project.folder / "out/broken").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load(path).values())
    assert not (project.folder / "out/broken/cat.safetensors").exists()


def test_a_full_disk_is_named_and_earlier_checkpoints_load(project: Any, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.refused("unused", "--save_state", output_dir=small_disk, save_every_n_steps=1, max_train_steps=60, network_dim=32) == 1
    assert "the disk is full" in capsys.readouterr().err
    saved = sorted(small_disk.glob("*.safetensors"))
    assert saved and [load(path) for path in saved]
    assert not [path for path in small_disk.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer_type": "Adafaktor"}, "did you mean 'Adafactor'"),
        ({"optimizer_args": ["betas"]}, "key=value"),
        ({"lr_scheduler": "cosin"}, "did you mean 'cosine'"),
        ({"network_module": "networks.lora_wam"}, "did you mean 'networks.lora_wan'"),
        ({"network_args": ["loraplus=3"]}, "loraplus"),
        ({"log_with": "tensorboard"}, "--logging_dir"),
        ({"metadata_reso": "big"}, "--metadata_reso"),
        ({"output_name": "a/b"}, "output_name"),
        ({"task": "i2v-14B"}, "is not a i2v-14B model"),
        ({"sample_prompts": "none.txt", "sample_every_n_steps": 1}, "none.txt"),
    ],
)
def test_settings_that_cannot_work_are_rejected_before_the_model_is_loaded(
    change: dict[str, Any], words: str, project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.refused("refused", **change) == 1
    printed = capsys.readouterr()
    assert words in printed.err.rpartition("ERROR:")[2]
    assert "Loading DiT model" not in printed.err


def test_show_timesteps_prints_a_histogram_or_draws_one(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project.train("shown", show_timesteps="console", timestep_sampling="shift", weighting_scheme="cosmap")
    printed = capsys.readouterr().out
    assert " 975- 999: " in printed and "Sampled loss weighting" in printed and "running training" not in printed
    out = project.train("shown", show_timesteps="image")
    assert (out / "cat.timesteps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_training_imports_nothing_it_does_not_need(project: Any) -> None:
    heavy = ("accelerate", "transformers", "diffusers", "tensorboard", "torch._dynamo", "sympy", "wandb", "cv2", "av")
    code = (
        "import sys; from musubi_backend.__main__ import main; code = main(sys.argv[1:]); "
        f"print('IMPORTED', *(name for name in {heavy} if name in sys.modules)); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "backend")}
    argv = project.argv("lean", max_train_steps=1)
    result = subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert result.stdout.splitlines()[-1].split() == ["IMPORTED"]
