"""HunyuanVideo and FramePack through the real loop: loss and gradients recorded from musubi-tuner.

The recordings hold the model's noisy input x and its target, drawn independently. Clean latents c and noise n that give both at a noise
share of s follow from x = (1 - s) c + s n and target = n - c: c = x - s target, n = x + (1 - s) target. The caches hold c as the VAE
gives it, so that everything between them and the gradients is ours: collating, scaling, mixing, conditions, loss and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.framepack.card import CARD as FRAMEPACK
from musubi_backend.architectures.hunyuan_video.card import CARD as HUNYUAN
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.training.loop import Loop
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.training.settings import TimestepSampling
from musubi_backend.weights.safetensors_file import load
from recorded_training import prepared
from torch import Tensor

SCALING = 0.476986
"""Of HunyuanVideo's VAE, for whose latents its model was made (diffusers: vae/config.json)."""


class GivenDraws(StepRandomness):
    """Noise and timesteps of each item, in the order in which the batches bring them."""

    def __init__(self, noise: Tensor, timesteps: Tensor, batches: Sequence[Any]) -> None:
        """noise, timesteps: by the number in an item's name."""
        super().__init__(0, 0, torch.device("cpu"))
        self.given, self.timesteps = noise, timesteps
        self.order = [[int(name[4]) for name in batch.names] for batch in batches]

    def start(self, micro_step: int) -> None:
        super().start(micro_step)
        self.items = self.order[micro_step]

    def noise(self, shape: Sequence[int]) -> Tensor:
        return self.given[self.items]

    def levels(
        self, sampling: TimestepSampling, shape: Sequence[int], u: Sequence[float] | None, boundary: float | None, step: int
    ) -> tuple[Tensor, Tensor]:
        timesteps = self.timesteps[self.items]
        return (timesteps - 1) / 1000, timesteps


class Told:
    """A dataset whose items are reported different guidances: --guidance_scale tells all the same."""

    def __init__(self, dataset: Any, guidance: Tensor) -> None:
        """guidance: by the number in an item's name."""
        self.dataset, self.guidance = dataset, guidance

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def collate(self, batch: Any) -> dict[str, Any]:
        return {**self.dataset.collate(batch), "guidance": self.guidance[[int(name[4]) for name in batch.names]]}


def unmixed(x: Tensor, target: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(clean latents, noise) behind a noisy input and a target."""
    s = ((timesteps - 1) / 1000).view(-1, 1, 1, 1, 1)
    return x - s * target, x + (1 - s) * target


def dataset(folder: Path, size: tuple[int, int], frames: int, *more: str) -> Path:
    path = folder / "dataset.toml"
    lines = [
        "[general]", f"resolution = [{size[0]}, {size[1]}]", "enable_bucket = false", "[[datasets]]",
        f"video_directory = '{folder.as_posix()}'", f"cache_directory = '{(folder / 'cache').as_posix()}'",
        f"target_frames = [{frames}]", *more,
    ]  # fmt: skip
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def one_step(loop: Loop, lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trains one step from a LoRA; the gradients that the optimizer got."""
    network: Any = loop.run.network
    network.load_state_dict(lora)
    gradients: dict[str, Tensor] = {}
    loop.run.choice.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: one.grad.clone() for name, one in network.named_parameters()})
    )
    loop.start()
    return gradients


def check(loop: Loop, golden: Path, case: str, loss: float) -> None:
    gradients, recorded = one_step(loop, load(golden / f"{case}.lora.safetensors")), load(golden / f"{case}.lora_grads.safetensors")
    assert loop.history == pytest.approx([loss], rel=1e-5)
    assert {f"grad.{name}" for name in gradients} == set(recorded)
    for name, gradient in gradients.items():
        theirs = recorded[f"grad.{name}"]
        # the last bit of exp, which CPUs round differently, is 4e-4 of an angle in the sinusoids of a guidance of 6000
        assert float((gradient - theirs).norm() / theirs.norm()) < 2e-4, name


