"""Every Wan task end to end on tiny models: a dataset becomes caches, the caches a LoRA, and a request with the LoRA a video."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.demo.clips import write_clips
from musubi_backend.demo.models import write_models
from musubi_backend.weights.safetensors_file import load, read_header
from PIL import Image

SIDE, FRAMES = 32, 5


@dataclass
class Folder:
    """Models, a dataset and images of one task, and its tools."""

    path: Path
    models: dict[str, Path]
    task: str
    config: Path = field(init=False)

    def tool(self, name: str, *words: object) -> int:
        return main([name, *map(str, words)])

    def model(self, *parts: str) -> list[object]:
        return [word for part in parts if part in self.models for word in (f"--{part}", self.models[part])]

    def dataset(self, kind: str, **values: object) -> None:
        self.config = self.path / "dataset.toml"
        lines = ["[general]", f"resolution = [{SIDE}, {SIDE}]", 'caption_extension = ".txt"', "[[datasets]]"]
        lines += [f"{kind}_directory = '{self.path / 'media'}'", f"cache_directory = '{self.path / 'cache'}'"]
        lines += [f"{key} = {value}" for key, value in values.items()]
        self.config.write_text("\n".join(lines), encoding="utf-8")

    def cache(self, *flags: str, clip: bool = True) -> None:
        parts = ("vae", "clip") if clip else ("vae",)
        assert self.tool("wan_cache_latents", "--dataset_config", self.config, *self.model(*parts), "--device", "cpu", *flags) == 0
        assert self.tool("wan_cache_text_encoder_outputs", "--dataset_config", self.config, *self.model("t5"), "--device", "cpu") == 0

    def train(self, *flags: object, steps: int = 2) -> Path:
        """Returns the folder of the LoRA `cat`."""
        out = self.path / "loras"
        settings = {"output_dir": out, "output_name": "cat", "network_module": "networks.lora_wan", "optimizer_type": "adamw"}
        settings |= {"learning_rate": "1e-2", "max_train_steps": steps, "seed": 1, "mixed_precision": "no", "timestep_sampling": "uniform"}
        words = [word for key, value in settings.items() for word in (f"--{key}", value)]
        data = ["--task", self.task, "--sdpa", "--dataset_config", self.config]
        assert self.tool("wan_train_network", *data, *self.model("dit"), *words, *flags) == 0
        return out

    def latents(self, *flags: object, name: str = "out") -> torch.Tensor:
        """Generated latents [16, F, H/8, W/8]."""
        assert self.generate(*flags, name=name) == 0
        (path,) = (self.path / name).glob("*_latent.safetensors")
        tensor = load(path)["latent"]
        path.unlink()
        return tensor

    def generate(self, *flags: object, name: str = "out") -> int:
        sampling = ["--video_size", SIDE, SIDE, "--video_length", FRAMES, "--infer_steps", 2, "--seed", 1, "--device", "cpu"]
        models = self.model("dit", "vae", "t5", "clip")
        request = ["--task", self.task, "--prompt", "a cat", "--save_path", self.path / name, "--output_type", "latent"]
        return self.tool("wan_generate_video", *request, *models, *sampling, *flags)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two images, twice as wide as high."""
    folder = tmp_path_factory.mktemp("images")
    paths = folder / "red.png", folder / "blue.png"
    for path, colour in zip(paths, ((220, 40, 30), (30, 60, 230)), strict=True):
        Image.fromarray(np.full((40, 80, 3), colour, np.uint8)).save(path)
    return paths


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Folder]:
    return lambda kind, task: Folder(tmp_path, write_models(tmp_path_factory.mktemp(kind), kind=kind), task)


