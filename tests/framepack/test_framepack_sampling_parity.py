"""FramePack's sampling against musubi-tuner 0.3.4: the same latents, section after section.

The numbers were recorded by running its `fpack_generate_video.generate` (with float32 in place of its bfloat16 casts) on the tiny
transformer of the reference data, with the conditions that `_conditions` draws: seven values of each result, evenly spread over it, and
its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.framepack.adapter import ADAPTER
from musubi_backend.architectures.framepack.geometry import geometry_of
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.request import Guidance, SampleRequest
from musubi_backend.weights.safetensors_file import load, read_header

WIDTH, HEIGHT, WINDOW = 32, 48, 2
ARGUMENTS = {
    "vae": "a.safetensors", "image_encoder": "b.safetensors",
    "latent_window_size": WINDOW, "f1": False, "latent_paddings": None, "guidance_rescale": 0.0, "fps": 30, "embedded_cfg_scale": 10.0,
    "video_seconds": 5.0, "video_sections": None, "one_frame_auto_resize": False, "magcache_mag_ratios": None,
    "magcache_calibration": False, "magcache_retention_ratio": 0.2, "magcache_threshold": 0.24, "magcache_k": 6,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {"video_sections": 3, "prompt": "0:a;;;-1:b", "images": {0: "x", 1: "y"}, "end": True},
    "plain6": {"video_sections": 6},
    "paddings": {"video_sections": 3, "latent_paddings": "5,1,0"},
    "f1": {"video_sections": 3, "prompt": "0:a;;;1:b", "images": {0: "x", -1: "y"}, "f1": True},
    "guided": {"video_sections": 1, "scale": 3.0, "embedded_cfg_scale": 6.0, "flow_shift": 3.0, "guidance_rescale": 0.7},
    "one_frame": {"one_frame": "target_index=1,control_index=0;10,no_post,no_2x,no_4x", "controls": 2},
    "one_frame_default": {"one_frame": "default", "controls": 1},
    "one_frame_alone": {"one_frame": "target_index=3"},
    "rope": {"video_sections": 1, "rope": (700, 0.5)},
    "magcache": {"video_sections": 1, "steps": 10, "magcache_mag_ratios": "0", "magcache_threshold": 0.3, "magcache_k": 2},
}
RECORDED = {
    "plain": (1.07031, 1.25820, -3.40310, -0.81740, 0.33468, -2.09234, -0.85568, 74.2112),
    "plain6": (1.07031, -0.56603, 0.19947, 0.31843, -2.32870, -2.11777, -0.18695, 104.4119),
    "paddings": (1.07031, 1.47997, -3.41929, 0.11667, 0.35577, -2.08031, -0.11883, 74.0663),
    "f1": (1.07031, 1.17245, -0.24142, -1.61321, 0.56238, -1.13662, 1.15450, 73.9477),
    "guided": (1.07031, 0.54537, 0.44727, 0.29982, -2.31216, 0.05078, -0.40284, 50.4789),
    "one_frame": (1.75952, 3.28439, 0.04431, 1.37724, 0.17246, 0.11892, 2.21290, 27.2997),
    "one_frame_default": (2.33246, 2.78133, 0.10210, 1.18924, -0.09354, 0.18442, 1.57883, 26.3050),
    "one_frame_alone": (2.56903, 2.45422, 0.15136, 1.13590, -0.19703, 0.26209, 1.53660, 26.0400),
    "rope": (1.07031, -0.45282, 0.44727, 0.32569, -2.19760, 0.05078, -0.22490, 44.7019),
    "magcache": (1.07031, -0.45466, 0.44727, 0.20355, -2.02791, 0.05078, -0.05091, 44.5110),
}
RECORDED_RATIOS = [1.0, 0.77046, 1.27532, 0.86480, 0.90345]


class _Conditions:
    """Texts, images and control images with random features, exact in bfloat16."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(77)
        self.texts = {name: self._text() for name in ("a", "b", "neg")}
        latents = (16, 1, HEIGHT // 8, WIDTH // 8)
        self.images = {name: (self._draw(9, 40), self._draw(*latents)) for name in ("x", "y")}
        self.end = self._draw(*latents)
        self.controls = [self._draw(*latents) for _ in range(2)]

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=self.generator).bfloat16().float()[0]

    def _text(self) -> dict[str, torch.Tensor]:
        vectors = torch.zeros(512, 32)
        vectors[:5] = self._draw(5, 32)
        return {"llama_vec": vectors, "llama_attention_mask": torch.arange(512) < 5, "clip_l_pooler": self._draw(24)}

    def of(self, case: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        found = {}
        for section, name in case.get("images", {0: "x"}).items():
            found[f"image {section}"], found[f"start {section}"] = self.images[name]
        if case.get("end"):
            found["end"] = self.end
        return found | {f"control {number}": self.controls[number] for number in range(case.get("controls", 0))}


@pytest.fixture(scope="module")
def conditions() -> _Conditions:
    return _Conditions()


@pytest.fixture(scope="module")
def transformer(shared: Path) -> FramePackTransformer:
    path = shared / "golden/dit/framepack.dit.safetensors"
    model = FramePackTransformer(geometry_of(read_header(path)))
    model.load_state_dict(load(path))
    return model.requires_grad_(False).eval()


def _sampled(transformer: FramePackTransformer, conditions: _Conditions, case: Mapping[str, Any]) -> torch.Tensor:
    framepack = ADAPTER.configured({name: case.get(name, default) for name, default in ARGUMENTS.items()})
    request = SampleRequest(
        prompt=case.get("prompt", "a"), seed=5, width=WIDTH, height=HEIGHT, frames=1, steps=case.get("steps", 4),
        flow_shift=case.get("flow_shift", 0.0), guidance=Guidance(case.get("scale", 1.0)), negative_prompt="neg",
        one_frame=case.get("one_frame"),
    )  # fmt: skip
    transformer.rope_scaling = case.get("rope")
    steps: list[int] = []
    fitted = framepack.fitted(request)
    latents = framepack.sample(
        transformer, fitted, conditions.texts, conditions.of(case), device=torch.device("cpu"), progress=steps.append
    )
    assert len(steps) == ADAPTER.steps(fitted)
    assert latents.shape == (16, (fitted.frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    return latents


@pytest.mark.parametrize("name", CASES)
def test_latents_are_musubi_tuners(name: str, transformer: FramePackTransformer, conditions: _Conditions) -> None:
    latents = _sampled(transformer, conditions, CASES[name]).flatten()
    found = [*latents[torch.linspace(0, len(latents) - 1, 7).long()].tolist(), latents.norm().item()]
    # float32 on both sides, sums in another order over some steps
    assert found == pytest.approx(RECORDED[name], rel=1e-3, abs=1e-3)


def test_calibration_measures_what_musubi_tuner_measures(
    transformer: FramePackTransformer, conditions: _Conditions, capsys: pytest.CaptureFixture[str]
) -> None:
    case = {"video_sections": 1, "steps": 5, "magcache_calibration": True}
    calibrated = _sampled(transformer, conditions, case)
    ratios = [float(part) for part in capsys.readouterr().out.strip().split(",")]
    assert ratios == pytest.approx(RECORDED_RATIOS, abs=1e-3)
    assert torch.equal(calibrated, _sampled(transformer, conditions, {**case, "magcache_calibration": False}))
