"""HunyuanVideo end to end on tiny models: clips become caches, caches a LoRA, and a request with the LoRA a video."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.demo.models import write_models
from musubi_backend.encoders.hunyuan_vae import SCALING_FACTOR
from musubi_backend.inference.video_file import write_mp4
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from PIL import Image
from torch import Tensor

SIDE, FRAMES = 32, 5


@dataclass(frozen=True)
class Studio:
    """Models, a clip and its caches, and the tools at work on them."""

    path: Path
    models: dict[str, Path]

    @property
    def clip(self) -> Path:
        return self.path / "clips" / "wall.mp4"

    def run(self, tool: str, *words: object) -> int:
        return main([tool, *map(str, words)])

    def model(self, *parts: str) -> list[object]:
        return [word for part in parts for word in (f"--{part}", self.models[part])]

    def train(self, name: str, *flags: object, steps: int = 3) -> Path:
        """Returns the LoRA."""
        settings = {
            "network_module": "networks.lora", "network_dim": 4, "optimizer_type": "AdamW", "learning_rate": 1e-2, "seed": 1,
            "mixed_precision": "no", "dit_dtype": "float32", "max_train_steps": steps, "timestep_sampling": "uniform",
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in (f"--{key}", value)]
        place = ["--dataset_config", self.path / "dataset.toml", "--output_dir", self.path / "loras", "--output_name", name]
        assert self.run("hv_train_network", "--sdpa", *place, *self.model("dit"), *words, *flags) == 0
        return self.path / "loras" / f"{name}.safetensors"

    def generate(self, folder: Path, *flags: object) -> int:
        sampling = ["--video_size", SIDE, SIDE, "--video_length", FRAMES, "--infer_steps", 4, "--seed", 7, "--device", "cpu"]
        models = self.model("dit", "vae", "text_encoder1", "text_encoder2")
        return self.run("hv_generate_video", "--prompt", "a wall", "--save_path", folder, *models, *sampling, *flags)

    def latents(self, folder: Path, *flags: object) -> Tensor:
        """What is generated, [16, F', H', W']."""
        assert self.generate(folder, "--output_type", "latent", *flags) == 0
        (path,) = folder.glob("*_latent.safetensors")
        tensor = load(path)["latent"]
        path.unlink()
        return tensor


def build(folder: Path, kind: str) -> Studio:
    studio = Studio(folder, write_models(folder / "models", kind=kind))
    light = np.linspace(0.3, 1, SIDE)[None, None, :, None] * np.linspace(1, 0.6, FRAMES)[:, None, None, None]
    (folder / "clips").mkdir()
    write_mp4(studio.clip, (light * np.ones((1, SIDE, 1, 1)) * np.array([220, 120, 30])).astype(np.uint8), fps=24)
    studio.clip.with_suffix(".txt").write_text("a wall in evening light", encoding="utf-8")
    (folder / "dataset.toml").write_text(
        f"[general]\nresolution = [{SIDE}, {SIDE}]\ncaption_extension = '.txt'\n[[datasets]]\nvideo_directory = '{folder / 'clips'}'\n"
        f"cache_directory = '{folder / 'cache'}'\ntarget_frames = [{FRAMES}]\n",
        encoding="utf-8",
    )
    data = ["--dataset_config", folder / "dataset.toml", "--device", "cpu"]
    assert studio.run("cache_latents", *data, *studio.model("vae")) == 0
    assert studio.run("cache_text_encoder_outputs", *data, *studio.model("text_encoder1", "text_encoder2")) == 0
    return studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A text-to-video model."""
    return build(tmp_path_factory.mktemp("hunyuan"), "hv")


@pytest.fixture(scope="module")
def image_studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A model of SkyReels' kind."""
    return build(tmp_path_factory.mktemp("skyreels"), "hv_i2v")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What every call of the transformer got, in order."""
    seen: list[tuple[Any, ...]] = []
    forward = HunyuanTransformer.forward

    def watched(self: HunyuanTransformer, *inputs: Any) -> Tensor:
        seen.append(inputs)
        return forward(self, *inputs)

    monkeypatch.setattr(HunyuanTransformer, "forward", watched)
    return seen


def test_a_dataset_becomes_a_lora_and_the_lora_a_video(studio: Studio, tmp_path: Path) -> None:
    lora = studio.train("first")
    header = read_header(lora)
    assert "lora_unet_double_blocks_1_img_attn_qkv.lora_down.weight" in header.tensors
    assert "lora_unet_single_blocks_0_linear1.lora_up.weight" in header.tensors
    assert header.metadata["ss_base_model_version"] == "hunyuan_video"
    assert header.metadata["ss_network_module"] == "networks.lora"
    assert header.metadata["modelspec.architecture"] == "hunyuan-video/lora"

    both = tmp_path / "both"
    assert studio.generate(both, "--lora_weight", lora, "--output_type", "both") == 0
    (video,) = both.glob("*_0_7.mp4")
    (latent,) = both.glob("*_0_7_latent.safetensors")
    assert read_header(latent).metadata["embedded_cfg_scale"] == "6.0"
    assert not torch.equal(load(latent)["latent"], studio.latents(tmp_path))
    assert torch.equal(studio.latents(tmp_path, "--lora_weight", lora, "--lora_multiplier", 0), studio.latents(tmp_path))

    again = tmp_path / "again"
    decoding = ["--latent_path", latent, latent, "--save_path", again, "--device", "cpu"]
    assert studio.run("hv_generate_video", *decoding, *studio.model("vae")) == 0
    assert len(list(again.glob(f"*_0_7_{latent.stem}.mp4"))) == 2
    assert video.stat().st_size == next(again.glob("*.mp4")).stat().st_size


def test_single_blocks_of_a_lora_can_be_left_out(studio: Studio, tmp_path: Path) -> None:
    lora = studio.train("both kinds")
    double = lora.with_name("double only.safetensors")
    save_atomic({name: tensor for name, tensor in load(lora).items() if "single_blocks" not in name}, double)
    without = studio.latents(tmp_path, "--lora_weight", lora, "--exclude_single_blocks")
    assert torch.equal(without, studio.latents(tmp_path, "--lora_weight", double))
    assert not torch.equal(without, studio.latents(tmp_path, "--lora_weight", lora))


def test_a_resumed_training_gives_the_same_bits_from_a_file_with_other_names_too(studio: Studio, renamed: Callable[[str], Path]) -> None:
    whole = studio.train("whole", "--gradient_checkpointing", steps=4)
    studio.train("part", "--save_state_on_train_end", steps=2)
    studio.train("part", "--resume", studio.path / "loras" / "part-state", "--dit", renamed("comfy"), steps=4)
    again = load(whole.with_name("part.safetensors"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in load(whole).items())


def test_samples_are_made_while_training_and_the_vae_is_freed_at_once(studio: Studio) -> None:
    prompts = studio.path / "prompts.txt"
    prompts.write_text(f"a wall --w {SIDE} --h {SIDE} --f {FRAMES} --s 2 --d 3 --g 5 --l 2 --n grey\n", encoding="utf-8")
    encoders = studio.model("vae", "text_encoder1", "text_encoder2")
    gc.collect()
    gc.disable()  # a large model must be freed at once, not when Python happens to look for garbage
    try:
        studio.train("sampled", "--sample_prompts", prompts, "--sample_every_n_steps", 2, *encoders, steps=2)
        kept = [one for one in gc.get_objects() if type(one).__name__ == "HunyuanVideoCausalConv3d"]
    finally:
        gc.enable()
    assert not kept
    assert len(list((studio.path / "loras" / "sample").glob("sampled_000002_00_*_3.mp4"))) == 1


def test_training_tells_the_bare_guidance_and_sampling_a_thousand_times_it(
    studio: Studio, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    studio.train("reported", "--guidance_scale", 1.5, steps=1)
    latents, times, text, mask, pooled, guidance, extra, skipped = calls.pop()
    assert (latents.shape, text.shape, mask.shape, pooled.shape) == ((1, 16, 2, 4, 4), (1, 256, 64), (1, 256), (1, 32))
    assert (guidance.tolist(), extra, skipped) == ([1.5], None, ())
    assert 1 <= times.item() <= 1001
    assert 0 < mask.sum() < 256
    assert not calls

    studio.latents(tmp_path, "--embedded_cfg_scale", 4.5, "--guidance_scale", 2, "--negative_prompt", "grey")
    assert [call[5].tolist() for call in calls] == [[4500.0]] * 8
    assert not torch.equal(calls[0][2], calls[1][2])
    expected = [1000.0, 7 * 0.75 / (1 + 6 * 0.75) * 1000, 7 * 0.5 / (1 + 6 * 0.5) * 1000, 7 * 0.25 / (1 + 6 * 0.25) * 1000]
    assert [call[1].item() for call in calls[::2]] == pytest.approx(expected)


def test_noise_of_a_longer_video_begins_like_that_of_a_shorter_one(studio: Studio, tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    studio.latents(tmp_path, "--infer_steps", 1)
    studio.latents(tmp_path, "--infer_steps", 1, "--video_length", FRAMES + 8)
    short, long = (call[0] for call in calls)
    assert (short.shape[2], long.shape[2]) == (2, 4)
    assert torch.equal(short, long[:, :, :2])


def test_a_video_is_changed_by_its_share_of_the_steps(studio: Studio, tmp_path: Path, calls: list[tuple[Any, ...]]) -> None:
    changed = ["--video_path", studio.clip, "--infer_steps", 8]
    noise, little, much = (
        studio.latents(tmp_path, "--infer_steps", 8),
        studio.latents(tmp_path, *changed, "--strength", 0.125),
        studio.latents(tmp_path, *changed, "--strength", 1),
    )
    assert len(calls) == 8 + 1 + 8
    assert torch.equal(calls[0][0], calls[9][0]), "a strength of 1 starts from noise alone"
    (cached,) = (path for path in (studio.path / "cache").glob("*.safetensors") if not path.name.endswith("_te.safetensors"))
    (clip,) = (tensor.float() * SCALING_FACTOR for name, tensor in load(cached).items() if name.startswith("latents"))
    start = 7 * 0.125 / (1 + 6 * 0.125)
    assert calls[8][1].item() == pytest.approx(1000 * start)
    assert torch.allclose(calls[8][0][0], start * calls[0][0][0] + (1 - start) * clip, atol=0.05), "mixed as far as the first step is noisy"
    assert torch.equal(noise, much)
    assert not torch.equal(little, much)


def test_an_image_model_sees_the_first_frame_in_training_and_when_sampling(
    image_studio: Studio, tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    lora = image_studio.train("image", "--dit_in_channels", 32, steps=2)
    (cached,) = (path for path in (image_studio.path / "cache").glob("*.safetensors") if not path.name.endswith("_te.safetensors"))
    (clip,) = (tensor.float() * SCALING_FACTOR for name, tensor in load(cached).items() if name.startswith("latents"))
    for call in calls:
        assert torch.allclose(call[6][0, :, 0], clip[:, 0])
        assert not call[6][0, :, 1:].any()

    image = tmp_path / "image.png"
    Image.fromarray(np.full((40, 50, 3), (20, 90, 200), np.uint8)).save(image)
    calls.clear()
    image_studio.latents(tmp_path, "--image_path", image, "--lora_weight", lora)
    assert all(call[6].shape == (1, 16, 2, 4, 4) and call[6][0, :, 0].any() and not call[6][0, :, 1:].any() for call in calls)


@pytest.fixture(scope="module")
def renamed(studio: Studio, comfy_name: Callable[[str], str]) -> Callable[[str], Path]:
    """The model in another layout."""

    def write(layout: str) -> Path:
        source = studio.models["dit"]
        tensors, metadata = load(source), read_header(source).metadata
        path = studio.path / f"{layout}.safetensors"
        if layout == "module.pt":
            torch.save({"module": tensors, "step": 3}, path.with_suffix(".pt"))
            return path.with_suffix(".pt")
        rename = comfy_name if "comfy" in layout.lower() else str
        prefix = {"prefix": "model.diffusion_model.", "checkpoint of ComfyUI": "model.model."}.get(layout, "")
        save_atomic({prefix + rename(name): tensor for name, tensor in tensors.items()}, path, metadata)
        return path

    return write


@pytest.mark.parametrize("layout", ["module.pt", "comfy", "prefix", "checkpoint of ComfyUI"])
def test_other_layouts_of_the_file_give_the_same(studio: Studio, tmp_path: Path, layout: str, renamed: Callable[[str], Path]) -> None:
    # a .pt says no sizes; the demo model's can all be reported from its shapes
    other = studio.latents(tmp_path, "--dit", renamed(layout))
    assert torch.equal(other, studio.latents(tmp_path))


def test_a_merged_model_is_a_file_like_the_original(studio: Studio, tmp_path: Path, renamed: Callable[[str], Path]) -> None:
    lora = studio.train("to merge")
    merged = tmp_path / "merged.safetensors"
    source = renamed("comfy")
    words = ["--dit", source, "--lora_weight", lora, "--save_merged_model", merged, "--save_path", tmp_path, "--device", "cpu"]
    assert studio.run("hv_generate_video", *words) == 0
    assert set(read_header(merged).tensors) == set(read_header(studio.models["dit"]).tensors)
    assert torch.equal(studio.latents(tmp_path, "--dit", merged), studio.latents(tmp_path, "--lora_weight", lora))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dit_in_channels", 32], "use --dit_in_channels 16"),
        (["--video_size", 40, 32], "nearest is 32x32"),
        (["--video_length", 7], "4n+1 frames; nearest is"),
        (["--image_path", "{clip}"], "takes no start image"),
        (["--video_path", "{clip}", "--strength", 0.1], "--strength 0.1 of 4 steps is none; use at least 0.25"),
        (["--video_path", "{clip}", "--video_length", 9], "wall.mp4 has 5 frames, and 9 are to be made"),
        (["--dit", "{vae}"], "--dit expects a HunyuanVideo transformer"),
    ],
)
def test_requests_that_cannot_be_done_are_rejected(
    studio: Studio, tmp_path: Path, flags: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word).format(clip=studio.clip, vae=studio.models["vae"]) for word in flags]
    assert studio.generate(tmp_path, *words) == 1
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_image_model_without_an_image_and_with_the_wrong_channels_is_rejected(
    image_studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image_studio.generate(tmp_path) == 1
    assert "starts from an image: give one with --image_path" in capsys.readouterr().err
    with pytest.raises(AssertionError):
        image_studio.train("wrong", steps=1)
    assert "--dit_in_channels 16" in capsys.readouterr().err


def test_fp8_weights_train_and_generate_nearly_the_same(studio: Studio, tmp_path: Path) -> None:
    plain = load(studio.train("sixteen bits", "--gradient_checkpointing"))
    small = studio.train("eight bits", "--fp8_base", "--gradient_checkpointing", "--gradient_checkpointing_cpu_offload")
    moved, apart = (
        sum(float((one[name] - other[name]).square().sum()) for name in plain if "lora_up" in name)
        for one, other in ((plain, {name: torch.zeros_like(tensor) for name, tensor in plain.items()}), (load(small), plain))
    )
    assert 0 < apart < 0.05 * moved
    expected = studio.latents(tmp_path, "--lora_weight", small)
    for flags in (["--fp8"], ["--fp8", "--fp8_fast"], ["--fp8", "--fp8_llm"]):
        made = studio.latents(tmp_path, "--lora_weight", small, *flags)
        assert 0 < (made - expected).norm() < 0.1 * expected.norm(), flags