@pytest.mark.slow
def test_image_to_video(folder: Callable[[str, str], Folder], images: tuple[Path, Path]) -> None:
    work = folder("wan_i2v", "i2v-14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[FRAMES])
    work.cache()
    prompts = work.path / "prompts.txt"
    prompts.write_text(f"a cat --i {images[0]} --w 32 --h 32 --f 5 --s 1\n", encoding="utf-8")
    out = work.train("--sample_prompts", prompts, "--sample_every_n_steps", 2, *work.model("vae", "t5", "clip"))
    assert len(list((out / "sample").glob("*.mp4"))) == 1
    red, blue = (work.latents("--image_path", image, "--lora_weight", out / "cat.safetensors") for image in images)
    assert red.shape == (16, 2, 2, 4), "as wide and high as the image's shape gives with the area of 32x32"
    assert not torch.allclose(red, blue, atol=1e-2)
    assert not torch.allclose(red, work.latents("--image_path", images[0]), atol=1e-4), "the LoRA acts"
    longer = work.latents("--image_path", images[0], "--end_image_path", images[1])
    assert longer.shape == (16, 3, 2, 4), "the last image has a frame of its own behind the video"


def test_where_no_image_of_a_prompt_file_can_be_read_no_transformer_is_loaded(
    folder: Callable[[str, str], Folder], images: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Headers are good, so the prompts are taken; the pixels behind them are cut off."""
    work = folder("wan_i2v", "i2v-14B")
    cut = work.path / "cut.png"
    cut.write_bytes(images[0].read_bytes()[:60])
    prompts = work.path / "prompts.txt"
    prompts.write_text(f"a cat --i {cut}\na dog --i {cut}\n", encoding="utf-8")
    assert work.generate("--from_file", prompts) == 1
    said = capsys.readouterr().err
    assert "2 of 2 prompts failed" in said and "cut.png" in said
    assert "Loading DiT" not in said


def test_first_and_last_frame(folder: Callable[[str, str], Folder], images: tuple[Path, Path]) -> None:
    work = folder("wan_flf2v", "flf2v-14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[FRAMES])
    work.cache("--last_frame")
    (cached,) = (load(path) for path in (work.path / "cache").glob("*wan.safetensors"))
    mask = cached["latents_image_2x4x4_bfloat16"][:4, :, 0, 0]
    assert mask.tolist() == [[1, 0], [1, 0], [1, 0], [1, 1]]
    assert cached["clip_bfloat16"].shape == (2, 257, 32)
    work.train()
    start = ["--image_path", images[0], "--end_image_path"]
    red, blue = (work.latents(*start, image) for image in images)
    assert red.shape == (16, 2, 2, 4)
    assert not torch.allclose(red, blue, atol=1e-2)


def test_caches_of_another_task_are_rejected_before_training(
    folder: Callable[[str, str], Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder("wan_i2v", "i2v-14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[FRAMES])
    work.cache(clip=False)
    flags = [
        "--output_dir",
        work.path,
        "--output_name",
        "x",
        "--network_module",
        "networks.lora_wan",
        "--optimizer_type",
        "adamw",
        "--sdpa",
    ]
    train = ["wan_train_network", "--task", work.task, "--dataset_config", work.config, *work.model("dit"), *flags]
    assert work.tool(*train) == 1
    assert "lacks clip, latents_image" in capsys.readouterr().err


def test_caches_of_one_image_are_rejected_for_a_model_of_two(
    folder: Callable[[str, str], Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder("wan_flf2v", "flf2v-14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[1])
    work.cache()
    flags = [
        "--output_dir",
        work.path,
        "--output_name",
        "x",
        "--network_module",
        "networks.lora_wan",
        "--optimizer_type",
        "adamw",
        "--sdpa",
    ]
    assert work.tool("wan_train_network", "--task", work.task, "--dataset_config", work.config, *work.model("dit"), *flags) == 1
    said = capsys.readouterr().err
    assert "holds the first frame but not the last (wan_cache_latents --last_frame)" in said
    assert "Loading DiT model" not in said


@pytest.mark.parametrize("task", ["t2v-1.3B-FC", "i2v-14B-FC"])
def test_fun_control(task: str, folder: Callable[[str, str], Folder], images: tuple[Path, Path]) -> None:
    work = folder("wan_fc", task)
    (clip,) = write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    (other,) = write_clips(work.path / "controls", count=1, size=(SIDE, SIDE), frames=FRAMES)
    assert clip.name == other.name
    work.dataset("video", target_frames=[FRAMES], control_directory=f"'{work.path / 'controls'}'")
    with_image = task.startswith("i2v")
    work.cache(clip=with_image)
    work.train()
    start = ["--image_path", images[0], "--video_size", SIDE, 2 * SIDE] if with_image else []
    (moving,) = write_clips(work.path / "longer", count=1, size=(48, 32), frames=FRAMES + 4)
    still = work.path / "still"
    still.mkdir()
    for number in range(FRAMES):
        Image.fromarray(np.full((20, 20, 3), 128, np.uint8)).save(still / f"{number}.png")
    first, second = (work.latents("--control_path", control, *start) for control in (moving, still))
    assert not torch.allclose(first, second, atol=1e-2)


def test_image_to_video_with_two_experts(folder: Callable[[str, str], Folder], images: tuple[Path, Path]) -> None:
    work = folder("wan22_i2v", "i2v-A14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[FRAMES])
    work.cache("--i2v")
    out = work.train("--lora_per_expert", *work.model("dit_high_noise"), steps=6)
    loras = ["--lora_weight", out / "cat-low.safetensors", "--lora_weight_high_noise", out / "cat-high.safetensors"]
    both = work.model("dit_high_noise")
    red, blue = (work.latents("--image_path", image, *both, *loras) for image in images)
    assert red.shape == (16, 2, 2, 4)
    assert not torch.allclose(red, blue, atol=1e-2)
    assert not torch.allclose(red, work.latents("--image_path", images[0], *both), atol=1e-4), "the LoRAs act"


def test_one_frame(folder: Callable[[str, str], Folder], images: tuple[Path, Path]) -> None:
    work = folder("wan_i2v", "i2v-14B")
    for kind, colour in (("media", 90), ("controls", 160)):
        (work.path / kind).mkdir()
        Image.fromarray(np.full((SIDE, SIDE, 3), colour, np.uint8)).save(work.path / kind / "a.png")
    (work.path / "media" / "a.txt").write_text("a cat", encoding="utf-8")
    controls = f"'{work.path / 'controls'}'"
    work.dataset("image", control_directory=controls, fp_1f_clean_indices=[0], fp_1f_target_index=9)
    work.cache("--one_frame")
    (path,) = (work.path / "cache").glob("*wan.safetensors")
    cached = load(path)
    assert cached["f_indices_int32"].tolist() == [0, 9]
    assert cached["clip_bfloat16"].shape == (1, 257, 32)
    assert cached["latents_image_2x4x4_bfloat16"][:4, :, 0, 0].tolist() == [[1, 0]] * 4
    assert torch.equal(cached["latents_image_2x4x4_bfloat16"][4:, 0], cached["latents_2x4x4_bfloat16"][:, 0]), "the control image"
    assert not torch.equal(cached["latents_image_2x4x4_bfloat16"][4:, 1], cached["latents_2x4x4_bfloat16"][:, 1]), "grey, and the target"
    written = path.stat().st_mtime_ns
    work.cache("--one_frame", "--skip_existing")
    assert path.stat().st_mtime_ns == written

    prompts = work.path / "prompts.txt"
    prompts.write_text(f"a cat --of target_index=9,control_index=0 --ci {images[0]} --w 32 --h 32 --s 1\n", encoding="utf-8")
    out = work.train("--one_frame", "--sample_prompts", prompts, "--sample_every_n_steps", 2, *work.model("vae", "t5", "clip"))
    assert len(list((out / "sample").glob("*.png"))) == 1

    def made(control: Path, position: int = 9, *flags: object) -> torch.Tensor:
        settings = f"target_index={position},control_index=0"
        return work.latents("--one_frame_inference", settings, "--control_image_path", control, "--image_path", images[0], *flags)

    red = made(images[0])
    assert red.shape == (16, 1, 2, 4)
    assert not torch.allclose(red, made(images[1]), atol=1e-2)
    assert not torch.allclose(red, made(images[0], 1), atol=1e-4), "positions matter"
    mask = work.path / "mask.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(mask)
    assert not torch.allclose(red, made(images[0], 9, "--control_image_mask_path", mask), atol=1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs an image dataset with fp_1f_clean_indices"),
        ({"fp_1f_clean_indices": [0], "fp_1f_target_index": 0}, "must be different positions"),
        ({"fp_1f_clean_indices": [0], "fp_1f_target_index": 1, "no_resize_control": "true"}, "must have the image's size"),
        ({"fp_1f_clean_indices": [0, 4], "fp_1f_target_index": 1}, "not enough control images: found 1, expected 2"),
    ],
)
def test_one_frame_items_that_cannot_be_cached_are_named(
    values: dict[str, object], message: str, folder: Callable[[str, str], Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder("wan", "i2v-14B")
    for kind in ("media", "controls"):
        (work.path / kind).mkdir()
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(work.path / kind / "a.png")
    (work.path / "media" / "a.txt").write_text("a cat", encoding="utf-8")
    work.dataset("image", control_directory=f"'{work.path / 'controls'}'", **values)
    assert work.tool("wan_cache_latents", "--dataset_config", work.config, *work.model("vae"), "--device", "cpu", "--one_frame") == 1
    assert message in capsys.readouterr().err
    assert not (work.path / "cache").exists()


@pytest.mark.parametrize(
    ("kind", "task", "flags", "message"),
    [
        ("wan", "t2v-1.3B", ["--image_path", "{red}"], "takes no start image"),
        ("wan", "t2v-1.3B", ["--control_path", "{red}"], "takes no control video"),
        ("wan_i2v", "i2v-14B", [], "starts from an image: give one with --image_path"),
        ("wan_i2v", "i2v-14B", ["--image_path", "{text}"], "not an image"),
        ("wan_i2v", "i2v-A14B", ["--image_path", "{red}"], "use --task i2v-14B"),
        ("wan_flf2v", "flf2v-14B", ["--image_path", "{red}"], "ends with an image"),
        ("wan_fc", "t2v-14B-FC", [], "follows a control video"),
        ("wan_fc", "t2v-14B-FC", ["--control_path", "{red}"], "1 frame, and 5 are to be made"),
        (
            "wan_i2v",
            "i2v-14B",
            ["--one_frame_inference", "target_index=1,control_index=0", "--image_path", "{red}"],
            "name 1 control position for 0 control images",
        ),
        ("wan_i2v", "i2v-14B", ["--one_frame_inference", "target=0", "--image_path", "{red}"], "is not understood"),
    ],
)
def test_requests_that_do_not_fit_the_task_are_rejected(
    kind: str, task: str, flags: list[str], message: str,
    folder: Callable[[str, str], Folder], images: tuple[Path, Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = folder(kind, task)
    text = work.path / "notes.png"
    text.write_text("no image", encoding="utf-8")
    assert work.generate(*(flag.format(red=images[0], text=text) for flag in flags)) == 1
    assert message in capsys.readouterr().err


def test_every_line_of_a_prompt_file_has_its_image(
    folder: Callable[[str, str], Folder], images: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    work = folder("wan22_i2v", "i2v-A14B")
    broken = work.path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    prompts = work.path / "prompts.txt"
    lines = [f"a cat --i {images[0]} --d 1", f"a cat --i {broken} --d 1", "a cat", f"a cat --i {images[1]} --d 1"]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    sampling = ["--video_size", SIDE, SIDE, "--video_length", FRAMES, "--infer_steps", 2, "--device", "cpu", "--output_type", "latent"]
    request = ["--task", work.task, "--from_file", prompts, "--save_path", work.path / "out", *sampling]
    assert work.tool("wan_generate_video", *request, *work.model("dit", "dit_high_noise", "vae", "t5")) == 1
    said = capsys.readouterr().err
    assert "2 of 4 prompts failed" in said
    assert "line 3: task i2v-A14B starts from an image" in said
    assert "broken.png" in said
    red, blue = (load(path)["latent"] for path in sorted((work.path / "out").iterdir()))
    assert not torch.allclose(red, blue, atol=1e-2)


def test_lora_of_an_image_model_has_layers_for_the_image(folder: Callable[[str, str], Folder]) -> None:
    work = folder("wan_i2v", "i2v-14B")
    write_clips(work.path / "media", count=1, size=(SIDE, SIDE), frames=FRAMES)
    work.dataset("video", target_frames=[1])
    work.cache()
    names = read_header(work.train(steps=1) / "cat.safetensors").tensors
    assert "lora_unet_blocks_0_cross_attn_k_img.lora_down.weight" in names
    assert not any("img_emb" in name for name in names)


def test_a_folder_as_published_stands_for_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from musubi_backend.options.parser import parse

    models = write_models(tmp_path / "models", kind="wan22_i2v")
    folder = tmp_path / "Wan2.2-I2V-A14B"
    names = {
        "dit": "low_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors", "t5": "models_t5_umt5-xxl-enc-bf16.pth",
        "dit_high_noise": "high_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors", "vae": "Wan2.1_VAE.pth",
    }  # fmt: skip
    for part, name in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".pth"):
            torch.save(load(models[part]), folder / name)
        else:
            shutil.copy(models[part], folder / name)
    request = ["--task", "i2v-A14B", "--prompt", "x", "--save_path", str(tmp_path), "--ckpt_dir"]
    args = parse("wan_generate_video", [*request, str(folder)])
    assert {part: getattr(args, part) for part in names} == {part: str(folder / name) for part, name in names.items()}
    own = str(models["vae"])
    assert parse("wan_generate_video", [*request, str(folder), "--vae", own]).vae == own
    assert main(["wan_generate_video", *request, str(tmp_path / "models")]) == 1
    assert "holds none of the files" in capsys.readouterr().err
