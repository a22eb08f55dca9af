"""The generate verb from command line to files, on the tiny demo models."""

from __future__ import annotations

import io
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from musubi_backend import job, place
from musubi_backend.__main__ import main
from musubi_backend.architectures import protocol
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.encoders.wan_vae import WanVAE
from musubi_backend.errors import StopRequested, UserError
from musubi_backend.inference import generate, outputs
from musubi_backend.inference.video_file import read_images
from musubi_backend.options.parser import parse
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic
from PIL import Image

SMALL = ["--video_size", "32", "48", "--video_length", "5", "--infer_steps", "2", "--task", "t2v-1.3B", "--device", "cpu"]
TIME = r"\d{8}-\d{6}-\d{3}"
Generate = Callable[..., list[Path]]


@pytest.fixture
def run(demo: dict[str, Path], tmp_path: Path) -> Generate:
    """Runs wan_generate_video and returns the files it made, sorted."""

    def run(*flags: object, **changed: Path) -> list[Path]:
        folder = tmp_path / f"out {len(list(tmp_path.glob('out*')))}"
        models = {**demo, **changed}
        argv = [*SMALL, "--dit", models["dit"], "--vae", models["vae"], "--t5", models["t5"], "--save_path", folder, *flags]
        try:
            generate.run(parse("wan_generate_video", [str(word) for word in argv]), protocol.load("wan"))
        finally:
            run.folder = folder  # type: ignore[attr-defined]
        return _files(folder)

    return run


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _latents(run: Generate, *flags: object) -> torch.Tensor:
    (path,) = run("--prompt", "a dog", "--seed", 1, "--output_type", "latent", *flags)
    return load(path)["latent"]


def _lora(path: Path, dit: Path) -> Path:
    """A strong random LoRA for the self attention of the first block."""
    width = read_header(dit).tensors["blocks.0.self_attn.q.weight"].shape[0]
    generator = torch.Generator().manual_seed(3)
    state = {}
    for part in ("q", "v", "o"):
        name = f"lora_unet_blocks_0_self_attn_{part}"
        state[f"{name}.lora_down.weight"] = torch.randn(4, width, generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator)
        state[f"{name}.alpha"] = torch.tensor(4.0)
    save_atomic(state, path, {"ss_network_module": "networks.lora_wan"})
    return path


# --- what is generated


def test_same_seed_same_latents_other_seed_other_latents(run: Generate) -> None:
    first = _latents(run)
    assert first.shape == (16, 2, 4, 6)
    assert first.dtype == torch.float32
    assert torch.equal(first, _latents(run))
    assert not torch.allclose(first, _latents(run, "--seed", 2), atol=0.1)


def test_a_lora_acts_by_its_multiplier(run: Generate, demo: dict[str, Path], tmp_path: Path) -> None:
    lora = _lora(tmp_path / "lora.safetensors", demo["dit"])
    without, full = _latents(run), _latents(run, "--lora_weight", lora)
    assert torch.equal(without, _latents(run, "--lora_weight", lora, "--lora_multiplier", 0))
    assert torch.equal(full, _latents(run, "--lora_weight", lora, "--lora_multiplier", 1))
    half = _latents(run, "--lora_weight", lora, "--lora_multiplier", 0.5)
    assert 0 < (half - without).norm() < (full - without).norm()
    # two halves of the same LoRA are one: rounding of the merged weights is all that may differ
    twice = _latents(run, "--lora_weight", lora, lora, "--lora_multiplier", 0.5, 0.5)
    torch.testing.assert_close(twice, full, rtol=0, atol=1e-3)


def test_merged_model_needs_no_lora_any_more(run: Generate, demo: dict[str, Path], tmp_path: Path) -> None:
    lora, merged = _lora(tmp_path / "lora.safetensors", demo["dit"]), tmp_path / "models" / "merged.safetensors"
    assert run("--lora_weight", lora, "--save_merged_model", merged) == []
    assert read_header(merged).tensors.keys() == read_header(demo["dit"]).tensors.keys()
    with_lora = _latents(run, "--lora_weight", lora)
    (path,) = run("--prompt", "a dog", "--seed", 1, "--output_type", "latent", dit=merged)
    assert torch.equal(load(path)["latent"], with_lora)


