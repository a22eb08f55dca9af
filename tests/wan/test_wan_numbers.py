"""What Wan's transformer is given besides noise and text, and who works at which noise level, in numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from musubi_backend.architectures.card import HIGH, LOW
from musubi_backend.architectures.request import Guidance, Images, SampleRequest
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.fitting import boundary, fitted, fitted_sample, noise_shape
from musubi_backend.architectures.wan.inputs import model_inputs
from musubi_backend.architectures.wan.load import _check_both_are_trained
from musubi_backend.architectures.wan.one_frame import OneFrame, condition
from musubi_backend.architectures.wan.settings import WanSettings
from musubi_backend.errors import UserError
from musubi_backend.layers.experts import Experts, experts_of
from torch import Tensor, nn


def filled(channels: int, *values: float) -> Tensor:
    """[1, channels, frames, 1, 1], a frame per value."""
    return torch.tensor(values).view(1, 1, -1, 1, 1).expand(1, channels, -1, 1, 1)


def of_frames(tensor: Tensor) -> list[list[float]]:
    """The channels' values, frame after frame; equal neighbours once."""
    found: list[list[float]] = []
    for frame in tensor[0, :, :, 0, 0].T.tolist():
        found.append([value for index, value in enumerate(frame) if not index or value != frame[index - 1]])
    return found


def test_control_models_see_the_control_first_and_of_the_image_only_the_frames_that_were_given() -> None:
    image = torch.cat([filled(4, 1, 0), filled(16, 5, 6)], dim=1)  # a mask over the first frame of two
    batch: Any = {"latents_image": image, "latents_control": filled(16, 2, 3), "clip": torch.zeros(1, 257, 8)}
    channels = model_inputs(batch, CARD.task("i2v-14B-FC")).extra_channels
    assert channels is not None and channels.shape[1] == 32
    assert of_frames(channels) == [[2, 5], [3, 0]]
    alone = model_inputs({"latents_control": filled(16, 2, 3)}, CARD.task("t2v-14B-FC"))
    assert alone.extra_channels is not None and of_frames(alone.extra_channels) == [[2, 0], [3, 0]] and alone.image is None


