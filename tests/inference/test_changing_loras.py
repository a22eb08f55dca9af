"""A LoRA of one prompt: what it does is what merging it does, it is gone with the next prompt, and the model is loaded once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures import protocol
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.errors import UserError
from musubi_backend.inference import generate
from musubi_backend.layers.linear import Linear
from musubi_backend.lora.changing import ChangingLoRA
from musubi_backend.lora.merging import LoRAMerge
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.options.parser import parse
from musubi_backend.weights.safetensors_file import load, save_atomic


def lora(path: Path, model: WanTransformer, seed: int, kind: str = "LoRA", rank: int = 4, **arguments: str) -> Path:
    """A strong random LoRA for some layers, as the trainer writes it."""
    network = LoRANetwork.create(model, CARD, rank, 2.0, network_args=arguments, kind=kind)
    network.detach_from(model)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value if key.endswith("alpha") else torch.randn(value.shape, generator=generator) * 0.4
        for key, value in network.state_dict().items()
    }
    save_atomic(state, path, {"ss_network_args": str(arguments).replace("'", '"')} if arguments else {})
    return path


def output(model: WanTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 7, 32, generator=generator)
    with torch.no_grad():
        result: torch.Tensor = protocol.load("wan").predict(model, noisy, torch.tensor([500.0]), {"t5": [text[0]]})
    return result


def merged(model: WanTransformer, path: Path, strength: float) -> torch.Tensor:
    whole, merge = copy.deepcopy(model), LoRAMerge([path], [strength], architecture=CARD.id)
    for layer in whole.modules():
        if isinstance(layer, Linear):
            layer.attach(None)
    whole.load_state_dict({name: merge(name, weight.clone()) for name, weight in whole.state_dict().items()})
    return output(whole)


@pytest.mark.parametrize(("kind", "arguments"), [("LoRA", {}), ("LoHa", {}), ("LoKr", {}), ("LoKr", {"factor": "2"})])
def test_it_does_what_merging_does_and_leaves_nothing(tiny_transformer: WanTransformer, tmp_path: Path, kind: str, arguments: Any) -> None:
    model, changing = tiny_transformer, ChangingLoRA(CARD)
    first = lora(tmp_path / "first.safetensors", model, 1, kind, **arguments)
    second = lora(tmp_path / "second.safetensors", model, 2, kind, **arguments)
    other = lora(tmp_path / "other.safetensors", model, 3, "LoRA", rank=2)
    plain = output(model)
    for path, strength in ((first, 1.0), (first, 0.5), (second, 1.0), (other, -0.7), (first, 1.0)):
        changing.put_on(model, str(path), strength=strength)
        expected = merged(model, path, strength)
        assert (expected - plain).norm() > 0.05 * plain.norm(), "the LoRA does something"
        torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-4)
    changing.put_on(model, str(first), strength=0.0)
    torch.testing.assert_close(output(model), plain, rtol=1e-6, atol=1e-6)
    changing.put_on(model, str(second))
    changing.put_on(model, None)
    assert torch.equal(output(model), plain)


def test_what_cannot_be_put_on_is_said_in_words(tiny_transformer: WanTransformer, tmp_path: Path) -> None:
    good = load(lora(tmp_path / "good.safetensors", tiny_transformer, 1))
    name = next(iter(good)).partition(".")[0]
    save_atomic({**good, f"{name}.dora_scale": torch.ones(32, 1)}, tmp_path / "dora.safetensors", {})
    strangers = {key.replace("blocks", "nowhere"): value for key, value in good.items()}
    save_atomic(strangers, tmp_path / "strange.safetensors", {})
    for file, said in (("dora", "dora_scale, which can only be merged: use --lora_weight"), ("strange", "strange.safetensors: ")):
        with pytest.raises(UserError, match=said):
            ChangingLoRA(CARD).put_on(tiny_transformer, str(tmp_path / f"{file}.safetensors"))
    with pytest.raises(UserError, match="give --dit_high_noise"):
        ChangingLoRA(CARD).put_on(tiny_transformer, None, str(tmp_path / "good.safetensors"))


@pytest.fixture
def latents(demo: dict[str, Path], tmp_path: Path) -> Callable[..., list[torch.Tensor]]:
    def run(lines: list[str], *flags: object) -> list[torch.Tensor]:
        prompts, folder = tmp_path / "prompts.txt", tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        prompts.write_text("\n".join(lines))
        small = ["--video_size", "32", "48", "--video_length", "5", "--infer_steps", "2", "--task", "t2v-1.3B", "--device", "cpu"]
        models = [f"--{name}={path}" for name, path in demo.items()]
        argv = [*small, "--output_type=latent", *models, f"--from_file={prompts}", f"--save_path={folder}", *map(str, flags)]
        generate.run(parse("wan_generate_video", argv), protocol.load("wan"))
        return [load(path)["latent"] for path in sorted(folder.glob("*.safetensors"))]

    return run


def test_each_prompt_of_a_file_has_its_own_and_the_model_is_loaded_once(
    latents: Any, demo: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = torch.Generator().manual_seed(3)
    width = load(demo["dit"])["blocks.0.self_attn.q.weight"].shape[0]
    name = "lora_unet_blocks_0_self_attn_v"
    factors = {
        f"{name}.lora_down.weight": torch.randn(4, width, generator=generator),
        f"{name}.lora_up.weight": torch.randn(width, 4, generator=generator),
    }
    path = tmp_path / "a lora.safetensors"
    save_atomic({**factors, f"{name}.alpha": torch.tensor(4.0)}, path, {})
    caplog.set_level(logging.INFO)
    plain, full, half, again = latents(["a --d 1", f"a --d 1 --lw {path}", f"a --d 1 --lw {path} --lm 0.5", "a --d 1"])
    assert sum("Loading DiT" in record.message for record in caplog.records) == 1
    [whole], [part] = latents(["a --d 1"], "--lora_weight", path), latents(["a --d 1"], "--lora_weight", path, "--lora_multiplier", 0.5)
    assert torch.equal(plain, again)
    for one, expected in ((full, whole), (half, part)):
        assert (one - expected).norm() < 0.02 * (expected - plain).norm()
    for line, said in (
        ("a --lw nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("a --lm 2", "has none"),
        (f"a --lwh {path}", "high-noise"),
    ):
        with pytest.raises(UserError, match=said):
            latents([line])
