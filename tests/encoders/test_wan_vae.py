"""The Wan VAE against the reference (the real musubi-tuner's own code, float32), and the files it must reject."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from musubi_backend.encoders.wan_vae import WanVAE, _CpuFeatures, config_of, diffusers_key
from musubi_backend.errors import UserError
from safetensors.torch import load_file

CPU = torch.device("cpu")
# Equal to 1e-6 where the same convolution kernels run; others add up to 1.3e-4 to values in -1..1. A wrong layer shows at 1e-2.
OTHER_KERNELS = {"rtol": 1e-3, "atol": 5e-4}


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden/vae_te/wan_vae.io.safetensors")


@pytest.mark.parametrize("cache_on_cpu", [False, True])
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoding_and_decoding_equal_the_reference(
    shared: Path, reference: dict[str, torch.Tensor], frames: int, cache_on_cpu: bool
) -> None:
    vae = WanVAE.load(shared / "golden/vae_te/wan_vae.safetensors", CPU, torch.float32, cache_on_cpu=cache_on_cpu)
    latents = vae.encode(reference[f"video{frames}"][None])[0]
    video = vae.decode(reference[f"latent{frames}"][None])[0]
    torch.testing.assert_close(latents, reference[f"latent{frames}"], **OTHER_KERNELS)
    torch.testing.assert_close(video, reference[f"decoded{frames}"], **OTHER_KERNELS)


def test_features_wait_in_system_ram_and_are_read_on_the_device() -> None:
    """ "meta" stands for a GPU: nothing of the layers may meet a feature on another device."""
    features = _CpuFeatures([None, "Rep", None], torch.device("meta"))
    for index in (0, 2):
        features[index] = torch.full((2,), float(index))
    assert [feature.device.type for feature in (features[0], features[0], features[2])] == ["meta"] * 3
    assert [feature.device for feature in features if isinstance(feature, torch.Tensor)] == [CPU, CPU]
    features[0] = torch.zeros(5)
    assert features[0].shape == (5,) and features[1] == "Rep"


def test_a_pth_file_gives_the_same(shared: Path, reference: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save(load_file(shared / "golden/vae_te/wan_vae.safetensors"), path)
    latents = WanVAE.load(path, CPU, torch.float32).encode(reference["video5"][None])[0]
    torch.testing.assert_close(latents, reference["latent5"], **OTHER_KERNELS)


def test_sizes_of_the_published_vae_are_read_from_its_shapes() -> None:
    """Channels 96, multipliers 1 2 4 4, time halved in the second and third step (github.com/Wan-Video/Wan2.1)."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3), "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.head.0.gamma": (96, 1, 1, 1), "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }  # fmt: skip
    widths = iter((96, 96, 192, 192, 384, 384, 384, 384))
    for index in range(11):
        prefix = f"encoder.downsamples.{index}."
        if index in (2, 5, 8):
            shapes[f"{prefix}resample.1.weight"] = (1, 1, 3, 3)
            if index > 2:
                shapes[f"{prefix}time_conv.weight"] = (1, 1, 3, 1, 1)
        else:
            shapes[f"{prefix}residual.6.weight"] = (next(widths), 1, 3, 3, 3)
    config = config_of(shapes)
    assert (config["base_dim"], config["dim_mult"], config["num_res_blocks"]) == (96, [1, 2, 4, 4], 2)
    assert config["temperal_downsample"] == [False, True, True]


@pytest.mark.parametrize(
    ("original", "renamed"),
    [
        ("conv1.weight", "quant_conv.weight"),
        ("decoder.conv1.bias", "decoder.conv_in.bias"),
        ("encoder.downsamples.6.residual.2.weight", "encoder.down_blocks.6.conv1.weight"),
        ("decoder.upsamples.3.time_conv.weight", "decoder.up_blocks.0.upsamplers.0.time_conv.weight"),
        ("decoder.upsamples.14.residual.6.bias", "decoder.up_blocks.3.resnets.2.conv2.bias"),
        ("encoder.middle.1.to_qkv.weight", "encoder.mid_block.attentions.0.to_qkv.weight"),
    ],
)
def test_names_in_diffusers(original: str, renamed: str) -> None:
    assert diffusers_key(original, 2) == renamed


def test_other_models_are_rejected_by_name(shared: Path) -> None:
    with pytest.raises(UserError, match=r"is a HunyuanVideo VAE.*--vae expects a Wan VAE"):
        WanVAE.load(shared / "golden/vae_te/hv_vae.safetensors", CPU, torch.float32)


def test_a_truncated_file_is_rejected(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    path.write_bytes((shared / "golden/vae_te/wan_vae.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"vae\.safetensors is truncated"):
        WanVAE.load(path, CPU, torch.float32)


def test_an_incomplete_file_is_rejected(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "vae.pth"
    tensors = load_file(shared / "golden/vae_te/wan_vae.safetensors")
    torch.save({name: tensor for name, tensor in tensors.items() if "upsamples.7." not in name}, path)
    with pytest.raises(UserError, match="4 tensors are missing"):
        WanVAE.load(path, CPU, torch.float32)


def test_the_import_leaves_out_what_the_vae_does_not_use(shared: Path, repository: Path) -> None:
    """Transformers, accelerate and torch's compiler would cost seconds at every start."""
    _python(
        repository,
        shared,
        "heavy = {'transformers', 'accelerate', 'scipy', 'torch._dynamo', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy\n",
    )


@pytest.mark.slow
@pytest.mark.full(reason="nothing of ours imports more of diffusers later")
def test_diffusers_imported_later_is_the_whole_one(shared: Path, repository: Path) -> None:
    _python(
        repository,
        shared,
        "import diffusers.models.unets.unet_2d_blocks as blocks, accelerate\nassert issubclass(blocks.UNetMidBlock2D, torch.nn.Module)\n",
    )


def _python(repository: Path, shared: Path, script: str) -> None:
    """Run `script` in a new process that has loaded the reference VAE."""
    start = (
        f"import sys; sys.path.insert(0, {str(repository / 'backend')!r})\n"
        "import torch\n"
        "from musubi_backend.encoders.wan_vae import WanVAE\n"
        f"WanVAE.load({str(shared / 'golden/vae_te/wan_vae.safetensors')!r}, torch.device('cpu'), torch.float32)\n"
    )
    result = subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "importing all of it" not in result.stderr
