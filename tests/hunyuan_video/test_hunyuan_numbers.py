"""What HunyuanVideo's transformer is given besides noise and text, and which way its samples go, in numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.architectures.hunyuan_video.adapter import ADAPTER
from musubi_backend.architectures.hunyuan_video.fitting import asked as of_generator
from musubi_backend.architectures.hunyuan_video.settings import HunyuanSettings
from musubi_backend.architectures.request import Guidance, Images, SampleRequest
from torch import Tensor

SCALING = 0.476986


class Asked:
    """A transformer that keeps what it is called with."""

    def __init__(self, takes_image: bool) -> None:
        self.geometry = SimpleNamespace(takes_image=takes_image)

    def __call__(self, *inputs: Any) -> Tensor:
        self.noisy, self.timesteps, self.text, self.mask, self.pooled, self.guidance, self.channels, self.skip = inputs
        return self.noisy


def asked(batch: dict[str, Tensor], takes_image: bool = False, guidance_scale: float = 6.0) -> Asked:
    noisy = torch.zeros(2, 16, 3, 2, 2)
    texts = {"llm": torch.ones(1), "llm_mask": torch.tensor([2.0]), "clipL": torch.tensor([3.0])}
    model: Any = Asked(takes_image)
    hunyuan = ADAPTER.configured({"guidance_scale": guidance_scale})
    hunyuan.predict(model, noisy, torch.tensor([7.0, 8.0]), {**texts, **batch}, (1, 2))
    return model


def test_texts_go_to_their_places_and_training_tells_the_bare_guidance() -> None:
    model = asked({})
    assert (model.text.item(), model.mask.item(), model.pooled.item()) == (1, 2, 3)
    assert model.timesteps.tolist() == [7, 8] and model.skip == (1, 2) and model.channels is None
    assert model.guidance.tolist() == [6, 6]
    assert asked({"guidance": torch.tensor([6016.0, 6016.0])}).guidance.tolist() == [6016, 6016], "of a sample, as it is"


def test_image_models_see_the_scaled_first_frame_and_nothing_behind_it() -> None:
    latents = torch.arange(1.0, 4.0).view(1, 1, 3, 1, 1).expand(2, 16, 3, 2, 2)
    of_clip = asked({"latents": latents.bfloat16()}, takes_image=True).channels
    assert of_clip[0, 0, :, 0, 0].tolist() == pytest.approx([SCALING, 0, 0])
    of_request = asked({"latents": latents, "latents_image": torch.full((2, 16, 1, 2, 2), 5.0)}, takes_image=True).channels
    assert of_request[1, 3, :, 1, 1].tolist() == [5, 0, 0], "a request's image is scaled already"
    assert torch.equal(ADAPTER.scale_latents(latents), latents * SCALING)


@pytest.mark.parametrize(
    ("source", "strength", "sigmas"),
    [(None, None, [1, 0.75, 0.5, 0.25, 0]), ("clip.mp4", 0.5, [0.5, 0.25, 0]), ("clip.mp4", 0.99, [0.75, 0.5, 0.25, 0]),
     (None, 0.5, [1, 0.75, 0.5, 0.25, 0])],
)  # fmt: skip
def test_of_a_video_that_is_changed_only_the_last_steps_are_done(source: str | None, strength: float | None, sigmas: list[float]) -> None:
    request = SampleRequest(
        "a", seed=1, width=32, height=32, frames=5, steps=4, flow_shift=1.0, guidance=Guidance(), strength=strength,
        images=Images(source_video=source),
    )  # fmt: skip
    assert ADAPTER.sampler(request).sigmas == pytest.approx(sigmas) and ADAPTER.steps(request) == len(sigmas) - 1


def test_images_that_it_does_not_take_are_no_options_of_a_line() -> None:
    assert "i" in ADAPTER.line_options and not {"ei", "cn", "ci", "cim", "of"} & set(ADAPTER.line_options)


def test_a_generators_own_options_reach_its_requests() -> None:
    request = SampleRequest("a", seed=1, width=32, height=32, frames=5, steps=4, flow_shift=7.0, guidance=Guidance(), embedded_guidance=1.0)
    found = of_generator(request, HunyuanSettings(video_path="clip.mp4", strength=0.5, embedded_cfg_scale=4.0))
    assert (found.images.source_video, found.strength, found.embedded_guidance) == ("clip.mp4", 0.5, 4.0)
