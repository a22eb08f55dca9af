"""What is rejected before anything is loaded: model files of another kind, and devices that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from musubi_backend import architectures
from musubi_backend.__main__ import main
from musubi_backend.device import pick_device
from musubi_backend.errors import UserError
from musubi_backend.weights.recognise import rules
from safetensors.numpy import save_file

WAN_VAE = next(rule for rule in rules() if rule.id == "wan_vae").has
UMT5 = next(rule for rule in rules() if rule.id == "umt5").has


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str, tuple[str, ...]], str]:
    """Writes a file with those names of tensors."""

    def write(name: str, keys: tuple[str, ...]) -> str:
        save_file({key: np.zeros(1, np.float32) for key in keys}, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_wrong_vae_is_found_before_the_sampling(
    weights: Callable[[str, tuple[str, ...]], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = weights("wrong.safetensors", UMT5)
    files = ["--dit", weights("dit.safetensors", ("unknown",)), "--t5", weights("t5.safetensors", UMT5), "--vae", wrong]
    assert main(["wan_generate_video", *files, "--prompt", "x", "--save_path", str(tmp_path / "out"), "--task", "t2v-1.3B"]) == 1
    said = capsys.readouterr()
    assert f"{wrong} is a umt5-xxl text encoder; --vae expects a Wan VAE" in said.err
    assert "Loading" not in said.out + said.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--lora_weight", "--lora_weight_high_noise"])
def test_a_lora_that_was_cut_is_found_before_the_text_encoder_is_loaded(
    flag: str, weights: Callable[[str, tuple[str, ...]], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cut = Path(weights("cut.safetensors", ("lora_unet_x.lora_down.weight",)))
    cut.write_bytes(cut.read_bytes()[:-2])
    files = ["--dit", weights("dit.safetensors", ("unknown",)), "--t5", weights("t5.safetensors", UMT5), flag, str(cut)]
    files += ["--vae", weights("vae.safetensors", WAN_VAE), "--dit_high_noise", weights("high.safetensors", ("unknown",))]
    assert main(["wan_generate_video", *files, "--prompt", "x", "--save_path", str(tmp_path / "out"), "--task", "t2v-A14B"]) == 1
    said = capsys.readouterr()
    assert f"{cut} is truncated" in said.err and "Loading" not in said.out + said.err


def test_a_wrong_vae_is_found_before_the_dataset_is_read(
    weights: Callable[[str, tuple[str, ...]], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "dataset.toml").touch()
    wrong = weights("wrong.safetensors", WAN_VAE)
    assert main(["cache_latents", "--dataset_config", str(tmp_path / "dataset.toml"), "--vae", wrong]) == 1
    assert f"{wrong} is a Wan VAE; --vae expects a HunyuanVideo VAE" in capsys.readouterr().err


def test_every_kind_a_card_names_is_known() -> None:
    known = {rule.id for rule in rules()}
    for card in architectures.cards().values():
        assert all(part.kinds and set(part.kinds) <= known for part in card.parts)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type in ("cpu", "cuda")
    with pytest.raises(UserError, match="--device 'gpu' is unknown; use cuda, cuda:1 or cpu"):
        pick_device("gpu")
    with pytest.raises(UserError, match="--device 'meta' is not supported; use cuda, cuda:1 or cpu"):
        pick_device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"--device cuda: PyTorch cannot use a GPU here, .* Leave --device out"):
        pick_device("cuda")


def test_a_gpu_that_is_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1").index == 1
    assert current == [torch.device("cuda:1")], "what launches on the current GPU would use, and take memory of, the first one"
    with pytest.raises(UserError, match="--device cuda:2: this machine has 2 GPUs, counted from cuda:0"):
        pick_device("cuda:2")