def words(golden: Path, case: str, module: str, data: Path, *more: object) -> list[object]:
    (data.parent / "out").mkdir()
    return [
        "--dit", golden / f"{case}.dit.safetensors", "--dataset_config", data, "--output_dir", data.parent / "out", "--output_name", "cat",
        "--network_module", module, "--network_dim", 4, "--network_alpha", 2, "--optimizer_type", "adamw", "--max_grad_norm", 0,
        "--max_train_steps", 1, "--seed", 7, "--mixed_precision", "no", "--sdpa", "--timestep_sampling", "uniform", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("together", [True, False], ids=["a batch of two", "two batches accumulated"])
def test_hunyuan_videos_gradients_equal_the_recorded_ones(together: bool, shared: Path, tmp_path: Path) -> None:
    """Two items with texts of 12 and 5 tokens, reported different guidances and timesteps."""
    golden = shared / "golden/dit"
    io = load(golden / "hv_t2v.io.safetensors")
    clean, noise = unmixed(io["x"], io["target"], io["t"])
    for item in range(2):
        name = tmp_path / "cache" / f"clip{item}_00000-009_0048x0032_hv.safetensors"
        save_latents(name, {"latents": clean[item] / SCALING}, HUNYUAN, width=48, height=32, frame_count=9)
        texts = {"llm": io["text_states"][item], "llm_mask": io["text_mask"][item], "clipL": io["text_states_2"][item]}
        save_text(tmp_path / "cache" / f"clip{item}_hv_te.safetensors", texts, HUNYUAN, caption="a clip")
    data = dataset(tmp_path, (48, 32), 9, f"batch_size = {2 if together else 1}")
    windows = 1 if together else 2
    loop = prepared(
        "hv", "hv_train_network",
        words(golden, "hv_t2v", "networks.lora", data, "--dit_dtype", "float32", "--gradient_accumulation_steps", windows),
    )  # fmt: skip
    loop.randomness = GivenDraws(noise, io["t"], loop.run.dataset.batches(7, 1))
    loop.run.dataset = Told(loop.run.dataset, io["guidance"])  # type: ignore[assignment]
    check(loop, golden, "hv_t2v", io["loss.lora"].item())


def test_framepacks_gradients_equal_the_recorded_ones(shared: Path, tmp_path: Path) -> None:
    """One section next to its start image and the whole history; the model is given 1000 times --guidance_scale."""
    golden = shared / "golden/dit"
    io = load(golden / "framepack.io.safetensors")
    clean, noise = unmixed(io["hidden_states"], io["target"], io["timestep"])
    latents = {"latents": clean[0], "latents_clean": io["clean_latents"][0], "image_embeddings": io["image_embeddings"][0]}
    latents |= {f"latents_clean_{part}": io[f"clean_latents_{part}"][0] for part in ("2x", "4x")}
    latents |= {name: io[name][0] for name in io if name.endswith("indices")}
    name = tmp_path / "cache" / "clip0_00000-013-0000_0096x0064_fp.safetensors"
    save_latents(name, latents, FRAMEPACK, width=96, height=64, frame_count=13)
    texts = {
        "llama_vec": io["encoder_hidden_states"][0], "llama_attention_mask": io["encoder_attention_mask"][0],
        "clip_l_pooler": io["pooled_projections"][0],
    }  # fmt: skip
    save_text(tmp_path / "cache" / "clip0_fp_te.safetensors", texts, FRAMEPACK, caption="a clip")
    data = dataset(tmp_path, (96, 64), 13, "fp_latent_window_size = 3")
    flags = words(golden, "framepack", "networks.lora_framepack", data, "--guidance_scale", 10)
    loop = prepared("fp", "fpack_train_network", flags, torch.float32)
    loop.randomness = GivenDraws(noise, io["timestep"], loop.run.dataset.batches(7, 1))
    check(loop, golden, "framepack", io["loss.lora"].item())
