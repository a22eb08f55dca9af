"""Layouts of FramePack's sections and one-frame settings, and guidance rescale, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.architectures.framepack.adapter import ADAPTER
from musubi_backend.architectures.framepack.card import CARD
from musubi_backend.architectures.framepack.magcache import Calibration, MagCache, spread
from musubi_backend.architectures.framepack.one_frame import OneFrame, latent_mask
from musubi_backend.architectures.framepack.sample import rescaled
from musubi_backend.architectures.framepack.sections import HISTORY, History, Section, count_of, cut, frames_of
from musubi_backend.architectures.request import Guidance, SampleRequest
from musubi_backend.cache.files import save_latents


def values(tensor: torch.Tensor) -> list[float]:
    return tensor[0, :, 0, 0].tolist()


def test_f1_sees_what_lies_before_a_section() -> None:
    """Three sections of two frames, numbered 2 to 7 behind the start image 1."""
    video = 1 + torch.arange(7).float().view(1, -1, 1, 1).expand(16, -1, 2, 2)
    first, second, third = cut(video, 2, f1=True)
    assert [values(one["latents"]) for one in (first, second, third)] == [[2, 3], [4, 5], [6, 7]]
    assert values(first["latents_clean"]) == [1, 1] and values(first["latents_clean_2x"]) == [0, 0]
    assert values(third["latents_clean"]) == [1, 5] and values(third["latents_clean_2x"]) == [3, 4]
    assert values(third["latents_clean_4x"]) == [0] * 14 + [1, 2]
    times = {name: third[name].tolist() for name in third if name.endswith("indices")}
    assert times == {
        "clean_latent_indices": [0, 19], "clean_latent_4x_indices": [*range(1, 17)], "clean_latent_2x_indices": [17, 18],
        "latent_indices": [20, 21],
    }  # fmt: skip


def test_plain_sections_count_their_times_over_the_padding() -> None:
    history = History(torch.zeros(16, 1, 2, 2), 3, f1=False)
    found = history.conditions(Section(0, padding=2))
    times = {name: found[name].tolist() for name in found if name.endswith("indices")}
    assert times == {
        "latent_indices": [7, 8, 9], "clean_latent_indices": [0, 10], "clean_latent_2x_indices": [11, 12],
        "clean_latent_4x_indices": [*range(13, 29)],
    }  # fmt: skip
    assert history.frames.shape[1] == HISTORY == 19


@pytest.mark.parametrize(("frames", "sections"), [(36, 0), (37, 1), (72, 1), (73, 2), (109, 3)])
def test_sections_of_a_clip_are_whole(frames: int, sections: int) -> None:
    assert count_of(frames, 9) == sections
    assert frames_of(sections, 9) <= max(frames, 1)


@pytest.mark.parametrize(
    ("settings", "images", "times", "clean"),
    [
        (OneFrame(3, (0, 10)), [5.0, 6.0], [0, 10, 10], [5, 6, 0]),  # the empty frame stands behind the window of 9
        (OneFrame(3, (0, 4)), [5.0], [0, 4], [5, 0]),  # unless one more index moves it
        (OneFrame(3), [5.0], [0, 10], [5, 0]),
        (OneFrame(3, (2,), no_post=True), [5.0], [2], [5]),
    ],
)
def test_control_images_stand_at_their_times(settings: OneFrame, images: list[float], times: list[int], clean: list[float]) -> None:
    found = settings.conditions([torch.full((16, 1, 2, 2), value) for value in images], 9)
    assert found["latent_indices"].tolist() == [3]
    assert found["clean_latent_indices"].tolist() == times and values(found["latents_clean"]) == clean
    assert found["clean_latent_2x_indices"].tolist() == [11, 12]
    assert found["clean_latent_4x_indices"].tolist() == [*range(13, 29)]


def test_the_coarser_history_is_left_out_part_by_part() -> None:
    def parts(text: str) -> set[str]:
        return set(OneFrame.parse(text, 9).conditions([torch.zeros(16, 1, 2, 2)], 9))

    always = {"latent_indices", "latents_clean", "clean_latent_indices"}
    assert parts("no_2x") == {*always, "clean_latent_4x_indices"}
    assert parts("no_4x") == {*always, "clean_latent_2x_indices"}


def test_white_of_a_mask_is_one() -> None:
    assert torch.equal(latent_mask(np.full((16, 16), 255, np.uint8), 2, 2), torch.ones(2, 2))


def test_guidance_rescale_mixes_the_two_spreads() -> None:
    plain, mixed = torch.tensor([-1.0, 1.0]), torch.tensor([-4.0, 4.0])
    torch.testing.assert_close(rescaled(mixed, plain, 0.75), mixed * (0.75 / 4 + 0.25))


def request(scale: float, sections: int = 3) -> SampleRequest:
    settings: dict[str, Any] = {"seed": 1, "width": 32, "height": 32, "frames": 1, "steps": 4, "flow_shift": 0.0}
    return SampleRequest("0:a;;;1:b", guidance=Guidance(scale), negative_prompt="n", own={"sections": sections}, **settings)


def test_a_request_has_the_steps_of_all_sections_and_the_texts_it_needs() -> None:
    assert ADAPTER.steps(request(1.0)) == 12 and ADAPTER.steps(request(1.0, sections=0)) == 4
    assert ADAPTER.texts(request(1.0)) == ["a", "b"]
    assert ADAPTER.texts(request(2.0)) == ADAPTER.texts(request(0.5)) == ["a", "b", "n"]


@pytest.mark.parametrize("f1", [False, True])
def test_caches_of_the_other_kind_are_made_again(f1: bool, tmp_path: Path) -> None:
    video = torch.zeros(16, 5, 2, 2)
    save_latents(tmp_path / "one.safetensors", cut(video, 2, f1)[0], CARD, width=16, height=16, frame_count=17)
    for wanted in (False, True):
        assert ADAPTER.configured({"f1": wanted}).cached_otherwise(tmp_path / "one.safetensors") is (wanted != f1)


def test_magcache_never_skips_the_last_step_and_adds_up_ratios_and_errors() -> None:
    """Ratios 1.1 and 0.9: after two skipped steps 0.99, errors 0.1 + 0.01; a third of 1.2 adds 0.188 and goes over 0.2."""
    cache = MagCache((1.0, 1.1, 0.9, 1.2, 1.0, 1.0), retention=0.0, threshold=0.2, most=9)
    for step in range(6):
        assert cache(lambda x: x + 2, torch.full((1, 1, 1), float(step)), 1).item() == step + 2
    assert cache.skipped == [1, 2, 4]


def test_calibration_measures_how_the_added_grows() -> None:
    calibration = Calibration()
    for added in (2.0, 3.0, 1.5):
        calibration(lambda x, more=added: x + more, torch.ones(1, 3, 4), 2)
    assert calibration.ratios == pytest.approx([1.0, 1.5, 0.5])


def test_ratios_are_spread_from_the_first_to_the_last() -> None:
    assert spread((1.0, 2.0, 3.0, 4.0), 3) == (1.0, 3.0, 4.0)  # at 0, 1.5 and 3
    assert spread((1.0, 2.0, 3.0), 2) == (1.0, 3.0)
