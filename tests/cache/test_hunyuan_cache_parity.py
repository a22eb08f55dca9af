"""HunyuanVideo's and FramePack's caches against those the real musubi-tuner wrote from the same media with the same tiny VAE.

The reference latents are samples of the VAE's posterior from a random state that nobody kept. So ours are written twice, once with the
mean and once with the mean plus one standard deviation, and the reference must look like a sample of that distribution, value by value.
The reference's text and image encoders are not part of it: there, names, shapes, dtypes and metadata are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.__main__ import main
from musubi_backend.demo import encoders as demo
from musubi_backend.encoders.hunyuan_vae import HunyuanVAE
from musubi_backend.weights.safetensors_file import save_atomic
from safetensors import safe_open

Cache = dict[str, tuple[dict[str, str], dict[str, torch.Tensor]]]
CONTROLS = {"control_directory": "ctl", "resolution": "[64, 48]"}
CASES: dict[str, tuple[str, str, dict[str, object], list[str]]] = {
    "hv_video": ("cache_latents", "video", {"target_frames": "[1, 9]", "frame_extraction": '"head"'}, []),
    "hv_image": ("cache_latents", "image", {}, []),
    "fp_video": ("fpack_cache_latents", "video", {"frame_extraction": '"full"', "max_frames": 21, "fp_latent_window_size": 2}, []),
    "fp_one_frame": (
        "fpack_cache_latents",
        "image",
        {**CONTROLS, "fp_1f_clean_indices": "[0]", "fp_1f_target_index": 9},
        ["--one_frame"],
    ),
    "fp_one_frame_no2x4x": (
        "fpack_cache_latents",
        "image",
        {**CONTROLS, "fp_1f_clean_indices": "[0, 10]", "fp_1f_target_index": 1, "fp_1f_no_post": "true"},
        ["--one_frame", "--one_frame_no_2x", "--one_frame_no_4x"],
    ),
}
Toml = Callable[..., Path]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In float32, as the reference's were."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = {}
    for name, make in (("text_encoder1", demo.llama), ("text_encoder2", demo.clip_l), ("image_encoder", demo.siglip)):
        tensors, metadata = make(0)
        paths[name] = folder / f"{name}.safetensors"
        save_atomic({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}, paths[name], metadata)
    return paths


@pytest.fixture
def dataset(shared: Path, tmp_path: Path, dataset_toml: Toml) -> Callable[[str], Path]:
    def write(case: str) -> Path:
        _, kind, values, _ = CASES[case]
        source = shared / "golden/cache/_src"
        values = {"resolution": "[64, 48]", "enable_bucket": "true", **values}
        if "control_directory" in values:
            values["control_directory"] = f"'{source / str(values['control_directory'])}'"
        return dataset_toml(tmp_path / "dataset.toml", kind, source / {"video": "vid", "image": "img"}[kind], tmp_path / "cache", **values)

    return write


def _contents(folder: Path, *, text: bool) -> Cache:
    found: Cache = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.endswith("_te.safetensors") == text:
            with safe_open(path, framework="pt") as file:
                found[path.name] = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("case", CASES)
def test_latents_are_of_the_distribution_the_reference_was_drawn_from(
    case: str,
    shared: Path,
    tmp_path: Path,
    dataset: Callable[[str], Path],
    encoders: dict[str, Path],
    reference_hunyuan_vae: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, _, _, flags = CASES[case]
    words = [tool, "--dataset_config", str(dataset(case)), "--vae", str(reference_hunyuan_vae), "--vae_dtype", "float32", *flags]
    if tool.startswith("fpack"):
        words += ["--image_encoder", str(encoders["image_encoder"])]

    def written(deviations: float) -> Cache:
        def shifted(self: HunyuanVAE, video: torch.Tensor, generators: Sequence[Any] | None = None) -> torch.Tensor:
            mean, logvar = self.moments(video)
            return mean + deviations * (0.5 * logvar).exp()

        with monkeypatch.context() as patch:
            patch.setattr(HunyuanVAE, "encode", shifted)
            assert main(words) == 0
        return _contents(tmp_path / "cache", text=False)

    mean, above = written(0.0), written(1.0)
    expected = _contents(shared / "golden/cache" / case, text=False)
    assert set(mean) == set(expected)
    scores = []
    for name, (metadata, tensors) in expected.items():
        assert mean[name][0] == metadata
        assert set(mean[name][1]) == set(tensors)
        for key, tensor in tensors.items():
            ours, deviation = mean[name][1][key], above[name][1][key] - mean[name][1][key]
            assert ours.dtype == tensor.dtype, key
            if key.startswith("image_embeddings"):
                assert ours.ndim == tensor.ndim
                continue
            assert ours.shape == tensor.shape, key
            certain = deviation == 0
            torch.testing.assert_close(ours[certain], tensor[certain], rtol=0, atol=1e-6)
            scores.append(((tensor - ours) / deviation)[~certain].flatten())
    score = torch.cat(scores).double()
    assert score.abs().max() < 6
    assert score.mean().abs() < 0.1
    assert 0.9 < score.std() < 1.1


@pytest.mark.parametrize("case", ["hv_video", "hv_image", "fp_video"])
def test_text_caches_have_musubi_tuners_names_keys_and_metadata(
    case: str, shared: Path, tmp_path: Path, dataset: Callable[[str], Path], encoders: dict[str, Path]
) -> None:
    tool = "cache_text_encoder_outputs" if case.startswith("hv") else "fpack_cache_text_encoder_outputs"
    words = [tool, "--dataset_config", str(dataset(case))]
    words += [word for name in ("text_encoder1", "text_encoder2") for word in (f"--{name}", str(encoders[name]))]
    assert main([*words, *(["--text_encoder_dtype", "float32"] if case.startswith("hv") else [])]) == 0
    found, expected = _contents(tmp_path / "cache", text=True), _contents(shared / "golden/cache" / case, text=True)
    assert set(found) == set(expected)
    for name, (metadata, tensors) in expected.items():
        assert found[name][0] == metadata
        ours = found[name][1]
        assert {key: t.dtype for key, t in ours.items()} == {key: t.dtype for key, t in tensors.items()}
        assert {key: t.shape[:-1] for key, t in ours.items()} == {key: t.shape[:-1] for key, t in tensors.items()}
        for key, mask in ours.items():
            if key.endswith("mask"):
                assert mask.shape == tensors[key].shape
                assert 0 < mask.sum() < len(mask)
                assert mask[: int(mask.sum())].all()


def test_caching_again_gives_the_same_bits_in_other_batches(
    tmp_path: Path, dataset: Callable[[str], Path], reference_hunyuan_vae: Path
) -> None:
    """musubi-tuner's caches differ from run to run."""
    words = ["cache_latents", "--dataset_config", str(dataset("hv_video")), "--vae", str(reference_hunyuan_vae)]
    assert main(words) == 0
    first = _contents(tmp_path / "cache", text=False)
    assert all(key.endswith("_float16") for _, tensors in first.values() for key in tensors)
    assert main([*words, "--batch_size", "2"]) == 0
    again = _contents(tmp_path / "cache", text=False)
    for name, (_, tensors) in first.items():
        for key, tensor in tensors.items():
            # only rounding: sums over a larger batch may be taken in another order
            torch.testing.assert_close(again[name][1][key], tensor, rtol=2e-3, atol=2e-3)


