"""A sampling run depends on its request and on nothing else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from musubi_backend import job
from musubi_backend.architectures.request import Guidance, SampleRequest
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.errors import StopRequested, UserError
from musubi_backend.inference.guidance import guided_prediction
from musubi_backend.inference.samplers import SAMPLERS
from musubi_backend.inference.sampling import initial_noise, sample
from safetensors.torch import load_file

WAN = Wan().configured({"task": "t2v-1.3B"})
CPU = torch.device("cpu")
REQUEST = SampleRequest("a dog", seed=1, width=32, height=48, frames=5, steps=4, flow_shift=5.0, guidance=Guidance(3.0))
Text = dict[str, torch.Tensor]


class Run:
    """`sample` with the tiny model; keyword arguments change the request."""

    def __init__(self, transformer: WanTransformer, text: Text, negative: Text) -> None:
        self.transformer, self.text, self.negative = transformer, text, negative
        self.calls = 0

    def count(self, *_: object) -> None:
        self.calls += 1

    def __call__(self, **changes: object) -> torch.Tensor:
        self.calls = 0
        request = dataclasses.replace(REQUEST, **changes)
        return sample(WAN, self.transformer, request, self.text, self.negative, device=CPU)


@pytest.fixture
def run(tiny_transformer: WanTransformer, text: Text, negative_text: Text) -> Iterator[Run]:
    one = Run(tiny_transformer, text, negative_text)
    hook = tiny_transformer.register_forward_hook(one.count)
    yield one
    hook.remove()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_decides(run: Run, sampler: str) -> None:
    first = run(sampler=sampler)
    assert first.shape == (16, 2, 6, 4)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(first, run(sampler=sampler))
    assert not torch.allclose(first, run(sampler=sampler, seed=2), atol=0.1)


def test_every_setting_reaches_the_result(run: Run) -> None:
    plain = run()
    changes: list[dict[str, object]] = [
        {"guidance": Guidance(4.0)},
        {"flow_shift": 3.0},
        {"steps": 5},
        {"sampler": "vanilla"},
        {"guidance": Guidance(3.0, "early", 0.5)},
        {"guidance": Guidance(3.0, slg_mode="original", slg_layers=(1,), slg_end=0.5)},
        {"guidance": Guidance(3.0, slg_mode="uncond", slg_layers=(1,), slg_end=0.5)},
    ]
    for change in changes:
        assert not torch.allclose(plain, run(**change), atol=1e-4), change


def test_global_random_state_is_left_alone(run: Run) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    run(cpu_noise=True)
    assert torch.equal(torch.rand(1), expected)


def test_model_runs_only_as_often_as_needed(run: Run) -> None:
    run()
    assert run.calls == 2 * 4
    run(guidance=Guidance(1.0))
    assert run.calls == 4
    run(guidance=Guidance(3.0, "late", 0.25))
    assert run.calls == 4 + 1
    run(guidance=Guidance(3.0, slg_mode="original", slg_layers=(0,), slg_start=0.0, slg_end=0.5))
    assert run.calls == 2 * 4 + 2


def test_no_negative_text_needed_without_guidance(tiny_transformer: WanTransformer, text: Text) -> None:
    alone = dataclasses.replace(REQUEST, guidance=Guidance(1.0))
    assert torch.isfinite(sample(WAN, tiny_transformer, alone, text, None, device=CPU)).all()
    with pytest.raises(ValueError, match="negative prompt"):
        sample(WAN, tiny_transformer, REQUEST, text, None, device=CPU)


def test_cpu_noise_is_comfyuis() -> None:
    """ComfyUI draws [1, 16, F, H, W] from torch.manual_seed(seed) on the CPU (comfy/sample.py, prepare_noise)."""
    shape = (16, 2, 6, 4)
    torch.manual_seed(11)
    comfy = torch.randn((1, *shape))[0]
    assert torch.equal(initial_noise(shape, dataclasses.replace(REQUEST, seed=11, cpu_noise=True), CPU), comfy)


def test_skip_pattern_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(guidance=Guidance(3.0, "early_late", 0.5))
    assert "CFG skip mode: early_late, apply ratio: 0.5, pattern: SAAS" in caplog.text


def test_a_block_that_is_not_there_is_rejected_before_sampling(run: Run) -> None:
    with pytest.raises(UserError, match="block 2 does not exist"):
        run(guidance=Guidance(3.0, slg_mode="original", slg_layers=(2,)))
    assert run.calls == 0


def test_stop_request_ends_between_two_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "stop_requested", lambda: run.calls >= 2 * 2)
    with pytest.raises(StopRequested, match="after 2 of 4 steps"):
        run()
    assert run.calls == 2 * 2


def test_skipped_block_prediction_is_that_of_musubi(shared: Path) -> None:
    """fp32 weights and attention in musubi; 1e-5 covers another order of summation in float32."""
    golden = load_file(shared / "golden/dit/wan21_t2v.io.safetensors")
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=24, freq_dim=64))
    model.load_state_dict(load_file(shared / "golden/dit/wan21_t2v.dit.safetensors"))
    request = dataclasses.replace(REQUEST, guidance=Guidance(2.0, slg_mode="uncond", slg_layers=(1,), slg_end=1.0))
    batch = {"t5": [golden["context.0"], golden["context.1"]]}

    def predict(positive: bool, skip_blocks: tuple[int, ...]) -> torch.Tensor:
        return WAN.predict(model, golden["x"], golden["t"], batch, skip_blocks=skip_blocks)

    with torch.no_grad():
        mixed = guided_prediction(predict, request.guidance, 0, 4, True)
    full, skipped = golden["out.fp32_weights.fp32_attn"], golden["out.fp32_attn.skip_block_1"]
    torch.testing.assert_close(mixed, skipped + 2 * (full - skipped), rtol=1e-5, atol=1e-5)
