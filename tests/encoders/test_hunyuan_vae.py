"""The HunyuanVideo VAE against the reference (the real musubi-tuner's own code, float32), and the files it must reject."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from musubi_backend.encoders.hunyuan_vae import HunyuanVAE, config_of
from musubi_backend.errors import UserError
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
# Convolutions may add up in another order; a decoder of random weights amplifies that.
TIGHT = {"rtol": 1e-4, "atol": 1e-5}
DECODED = {"rtol": 1e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, torch.Tensor]:
    return load_file(shared / "golden/vae_te/hv_vae.io.safetensors")


@pytest.fixture(scope="module")
def vae(reference_hunyuan_vae: Path) -> HunyuanVAE:
    return HunyuanVAE.load(reference_hunyuan_vae, CPU, torch.float32)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_posterior_and_decoded_video_equal_the_reference(vae: HunyuanVAE, reference: dict[str, torch.Tensor], frames: int) -> None:
    mean, logvar = vae.moments(reference[f"video{frames}"])
    torch.testing.assert_close(mean, reference[f"mean{frames}"], **TIGHT)
    torch.testing.assert_close(logvar, reference[f"logvar{frames}"], **TIGHT)
    torch.testing.assert_close(vae.decode(reference[f"mean{frames}"]), reference[f"decoded{frames}"], **DECODED)


def test_a_sample_is_the_reference_s_for_the_same_noise(vae: HunyuanVAE, reference: dict[str, torch.Tensor]) -> None:
    sample = vae.encode(reference["video5"], [torch.Generator().manual_seed(5)])
    torch.testing.assert_close(sample, reference["sample5_seed5"], **TIGHT)


def test_a_sample_does_not_depend_on_its_batch(vae: HunyuanVAE, reference: dict[str, torch.Tensor]) -> None:
    pair = vae.encode(reference["video5"].repeat(2, 1, 1, 1, 1), [torch.Generator().manual_seed(seed) for seed in (4, 5)])
    torch.testing.assert_close(pair[1:], reference["sample5_seed5"], **TIGHT)
    assert (pair[0] - pair[1]).abs().max() > 0.01


def test_tiles_equal_the_reference(reference_hunyuan_vae: Path, reference: dict[str, torch.Tensor]) -> None:
    tiled = HunyuanVAE.load(reference_hunyuan_vae, CPU, torch.float32, tile=32)
    torch.testing.assert_close(tiled.moments(reference["tiled.video5"])[0], reference["tiled.mean5"], **TIGHT)
    torch.testing.assert_close(tiled.decode(reference["tiled.mean5"]), reference["tiled.decoded5"], **DECODED)


def test_a_single_frame_is_encoded_in_two_dimensions(vae: HunyuanVAE, reference: dict[str, torch.Tensor]) -> None:
    kinds = []

    def seen(module: torch.nn.Module, *_: object) -> None:
        kinds.append(type(module).__name__)

    hooks = [module.register_forward_hook(seen) for module in vae.model.encoder.modules() if isinstance(module, torch.nn.Conv3d)]
    try:
        vae.moments(reference["video1"])
        images = len(kinds)
        vae.moments(reference["video5"])
    finally:
        for hook in hooks:
            hook.remove()
    assert images < len(kinds) - images, "only shortcuts of one pixel are left to three dimensions"


@pytest.mark.parametrize("chunk", [2, 3, 8])
def test_convolutions_in_pieces_give_the_same(
    reference_hunyuan_vae: Path, reference: dict[str, torch.Tensor], vae: HunyuanVAE, chunk: int
) -> None:
    in_pieces = HunyuanVAE.load(reference_hunyuan_vae, CPU, torch.float32, chunk=chunk)
    torch.testing.assert_close(in_pieces.moments(reference["tiled.video5"])[0], reference["chunk2.mean5"], **TIGHT)
    latents = reference["untiled.mean5"]
    torch.testing.assert_close(in_pieces.decode(latents), vae.decode(latents), **DECODED)


def test_a_pt_file_of_the_published_form_gives_the_same(
    shared: Path, reference: dict[str, torch.Tensor], tmp_path: Path, vae: HunyuanVAE
) -> None:
    """{"state_dict": {"vae.…": …}}; its groups of norms are the published 32, which these four channels cannot have."""
    path = tmp_path / "pytorch_model.pt"
    tensors = load_file(shared / "golden/vae_te/hv_vae.safetensors")
    torch.save({"state_dict": {f"vae.{name}": tensor for name, tensor in tensors.items()}}, path)
    with pytest.raises(UserError, match=r"cannot be built \(num_channels.*must be divisible by num_groups"):
        HunyuanVAE.load(path, CPU, torch.float32)

    doubled = _wider(tensors)
    torch.save({"state_dict": {f"vae.{name}": tensor for name, tensor in doubled.items()}}, path)
    loaded = HunyuanVAE.load(path, CPU, torch.float32).model
    assert torch.equal(loaded.encoder.conv_in.conv.weight, doubled["encoder.conv_in.conv.weight"])


def test_comfyui_s_file_gives_the_same(reference_hunyuan_vae: Path, reference: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Its names are those of Stable Diffusion's VAE: the up levels counted backwards, linears of attention as convolutions."""

    def comfy(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        for pattern, replacement in (
            (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."), (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
            (r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{3 - int(match[1])}.block."),
            (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{3 - int(match[1])}.upsample."),
            (r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}."),
            (r"mid_block\.attentions\.0\.", "mid.attn_1."),
            ("attn_1.group_norm", "attn_1.norm"), (r"attn_1\.to_(q|k|v)\.", r"attn_1.\1."), (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
            ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
        ):  # fmt: skip
            name = re.sub(pattern, replacement, name)
        return name, tensor[..., None, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor

    path = tmp_path / "hunyuan_video_vae_bf16.safetensors"
    renamed = dict(comfy(name, tensor) for name, tensor in load_file(reference_hunyuan_vae).items())
    assert "decoder.up.3.block.0.conv1.conv.weight" in renamed
    assert not any("_block" in name.replace("mid.block_", "") for name in renamed)
    save_file(renamed, path, {"musubi_geometry": '{"norm_num_groups": 2}'})
    vae = HunyuanVAE.load(path, CPU, torch.float32)
    torch.testing.assert_close(vae.moments(reference["video5"])[0], reference["mean5"], **TIGHT)
    torch.testing.assert_close(vae.decode(reference["mean5"]), reference["decoded5"], **DECODED)


def _wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every width but those of images and latents times 8, so that 32 groups fit."""
    fixed = {"quant_conv.weight": (0, 1), "post_quant_conv.weight": (0, 1), "encoder.conv_in.conv.weight": (1,)}
    fixed |= {"encoder.conv_out.conv.weight": (0,), "decoder.conv_in.conv.weight": (1,), "decoder.conv_out.conv.weight": (0,)}
    kept_biases = ("quant_conv.bias", "post_quant_conv.bias", "encoder.conv_out.conv.bias", "decoder.conv_out.conv.bias")
    result = {}
    for name, tensor in tensors.items():
        keep = (0,) if name in kept_biases else fixed.get(name, ())
        result[name] = torch.zeros([side * (1 if axis in keep or axis > 1 else 8) for axis, side in enumerate(tensor.shape)])
    return result


def test_sizes_of_the_published_vae_are_read_from_its_shapes() -> None:
    """Channels 128, 256, 512, 512 with two residual blocks each (github.com/Tencent-Hunyuan/HunyuanVideo)."""
    shapes = {
        "encoder.conv_in.conv.weight": (128, 3, 3, 3, 3),
        "decoder.conv_out.conv.weight": (3, 128, 3, 3, 3),
        "post_quant_conv.weight": (16, 16, 1, 1, 1),
        "encoder.mid_block.attentions.0.to_q.weight": (512, 512),
    }
    for level, width in enumerate((128, 256, 512, 512)):
        for block in range(2):
            shapes[f"encoder.down_blocks.{level}.resnets.{block}.conv1.conv.weight"] = (width, 1, 3, 3, 3)
    config = config_of(shapes)
    assert (config["block_out_channels"], config["layers_per_block"]) == ((128, 256, 512, 512), 2)
    assert config["mid_block_add_attention"] and config["latent_channels"] == 16


def test_other_models_are_rejected_by_name(shared: Path) -> None:
    with pytest.raises(UserError, match=r"is a Wan VAE.*--vae expects a HunyuanVideo VAE"):
        HunyuanVAE.load(shared / "golden/vae_te/wan_vae.safetensors", CPU, torch.float32)


def test_a_tile_that_cannot_overlap_in_whole_latents_is_rejected(reference_hunyuan_vae: Path) -> None:
    with pytest.raises(UserError, match="must be a multiple of 32; nearest is 96"):
        HunyuanVAE.load(reference_hunyuan_vae, CPU, torch.float32, tile=100)


def test_the_import_leaves_out_what_the_vae_does_not_use(reference_hunyuan_vae: Path, repository: Path) -> None:
    """Transformers, accelerate and torch's compiler would cost seconds at every start."""
    script = (
        f"import sys; sys.path.insert(0, {str(repository / 'backend')!r})\n"
        "import torch\n"
        "from musubi_backend.encoders.hunyuan_vae import HunyuanVAE\n"
        f"HunyuanVAE.load({str(reference_hunyuan_vae)!r}, torch.device('cpu'), torch.float32)\n"
        "heavy = {'transformers', 'accelerate', 'scipy', 'torch._dynamo', 'diffusers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "importing all of it" not in result.stderr
