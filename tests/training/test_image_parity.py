"""Image-to-video training follows the recorded steps of musubi-tuner.

The recordings do not hold the model and the caches, only the seeds they were made from; both are made again here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.layers.lora import LoRANetwork
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool
from musubi_backend.training.losses import flow_matching_loss
from musubi_backend.weights.safetensors_file import load
from torch import Tensor, nn

GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64, in_dim=36, image_dim=1280)


def recorded_model(monkeypatch: pytest.MonkeyPatch) -> WanTransformer:
    """The weights that musubi-tuner's model has after seed 0, its own initialisation and the one of the recording."""
    empty = torch.empty

    def with_drawn_tables(*shape: Any, **more: Any) -> Tensor:
        return torch.randn(shape) if shape in ((1, 6, GEOMETRY.dim), (1, 2, GEOMETRY.dim)) else empty(*shape, **more)

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", with_drawn_tables)  # musubi-tuner draws its modulation tables in passing
        model = WanTransformer(GEOMETRY).requires_grad_(False)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for weight in (*(linear.weight for linear in linears), model.patch_embedding.weight.flatten(1)):
        nn.init.xavier_uniform_(weight)
    for linear in linears:
        if any(linear is one for part in (model.text_embedding, model.time_embedding) for one in part):
            nn.init.normal_(linear.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02 if parameter.ndim == 2 else 0.1)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def recorded_items() -> list[dict[str, Any]]:
    """What a batch of each of the four items holds."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(4, 2, 4, 4)
    mask[:, 0] = 1
    items = []
    for number in range(4):
        latents, start = (torch.randn(16, 2, 4, 4, generator=generator) for _ in range(2))
        clip = torch.randn(257, 1280, generator=generator).to(torch.float16)
        text = torch.randn(10 + number, 64, generator=generator).bfloat16()
        picture = torch.cat([mask, start]).bfloat16()
        items.append({"latents": latents.bfloat16()[None], "latents_image": picture[None], "clip": clip[None], "t5": [text]})
    return items


@pytest.mark.parametrize("name", ["i2v_gc", "i2v_no_gc"])
@pytest.mark.usefixtures("as_musubi_computes")
def test_steps_equal_the_recorded_ones(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads((shared / "golden/train/index.json").read_text())[name]
    trace = load(shared / f"golden/train/{name}.trace.safetensors")
    args = read(tool("wan_train_network"), case["argv"][1:])
    model, items = recorded_model(monkeypatch), recorded_items()
    model.gradient_checkpointing = args.gradient_checkpointing
    network = LoRANetwork.create(model, CARD, rank=4, alpha=2.0)
    network.load_state_dict(_lora(trace, "lora_init"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate)
    for step, expected in enumerate(case["losses"]):
        batch = next(item for item in items if torch.equal(item["latents"].flatten()[:8].float(), trace[f"step{step}.latents_first8"]))
        latents, noise, timesteps = batch["latents"].float(), trace[f"step{step}.noise"], trace[f"step{step}.timesteps"]
        t = (timesteps - 1) / 1000
        prediction = Wan().predict(model, (1 - t) * latents + t * noise, timesteps, batch, args)
        loss = flow_matching_loss(prediction, latents, noise, None)
        assert loss.item() == pytest.approx(expected, rel=1e-5), f"loss of step {step}"
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    first, last = _lora(trace, "lora_init"), _lora(trace, f"lora_after_step{len(case['losses']) - 1}")
    difference = sum(float((value - last[key]).square().sum()) for key, value in network.state_dict().items())
    moved = sum(float((last[key] - first[key]).square().sum()) for key in last)
    assert math.sqrt(difference / moved) < 1e-3


def _lora(trace: dict[str, Tensor], stage: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{stage}."): tensor for key, tensor in trace.items() if key.startswith(f"{stage}.")}