def test_a_merged_model_never_replaces_what_it_is_made_of(run: Generate, demo: dict[str, Path], tmp_path: Path) -> None:
    lora = _lora(tmp_path / "lora.safetensors", demo["dit"])
    before = {path: path.read_bytes() for path in (lora, demo["dit"])}
    for path in before:
        with pytest.raises(UserError, match="is the input"):
            run("--lora_weight", lora, "--save_merged_model", path)
    assert before == {path: path.read_bytes() for path in before}


def test_a_prompt_file_gives_what_single_prompts_give(run: Generate, tmp_path: Path) -> None:
    file = tmp_path / "犬 prompts.txt"
    file.write_text("# both\na dog --d 1\na cat --d 2 --w 32 --f 1 --s 3 --g 1\n", encoding="utf-8")
    dog, cat = run("--from_file", file, "--output_type", "latent")
    assert torch.equal(load(dog)["latent"], _latents(run))
    assert load(cat)["latent"].shape == (16, 1, 4, 4)
    expected = {"seeds": "2", "prompt": "a cat", "infer_steps": "3", "guidance_scale": "1.0", "width": "32", "video_length": "1"}
    assert expected.items() <= read_header(cat).metadata.items()


def test_a_seed_is_drawn_and_reported_when_none_is_given(run: Generate) -> None:
    first, second = run("--prompt", "a", "--output_type", "latent")[0], run("--prompt", "a", "--output_type", "latent")[0]
    seeds = [read_header(path).metadata["seeds"] for path in (first, second)]
    assert seeds[0] != seeds[1]
    assert f"_{seeds[0]}_" in first.name


# --- files


@pytest.mark.parametrize(
    ("output_type", "patterns"),
    [
        ("video", [rf"{TIME}_1_\.mp4"]),
        ("latent", [rf"{TIME}_1_latent\.safetensors"]),
        ("both", [rf"{TIME}_1_\.mp4", rf"{TIME}_1_latent\.safetensors"]),
        ("images", [rf"{TIME}_1_/{TIME}_1__00{i}\.png" for i in range(5)]),
        ("latent_images", [*(rf"{TIME}_1_/{TIME}_1__00{i}\.png" for i in range(5)), rf"{TIME}_1_latent\.safetensors"]),
    ],
)
def test_names_of_what_a_single_prompt_makes(run: Generate, output_type: str, patterns: list[str]) -> None:
    made = run("--prompt", "a dog", "--seed", 1, "--output_type", output_type)
    names = [path.relative_to(run.folder).as_posix() for path in made]  # type: ignore[attr-defined]
    assert len(names) == len(patterns)
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(patterns, sorted(names), strict=True)), names


