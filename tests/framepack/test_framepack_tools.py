"""FramePack end to end on a tiny model: cache, train, generate; plain, F1 and one-frame; what generation takes and what it rejects."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.architectures.framepack.demo_transformer import framepack_transformer
from musubi_backend.inference.video_file import read_images
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from PIL import Image

Flags = Callable[..., list[str]]
Tool = Callable[..., None]
GENERATE = ("dit", "vae", "text_encoder1", "text_encoder2", "image_encoder")
SIZE = ["--video_size", "32", "32", "--latent_window_size", "2", "--infer_steps", "3", "--device", "cpu"]
TRAIN = [
    "--sdpa", "--network_module", "networks.lora_framepack", "--network_dim", "4", "--optimizer_type", "AdamW", "--learning_rate", "1e-3",
    "--max_train_steps", "3", "--mixed_precision", "bf16", "--seed", "1", "--gradient_checkpointing", "--timestep_sampling", "shift",
]  # fmt: skip


@pytest.fixture
def generate(tmp_path: Path, flags: Flags, tool: Tool) -> Callable[..., list[Path]]:
    """Runs the generator into a new folder; returns its files."""

    def run(*words: object) -> list[Path]:
        target = tmp_path / f"made {len(list(tmp_path.glob('made*')))}"
        tool("fpack_generate_video", *flags(*GENERATE), *SIZE, "--save_path", target, *words)
        return sorted(path for path in target.rglob("*") if path.is_file())

    return run


def _train(tool: Tool, flags: Flags, config: Path, output: Path, *words: object) -> Path:
    tool("fpack_train_network", "--dataset_config", config, *flags("dit"), *TRAIN, "--output_dir", output, "--output_name", "lora", *words)
    return output / "lora.safetensors"


def _cache(tool: Tool, flags: Flags, config: Path, *words: str) -> None:
    tool("fpack_cache_latents", "--dataset_config", config, *flags("vae", "image_encoder"), *words)
    tool("fpack_cache_text_encoder_outputs", "--dataset_config", config, *flags("text_encoder1", "text_encoder2"))


def test_a_transformer_may_be_given_by_its_folder(tool: Tool, flags: Flags, tmp_path: Path) -> None:
    _, dit = flags("dit")
    (tmp_path / "model").mkdir()
    shutil.copy(dit, tmp_path / "model")
    merged = tmp_path / "merged.safetensors"
    words = ["--dit", tmp_path / "model", "--save_merged_model", merged, "--save_path", tmp_path, "--device", "cpu"]
    tool("fpack_generate_video", *words)
    assert read_header(merged).tensors.keys() == read_header(dit).tensors.keys()
    assert read_header(merged).metadata["musubi_geometry"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [[], ["--f1"]])
def test_from_clips_to_a_video(
    order: list[str], clips: Path, start_image: Path, tool: Tool, flags: Flags, tmp_path: Path, generate: Callable[..., list[Path]]
) -> None:
    _cache(tool, flags, clips, *order)
    names = {path.name for path in (tmp_path / "cache").glob("*_fp.safetensors")}
    assert names == {f"clip_{n}_00000-017-000{section}_0032x0032_fp.safetensors" for n in (0, 1) for section in (0, 1)}
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a slope --w 32 --h 32 --f 9 --s 2 --d 1 --i {start_image}\n", encoding="utf-8")
    encoders = flags("vae", "text_encoder1", "text_encoder2", "image_encoder")
    lora = _train(
        tool,
        flags,
        clips,
        tmp_path / "loras",
        *order,
        "--latent_window_size",
        2,
        "--sample_prompts",
        prompts,
        "--sample_every_n_steps",
        3,
        *encoders,
    )
    (sample,) = (tmp_path / "loras" / "sample").iterdir()
    assert len(read_images(sample)[0]) == 9
    tensors, metadata = load(lora), read_header(lora).metadata
    assert metadata["ss_base_model_version"] == "framepack"
    assert metadata["modelspec.architecture"] == "framepack/lora"
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith("lora_up.weight"))

    words = [*order, "--prompt", "a slope", "--image_path", start_image, "--video_sections", 2, "--seed", 7]
    (video,) = generate(*words, "--lora_weight", lora)
    images, rate = read_images(video)
    assert (len(images), rate) == (17, 30)
    assert video.name.endswith("_7_.mp4")
    plain, again, other = (
        load(generate(*words, *more, "--output_type", "latent")[0])["latent"] for more in ([], [], ["--lora_weight", lora])
    )
    assert plain.shape == (16, 5, 4, 4)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, other)


def test_caches_of_musubi_tuner_are_trained_on(shared: Path, tmp_path: Path, tool: Tool) -> None:
    """Its caches of three sections, with the widths of the encoders it had."""
    cache = tmp_path / "cache"
    shutil.copytree(shared / "golden/cache/fp_video", cache)
    tensors, metadata = framepack_transformer(text_dim=32, pooled_dim=24, image_dim=16, seed=0)
    save_atomic(tensors, tmp_path / "dit.safetensors", metadata)
    (tmp_path / "d.toml").write_text(
        f"[general]\nresolution = [64, 48]\nbatch_size = 2\n[[datasets]]\nvideo_directory = '{tmp_path}'\ncache_directory = '{cache}'\n"
        "target_frames = [9, 21]\nfp_latent_window_size = 2\n",
        encoding="utf-8",
    )
    data = ["--dataset_config", tmp_path / "d.toml", "--dit", tmp_path / "dit.safetensors"]
    tool("fpack_train_network", *data, *TRAIN, "--output_dir", tmp_path, "--output_name", "lora")
    tensors = load(tmp_path / "lora.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if name.endswith("lora_up.weight"))


@pytest.mark.slow
def test_one_frame_from_images_to_an_image(
    images: Path, start_image: Path, tool: Tool, flags: Flags, tmp_path: Path, generate: Callable[..., list[Path]]
) -> None:
    _cache(tool, flags, images, "--one_frame", "--one_frame_no_4x")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        f"a slope --w 32 --h 32 --s 2 --d 1 --i {start_image} --ci {start_image} --of target_index=1,control_index=0\n",
        encoding="utf-8",
    )
    sampling = ["--one_frame", "--sample_prompts", prompts, "--sample_every_n_steps", 3]
    sampling += flags("vae", "text_encoder1", "text_encoder2", "image_encoder")
    lora = _train(tool, flags, images, tmp_path / "loras", "--latent_window_size", 2, *sampling)
    assert [path.suffix for path in (tmp_path / "loras" / "sample").iterdir()] == [".png"]

    control = ["--prompt", "a slope", "--seed", 3, "--image_path", start_image, "--control_image_path", start_image]
    control += ["--one_frame_inference", "target_index=1,control_index=0,no_4x", "--lora_weight", lora]
    (image,) = generate(*control, "--output_type", "images")
    assert image.name.endswith("_3__000.png")
    assert Image.open(image).size == (32, 32)

    def latents(*words: object) -> torch.Tensor:
        (file,) = generate(*control, *words, "--output_type", "latent")
        return load(file)["latent"]

    dark = tmp_path / "mask.png"
    Image.new("L", (32, 32), 0).save(dark)
    plain = latents()
    assert plain.shape == (16, 1, 4, 4)
    assert not torch.equal(plain, latents("--control_image_mask_path", dark)), "a black mask takes the control image away"
    clear = tmp_path / "clear.png"
    Image.open(start_image).convert("RGBA").save(clear)
    assert torch.equal(plain, latents("--control_image_path", clear)), "an opaque image is not masked"


def test_one_frame_takes_the_shape_of_its_control_image_when_asked(
    tmp_path: Path, start_image: Path, generate: Callable[..., list[Path]]
) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (640, 160), (200, 30, 30)).save(wide)
    words = ["--prompt", "a slope", "--image_path", start_image, "--control_image_path", wide, "--one_frame_inference", "default"]
    (file,) = generate(*words, "--one_frame_auto_resize", "--output_type", "latent")
    assert load(file)["latent"].shape == (16, 1, 2, 8), "64x16 has the area of 32x32"


def test_sections_have_prompts_and_images_of_their_own(start_image: Path, tmp_path: Path, generate: Callable[..., list[Path]]) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (48, 40), (200, 30, 30)).save(other)

    def latents(prompt: str, image: str, *words: object) -> torch.Tensor:
        (file,) = generate("--prompt", prompt, "--image_path", image, "--video_sections", 2, "--seed", 5, "--output_type", "latent", *words)
        return load(file)["latent"]

    plain = latents("a slope", str(start_image))
    assert torch.equal(plain, latents("0:a slope;;;1:a slope", f"0:{start_image};;;-1:{start_image}"))
    for changed in (latents("0:a slope;;;-1:a dog", str(start_image)), latents("a slope", f"0:{start_image};;;-1:{other}")):
        assert not torch.equal(plain[:, 3:], changed[:, 3:]), "the last section, which is made first"
        assert torch.equal(plain[:, :1], changed[:, :1]), "the start image stays"
    assert not torch.equal(plain, latents("a slope", str(start_image), "--end_image_path", other))


def test_a_line_of_a_file_has_settings_of_its_own_and_results_say_what_they_are(
    start_image: Path, tmp_path: Path, generate: Callable[..., list[Path]]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(
        f"a slope --vs 1 --d 4 --i {start_image}\na dog --f 0.8 --d 5 --mcrr 0.1 --mct 1.0 --mck 3 --l 2 --n rain --i {start_image}\n",
        encoding="utf-8",
    )
    words = ["--from_file", lines, "--output_type", "latent", "--magcache_mag_ratios", "0", "--video_seconds", 9]
    files = {path.name.split("_")[1]: path for path in generate(*words, "--guidance_rescale", 0.5, "--fps", 12)}
    metadata = {seed: read_header(path).metadata for seed, path in files.items()}
    assert load(files["4"])["latent"].shape[1] == 3
    assert load(files["5"])["latent"].shape[1] == 7, "0.8 seconds are 24 of 8 frames each"
    assert metadata["5"]["prompt"] == "a dog"
    assert metadata["5"]["negative_prompt"] == "rain"
    assert metadata["5"]["guidance_scale"] == "2.0"
    assert float(metadata["5"]["video_seconds"]) == pytest.approx(25 / 30, abs=1e-3)
    assert {metadata["4"][key] for key in ("latent_window_size", "embedded_cfg_scale", "guidance_rescale", "fps")} == {
        "2",
        "10.0",
        "0.5",
        "12",
    }


def test_latents_are_decoded_later_all_at_once_or_two_sections_at_a_time(
    start_image: Path, tmp_path: Path, flags: Flags, tool: Tool, generate: Callable[..., list[Path]]
) -> None:
    words = ["--prompt", "a slope", "--image_path", start_image, "--video_sections", 3, "--seed", 2, "--output_type", "latent"]
    (latent,) = generate(*words)
    copies = [shutil.copy(latent, tmp_path / f"copy_{number}.safetensors") for number in range(2)]
    target = tmp_path / "decoded"
    tool("fpack_generate_video", *flags("vae"), *SIZE, "--save_path", target, "--latent_path", *copies, "--prompt", "unused")
    videos = sorted(target.glob("*.mp4"))
    assert [video.name.rsplit("_", 2)[-2:] for video in videos] == [["copy", "0.mp4"], ["copy", "1.mp4"]]
    assert all(len(read_images(video)[0]) == 25 for video in videos)
    tool(
        "fpack_generate_video",
        *flags("vae"),
        *SIZE,
        "--save_path",
        tmp_path / "bulk",
        "--latent_path",
        latent,
        "--bulk_decode",
        "--vae_chunk_size",
        16,
    )
    (bulk,) = (tmp_path / "bulk").glob("*.mp4")
    assert len(read_images(bulk)[0]) == 25


@pytest.mark.slow
def test_settings_that_change_what_the_model_sees(start_image: Path, generate: Callable[..., list[Path]]) -> None:
    def latents(*words: object) -> torch.Tensor:
        request = ["--prompt", "a slope", "--image_path", start_image, "--video_sections", 1, "--seed", 5, "--output_type", "latent"]
        return load(generate(*request, *words)[0])["latent"]

    plain = latents()
    settings: list[list[object]] = [
        ["--custom_system_prompt", "Describe the colours:"], ["--embedded_cfg_scale", 1], ["--flow_shift", 3], ["--guidance_scale", 2],
        ["--rope_scaling_timestep_threshold", 500], ["--fp8_llm"],
    ]  # fmt: skip
    for words in settings:
        assert not torch.equal(plain, latents(*words)), words
    assert not torch.equal(latents("--fp8_scaled"), plain)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video_size", "40", "32"], "size 32x40 does not fit FramePack: sides are multiples of 16; nearest is 32x32"),
        (["--image_path", "nowhere.png"], "nowhere.png"),
        (["--one_frame_inference", "no_8x"], '"no_8x" is not known'),
        (["--latent_paddings", "a,b"], "give whole numbers separated by commas"),
        (["--latent_paddings", "1,0", "--f1"], "only sections of plain FramePack have paddings"),
        (["--end_image_path", "{image}", "--f1"], "only plain FramePack takes one"),
        (["--control_image_path", "{image}"], "add --one_frame_inference"),
        (["--control_image_mask_path", "{image}", "--one_frame_inference", "default"], "1 mask for 0 control images"),
        (["--magcache_mag_ratios", "x"], "give numbers separated by commas"),
        (["--sample_solver", "dpm++"], "FramePack has unipc only"),
    ],
)
def test_what_cannot_be_done_is_rejected_before_anything_is_loaded(
    words: list[str], message: str, flags: Flags, tmp_path: Path, start_image: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{image}", str(start_image)) for word in words]
    assert main(["fpack_generate_video", *flags(*GENERATE), *SIZE, "--save_path", str(tmp_path / "x"), "--prompt", "a", *words]) == 1
    captured = capfd.readouterr().err
    assert message in captured
    assert "loading" not in captured.lower()
    assert not (tmp_path / "x").exists()