def test_f1_tells_each_section_of_those_before_it(
    tmp_path: Path, dataset: Callable[[str], Path], encoders: dict[str, Path], reference_hunyuan_vae: Path
) -> None:
    words = ["fpack_cache_latents", "--dataset_config", str(dataset("fp_video")), "--vae", str(reference_hunyuan_vae), "--f1"]
    assert main([*words, "--vae_dtype", "float32", "--image_encoder", str(encoders["image_encoder"])]) == 0
    found = _contents(tmp_path / "cache", text=False)
    first, second = (found[f"clip_1_00000-021-000{number}_0064x0048_fp.safetensors"][1] for number in (0, 1))
    for section in (first, second):
        assert section["latent_indices_int64"].tolist() == [20, 21]
        assert section["clean_latent_indices_int64"].tolist() == [0, 19]
        assert section["clean_latent_4x_indices_int64"].tolist() == list(range(1, 17))
        assert section["clean_latent_2x_indices_int64"].tolist() == [17, 18]
    latents, clean = (first[key] for key in ("latents_2x6x8_float32", "latents_clean_2x6x8_float32"))
    assert torch.equal(clean[:, 0], clean[:, 1]), "the start image is the newest frame, too"
    assert torch.equal(second["latents_clean_2x6x8_float32"], torch.stack([clean[:, 0], latents[:, 1]], dim=1))
    assert torch.equal(second["latents_clean_2x_2x6x8_float32"], torch.stack([clean[:, 0], latents[:, 0]], dim=1))
    assert not second["latents_clean_4x_2x6x8_float32"].any()