def test_names_of_what_a_file_makes_have_no_trailing_underscore(run: Generate, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a --d 5\nb --d 5\n", encoding="utf-8")
    made = run("--from_file", tmp_path / "p.txt")
    assert len(made) == 2
    assert all(re.fullmatch(rf"{TIME}_5\.mp4", path.name) for path in made)


def test_video_has_the_size_length_and_speed_asked_for(run: Generate) -> None:
    (path,) = run("--prompt", "a dog", "--seed", 1)
    images, fps = read_images(path)
    assert (len(images), images[0].shape, fps) == (5, (32, 48, 3), 16)
    images, fps = read_images(run("--prompt", "a dog", "--seed", 1, "--fps", 24, "--trim_tail_frames", 2)[0])
    assert (len(images), fps) == (3, 24)


def test_text_to_image_makes_one_png_without_a_folder(run: Generate) -> None:
    (path,) = run("--prompt", "a dog", "--seed", 1, "--output_type", "images", "--video_length", 1)
    assert re.fullmatch(rf"{TIME}_1__000\.png", path.name)
    assert Image.open(path).size == (48, 32)


def test_decoding_a_saved_latent_gives_the_same_video(run: Generate) -> None:
    video, latent = run("--prompt", "a dog", "--seed", 1, "--output_type", "both")
    (again,) = run("--latent_path", latent)
    assert re.fullmatch(rf"{TIME}_1__{latent.stem}\.mp4", again.name)
    assert np.array_equal(np.stack(read_images(again)[0]), np.stack(read_images(video)[0]))
    assert len(run("--latent_path", latent, "--output_type", "images")) == 5


@pytest.mark.parametrize("colour", [(220, 30, 40), (30, 200, 60), (40, 60, 210), (250, 250, 250), (5, 5, 5)])
def test_an_encoded_colour_comes_out_as_that_colour(run: Generate, demo: dict[str, Path], tmp_path: Path, colour: tuple[int, ...]) -> None:
    vae = WanVAE.load(demo["vae"], torch.device("cpu"), torch.float32)
    clip = torch.tensor(colour).view(1, 3, 1, 1, 1).expand(1, 3, 5, 64, 64) / 127.5 - 1
    save_atomic({"latent": vae.encode(clip)[0]}, tmp_path / "colour.safetensors")
    images, _ = read_images(run("--latent_path", tmp_path / "colour.safetensors")[0])
    middle = np.stack(images)[:, 16:48, 16:48].mean(axis=(0, 1, 2))  # the demo VAE fades to grey at the borders
    # it keeps a flat colour within a few steps, and so does h264; swapped channels or a wrong range are 100 and more off
    assert np.abs(middle - colour).max() <= 12


def test_metadata_is_kept_unless_rejected(run: Generate) -> None:
    def reported(path: Path) -> dict[str, str]:
        if path.suffix == ".safetensors":
            return read_header(path).metadata
        if path.suffix == ".png":
            return dict(Image.open(path).text)
        with av.open(str(path)) as container:
            return dict(container.metadata)

    flags = ["--prompt", "a dog 犬", "--negative_prompt", "ugly", "--seed", 1, "--guidance_scale", 3]
    expected = {"prompt": "a dog 犬", "negative_prompt": "ugly", "seeds": "1", "guidance_scale": "3.0", "height": "32", "width": "48"}
    for output_type in ("both", "images"):
        for path in run(*flags, "--output_type", output_type):
            expected = {
                "prompt": "a dog 犬",
                "negative_prompt": "ugly",
                "seeds": "1",
                "guidance_scale": "3.0",
                "height": "32",
                "width": "48",
            }
            assert expected.items() <= reported(path).items()
        for path in run(*flags, "--output_type", output_type, "--no_metadata"):
            assert "a dog" not in str(reported(path))


def test_results_are_announced_to_the_job(run: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    made = run("--prompt", "a dog", "--seed", 1, "--output_type", "both")
    events = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert all(f'"path": "{path}"' in events for path in made)


# --- several prompts


def test_bad_prompts_are_named_and_the_others_go_on(run: Generate, tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a dog --d 1\na cat --w 50\na cow --x 1\na hen --d 4\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"(?s)2 of 4 prompts failed.*line 2: size 50x32.*nearest is 48x32.*line 3: unknown option"
    ) as error:
        run("--from_file", file, "--output_type", "latent")
    assert str(error.value).count(str(file)) == 2
    assert [path.name.split("_")[1] for path in _files(run.folder)] == ["1", "4"]  # type: ignore[attr-defined]


def test_only_bad_prompts_end_before_any_model_is_loaded(run: Generate, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "p.txt").write_text("a --w x\n", encoding="utf-8")
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match=r'no usable prompt:\n.*line 1: --w: "x" is not a whole number'):
        run("--from_file", tmp_path / "p.txt")
    assert "Loading" not in caplog.text


def test_interactive_reads_lines_until_the_end_and_survives_a_bad_one(
    run: Generate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a dog --d 1\n\na cat --w 17\na hen --d 2 --f 1\n"))
    made = run("--interactive")
    assert [re.sub(TIME, "", path.name) for path in made] == ["_1.mp4", "_2.mp4"]
    assert "nearest is 16x32" in caplog.text


def test_interactive_cannot_run_in_a_job(run: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="use --from_file in a job"):
        run("--interactive")


def test_log_is_what_musubi_writes(run: Generate, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO):
        (path,) = run("--prompt", "a dog", "--seed", 1)
    messages = [record.getMessage() for record in caplog.records]
    for expected in (
        "Using device: cpu",
        "Video size: 32x48@5 (HxW@F), fps: 16, infer_steps: 2, flow_shift: 5.0",
        "Processing prompt 1/1: a dog...",
        "Starting sampling (high noise: False). Models: 1, timestep boundary: None, flow shift: 5.0, guidance scale: 5.0",
        "Decoding video from latents: torch.Size([16, 2, 4, 6])",
        "Decoding complete",
        f"Video saved to: {path}",
        "Done!",
    ):
        assert expected in messages
    assert re.search(r"100%\|█+\| 2/2 \[", capfd.readouterr().err)


# --- what cannot be done


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video_size", 50, 48], "size 48x50 does not fit Wan2.1.*nearest is 48x48"),
        (["--video_length", 6], "6 frames do not fit Wan2.1.*nearest is 5"),
        (["--task", "t2i-14B"], "--video_length 5: task t2i-14B makes single images"),
        (["--trim_tail_frames", 5], "--trim_tail_frames 5: only 0 to 4 of 5 frames"),
        (["--slg_layers", "1,x", "--slg_mode", "uncond"], '--slg_layers "1,x"'),
        (["--slg_layers", "99", "--slg_mode", "uncond"], "--slg_layers: block 99 does not exist"),
    ],
)
def test_bad_settings(run: Generate, flags: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("--prompt", "a dog", *flags)


def test_files_that_are_not_latents(run: Generate, demo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no tensor "latent" in this file'):
        run("--latent_path", demo["dit"])
    save_atomic({"latent": torch.zeros(4, 1, 2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"latents of shape \[4, 1, 2, 2\]; expected \[16,"):
        run("--latent_path", tmp_path / "other.safetensors")


# --- nothing is lost


def test_finished_samples_survive_a_vae_that_cannot_be_loaded(run: Generate, demo: dict[str, Path]) -> None:
    with pytest.raises(UserError):
        run("--prompt", "a dog", "--seed", 1, vae=demo["dit"])
    (rescued,) = _files(run.folder)  # type: ignore[attr-defined]
    assert torch.equal(outputs.load_latents(rescued, CARD).latents, _latents(run))


def test_finished_samples_survive_a_stop(run: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("a dog --d 1\na cat --d 2\n", encoding="utf-8")
    sample, done = generate.Session._sample, 0

    def stopping(session: generate.Session, *arguments: Any) -> generate.Result:
        nonlocal done
        done += 1
        monkeypatch.setattr(job, "stop_requested", lambda: done == 2)
        return sample(session, *arguments)

    monkeypatch.setattr(generate.Session, "_sample", stopping)
    with pytest.raises(StopRequested, match="after 0 of 2 steps; saved as latents: 1 finished sample"):
        run("--from_file", tmp_path / "p.txt")
    (rescued,) = _files(run.folder)  # type: ignore[attr-defined]
    assert rescued.name.endswith("_1_latent.safetensors")


def test_a_full_disk_is_named_and_leaves_no_half_video(demo: dict[str, Path], small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    models = [word for name in ("dit", "vae", "t5") for word in (f"--{name}", str(demo[name]))]
    assert main(["wan_generate_video", *SMALL, *models, "--save_path", str(small_disk), "--prompt", "a dog"]) == 1
    errors = capfd.readouterr().err
    assert "no space left on the disk" in errors and "Traceback" not in errors
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("output_type", ["video", "images"])
def test_a_sample_whose_place_fails_at_the_end_is_kept_elsewhere(
    run: Generate, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, output_type: str
) -> None:
    """The disk fills while the sample is made: its latent goes to the job's folder, or as that is full too, to the user's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setattr(job, "folder", lambda: small_disk / "job")
    (small_disk / "job").mkdir()
    sample = generate.Session._sample

    def filling(session: generate.Session, *given: Any) -> generate.Result:
        result = sample(session, *given)
        with pytest.raises(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while True:  # to the last page
                filler.write(bytes(4096))
        return result

    expected = _latents(run)
    monkeypatch.setattr(generate.Session, "_sample", filling)
    with pytest.raises((OSError, UserError)):
        run("--prompt", "a dog", "--seed", 1, "--output_type", output_type, "--save_path", small_disk / "videos")
    (kept,) = _files(home)
    assert torch.equal(outputs.load_latents(kept, CARD).latents, expected)
    assert f"its latent is {kept}" in caplog.text and "no space left on the disk" in caplog.text
    assert {path.name for path in _files(small_disk)} <= {"filler", "metrics.jsonl"}, "nothing half"


def test_what_is_kept_elsewhere_goes_to_the_first_folder_that_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {name: tmp_path / name for name in ("job", "home", "temporary")}
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(places["job"]))
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setenv("USERPROFILE", str(places["home"]))
    monkeypatch.setattr(place.tempfile, "gettempdir", lambda: str(places["temporary"]))

    def write(folder: Path) -> Path:
        (folder / "x").write_text("kept")
        return folder

    for name in ("temporary", "home", "job"):
        places[name].mkdir()
        assert place.elsewhere(write) == places[name]
    for folder in places.values():
        shutil.rmtree(folder)
    with pytest.raises(OSError, match="temporary"):
        place.elsewhere(write)