def test_two_images_are_seen_one_behind_the_other() -> None:
    clip = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    image = model_inputs({"latents_image": filled(20, 0), "clip": clip}, CARD.task("flf2v-14B")).image
    assert image is not None and image[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_one_frame_items_of_a_batch_have_the_same_positions() -> None:
    batch: Any = {"latents_image": filled(20, 0, 0), "clip": torch.zeros(2, 257, 8), "f_indices": torch.tensor([[0, 9], [0, 9]])}
    task = CARD.task("i2v-14B")
    assert model_inputs(batch, task).frame_indices == [0, 9]
    with pytest.raises(UserError, match="different one-frame positions"):
        model_inputs({**batch, "f_indices": torch.tensor([[0, 9], [0, 1]])}, task)


def test_a_weak_mask_mixes_the_control_image_with_grey() -> None:
    settings = OneFrame(target=1, controls=(4, 0))
    masks = [torch.full((1, 1), 0.25), None]
    images = [filled(16, 8.0)[0], filled(16, 2.0)[0]]
    found = condition(settings, images, filled(16, 4.0)[0], masks)[None]
    # by position: the image at 0 whole, the target grey with a mask of 0, the image at 4 a quarter of itself
    assert of_frames(found) == [[1, 2], [0, 4], [0.25, 0.25 * 8 + 0.75 * 4]]
    assert settings.place == 1


@pytest.mark.parametrize(("target", "controls"), [(1, (1,)), (0, (3, 3)), (-1, (0,)), (0, (1, 2, 3)), (0, ())])
def test_positions_that_cannot_be_are_rejected(target: int, controls: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        OneFrame(target, controls)


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [("t2v-A14B", None, 0.875), ("i2v-A14B", None, 0.9), ("t2v-14B", None, None), ("t2v-A14B", 0.5, 0.5), ("t2v-A14B", 1.0, 1.0),
     ("t2v-A14B", 1.5, 0.0015), ("t2v-14B", 900, 0.9)],
)  # fmt: skip
def test_the_boundary_is_the_tasks_or_a_share_or_a_timestep(task: str, given: float | None, expected: float | None) -> None:
    assert boundary(settings(task, timestep_boundary=given)) == (expected if expected is None else pytest.approx(expected))


REQUEST = SampleRequest("a", seed=1, width=32, height=48, frames=5, steps=4, flow_shift=5.0, guidance=Guidance(3.0))


def settings(task: str, **values: Any) -> WanSettings:
    return WanSettings.read({"task": task, "vae": "v", "clip": "c", **values})


@pytest.mark.parametrize(("given", "expected"), [(None, 4.0), (8.0, 8.0), (0.0, 0.0)])
def test_the_high_noise_steps_have_a_guidance_of_their_own(given: float | None, expected: float) -> None:
    task = CARD.task("t2v-A14B")
    found = fitted(REQUEST, settings("t2v-A14B", guidance_scale_high_noise=given), task)
    assert found.guidance.scale == 3 and found.guidance_of(True).scale == expected and found.guidance_of(False).scale == 3
    assert fitted_sample(REQUEST, settings("t2v-A14B"), task).guidance_of(True).scale == 3, "samples while training have one"
    with pytest.raises(UserError, match="needs a boundary"):
        fitted(REQUEST, settings("t2v-14B", guidance_scale_high_noise=4.0), CARD.task("t2v-14B"))


@pytest.mark.parametrize(
    ("task", "changes", "frames"),
    [
        ("i2v-14B", {}, 2),
        ("i2v-14B", {"images": Images(start="a", end="b")}, 3),  # a frame of its own behind the video
        ("flf2v-14B", {"images": Images(start="a", end="b")}, 2),  # made for a last frame
        ("i2v-14B", {"one_frame": "target_index=1,control_index=0;10", "frames": 1}, 3),
    ],
)
def test_what_is_sampled_has_a_frame_for_every_image(task: str, changes: dict[str, Any], frames: int) -> None:
    assert noise_shape(replace(REQUEST, **changes), CARD.task(task)) == (16, frames, 6, 4)


@pytest.mark.parametrize(
    ("low", "high", "idle"),
    [(None, None, None), (None, 876, None), (None, 875, HIGH), (874, None, None), (875, None, LOW), (900, 950, LOW)],
)
def test_timesteps_on_one_side_train_no_lora_of_the_other(low: int | None, high: int | None, idle: str | None) -> None:
    limits = settings("t2v-A14B", min_timestep=low, max_timestep=high)
    if idle is None:
        _check_both_are_trained(limits)
    else:
        with pytest.raises(UserError, match=f"side of the experts' boundary, 875, so the {idle} noise expert would"):
            _check_both_are_trained(limits)


class Expert(nn.Module):
    """Adds its number to what it is given."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number), requires_grad=False)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return x + self.number


@pytest.mark.parametrize("how", [{}, {"offload": True}, {"lazy": True}])
def test_the_boundary_itself_is_high_noise_and_the_noise_level_chooses_the_expert(how: dict[str, bool]) -> None:
    loaded: list[str] = []

    def load(name: str, number: float) -> Any:
        return lambda device: loaded.append(name) or Expert(number)

    pair = Experts({LOW: load(LOW, 1.0), HIGH: load(HIGH, 2.0)}, 0.875, torch.device("cpu"), **how)
    times = [1000.0, 875.0, 874.9, 0.0, 900.0]
    assert [pair(torch.zeros(1), torch.tensor([time])).item() for time in times] == [2, 2, 1, 1, 2]
    if how.get("lazy"):
        assert loaded == [HIGH, LOW, HIGH] and len(pair.models) == 1, "the inactive one is dropped"
    else:
        assert list(experts_of(pair)) == [LOW, HIGH]
        pair.models[LOW].gradient_checkpointing = True
        assert not pair.gradient_checkpointing
        pair.gradient_checkpointing = True
        assert pair.models[HIGH].gradient_checkpointing


def test_only_the_expert_at_work_has_a_copy_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy is another tensor here, as on a device of its own."""
    monkeypatch.setattr(Tensor, "to", lambda self, *where, **more: self.clone())
    lying: dict[str, int] = {}

    def load(name: str, number: float) -> Any:
        def of(device: torch.device) -> Expert:
            expert = Expert(number)
            lying[name] = expert.number.data_ptr()
            return expert

        return of

    pair = Experts({LOW: load(LOW, 1.0), HIGH: load(HIGH, 2.0)}, 0.875, torch.device("cpu"), offload=True)

    def copied() -> list[str]:
        return [name for name in (LOW, HIGH) if pair.models[name].number.data_ptr() != lying[name]]

    assert copied() == [LOW], "the low-noise one works first"
    pair.at(1000)
    assert copied() == [HIGH]
    pair.to("cpu")
    assert copied() == []
    pair.at(0)
    assert copied() == [LOW]