def test_skipping_tells_caches_of_f1_from_those_of_plain_framepack(
    tmp_path: Path, dataset: Callable[[str], Path], encoders: dict[str, Path], reference_hunyuan_vae: Path
) -> None:
    words = ["fpack_cache_latents", "--dataset_config", str(dataset("fp_video")), "--vae", str(reference_hunyuan_vae), "--skip_existing"]
    words += ["--image_encoder", str(encoders["image_encoder"])]

    def written_again(*order: str) -> bool:
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
        assert main([*words, *order]) == 0
        return any(path.stat().st_mtime_ns != time for path, time in before.items())

    assert main(words) == 0
    assert not written_again()
    assert written_again("--f1")
    assert not written_again("--f1")


def test_clips_too_short_for_a_section_are_named(
    shared: Path,
    tmp_path: Path,
    dataset_toml: Toml,
    encoders: dict[str, Path],
    reference_hunyuan_vae: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = shared / "golden/cache/_src/vid"
    toml = dataset_toml(tmp_path / "dataset.toml", "video", source, tmp_path / "cache", resolution="[64, 48]", target_frames="[9]")
    words = ["fpack_cache_latents", "--dataset_config", str(toml), "--vae", str(reference_hunyuan_vae)]
    assert main([*words, "--image_encoder", str(encoders["image_encoder"])]) == 1
    assert "Not enough frames for FramePack: a section needs 37, the window that was cut has 9" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "values", "flags", "message"),
    [
        ("image", {}, [], "images need --one_frame"),
        ("video", {"target_frames": "[9]", "fp_latent_window_size": 2}, ["--one_frame"], "makes caches of images, not of clips"),
        ("image", {}, ["--one_frame"], "fp_1f_target_index is missing"),
        ("image", {"fp_1f_target_index": 1}, ["--one_frame"], "needs a control image"),
        (
            "image",
            {"fp_1f_target_index": 1, "control_resolution": "[32, 32]"},
            ["--one_frame"],
            "control images must have the image's size",
        ),
    ],
)
def test_what_cannot_be_cached_is_rejected_before_a_model_is_loaded(
    kind: str, values: dict[str, object], flags: list[str], message: str, shared: Path, tmp_path: Path, dataset_toml: Toml,
    encoders: dict[str, Path], reference_hunyuan_vae: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = shared / "golden/cache/_src" / {"video": "vid", "image": "img"}[kind]
    toml = dataset_toml(tmp_path / "dataset.toml", kind, source, tmp_path / "cache", resolution="[64, 48]", **values)
    words = ["fpack_cache_latents", "--dataset_config", str(toml), "--vae", str(reference_hunyuan_vae), *flags]
    assert main([*words, "--image_encoder", str(encoders["image_encoder"])]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "cache").exists()
