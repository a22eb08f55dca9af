"""FramePack's small parts: sections, one-frame settings, texts per section, the sampler, MagCache, decoding with an overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from musubi_backend.architectures.framepack.encode import FramePackLatentDecoder
from musubi_backend.architectures.framepack.magcache import MEASURED, MagCache, parse_ratios, spread
from musubi_backend.architectures.framepack.one_frame import OneFrame, latent_mask
from musubi_backend.architectures.framepack.sample import rescaled
from musubi_backend.architectures.framepack.section_texts import chosen, parse_sections
from musubi_backend.architectures.framepack.sections import History, Section, count_for_seconds, cut, given_paddings, plan, usual_paddings
from musubi_backend.architectures.framepack.unipc import FlowUniPC, dynamic_shift, sigmas
from musubi_backend.encoders.hunyuan_vae import HunyuanVAE
from musubi_backend.errors import UserError
from safetensors.torch import load_file


@pytest.mark.parametrize(("tokens", "expected"), [(256, "seq256"), (2000, "seq2000"), (14400, "seq14400")])
def test_sigmas_are_the_recorded_ones(tokens: int, expected: str, shared: Path) -> None:
    import json

    recorded = json.loads((shared / "golden/timesteps/schedulers.json").read_text(encoding="utf-8"))["framepack_sigmas"]
    assert sigmas(10, dynamic_shift(tokens)) == pytest.approx(recorded[f"{expected}_steps10"]["sigmas"], abs=1e-6)


def test_the_sampler_follows_the_recorded_trajectory(shared: Path) -> None:
    """The model of the recording: its data estimate is 0.5 tanh(x) + 0.01 sigma, over the sigmas of 2000 tokens."""
    recorded = load_file(shared / "golden/timesteps/scheduler_traj.safetensors")
    sampler = FlowUniPC(sigmas(10, dynamic_shift(2000)))
    x = recorded["x0"]
    for sigma in sampler.sigmas[:-1]:
        x = sampler.step((x - (0.5 * torch.tanh(x) + 0.01 * sigma)) / sigma, x)
    torch.testing.assert_close(x, recorded["framepack_unipc.out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_sampler_finds_constant_data_in_any_number_of_steps(steps: int) -> None:
    sampler, x = FlowUniPC(sigmas(steps, 3.0)), torch.randn(8)
    for sigma in sampler.sigmas[:-1]:
        x = sampler.step((x - 0.25) / sigma, x)
    torch.testing.assert_close(x, torch.full((8,), 0.25), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sections", "paddings"), [(1, [0]), (3, [2, 1, 0]), (4, [3, 2, 1, 0]), (5, [3, 2, 2, 1, 0]), (8, [3, 2, 2, 2, 2, 2, 1, 0])]
)
def test_paddings_are_framepack_s(sections: int, paddings: list[int]) -> None:
    assert usual_paddings(sections) == paddings


def test_given_paddings_fill_up_with_the_usual_ones_and_drop_surplus_ones() -> None:
    assert given_paddings("7", 3) == [7, 1, 0]
    assert given_paddings("7,6,5,4", 3) == [7, 6, 5]
    with pytest.raises(UserError, match="give whole numbers separated by commas"):
        given_paddings("3;2", 2)


@pytest.mark.parametrize(("seconds", "sections"), [(5.0, 4), (0.5, 1), (60.0, 50), (1.9, 2)])
def test_a_length_in_seconds_is_rounded_to_sections(seconds: float, sections: int) -> None:
    assert count_for_seconds(seconds, 9) == sections


@pytest.mark.parametrize("f1", [False, True])
@pytest.mark.parametrize("sections", [1, 2, 6])
def test_a_history_ends_as_the_whole_video_in_order(f1: bool, sections: int) -> None:
    video = torch.arange(1 + 2 * sections).float().view(1, -1, 1, 1).expand(3, -1, 2, 2)
    history = History(video[:, :1], 2, f1)
    for section in plan(sections, f1):
        history.add(video[:, 1 + 2 * section.number : 3 + 2 * section.number], section)
    assert torch.equal(history.finished(), video)


def test_training_data_is_what_generation_would_be_reported() -> None:
    video = 1 + torch.arange(7).float().view(1, -1, 1, 1).expand(16, -1, 2, 2)
    first, second, third = cut(video, 2, f1=False)
    assert third["latents"][0, :, 0, 0].tolist() == [6, 7]
    assert third["latent_indices"].tolist() == [5, 6], "two sections of padding"
    assert third["latents_clean"][0, :, 0, 0].tolist() == [1, 0]
    assert second["latents_clean"][0, :, 0, 0].tolist() == [1, 6], "the start image and the frame behind the section"
    assert second["latents_clean_2x"][0, :, 0, 0].tolist() == [7, 0]
    assert first["latents_clean_2x"][0, :, 0, 0].tolist() == [5, 6]
    assert first["latents_clean_4x"][0, :2, 0, 0].tolist() == [7, 0]


def test_an_end_image_stands_behind_the_last_section() -> None:
    start, end = torch.zeros(16, 1, 2, 2), torch.ones(16, 1, 2, 2)
    conditions = History(start, 2, f1=False, end=end).conditions(Section(1, 1))
    assert conditions["latents_clean"][0, :, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("a cat: the film", {0: "a cat: the film"}),
        ("0:a;;;1:b", {0: "a", 1: "b"}),
        ("0-2:a;;;-1:b", {0: "a", 1: "a", 2: "a", -1: "b"}),
        ("-3--2:a;;;1:b", {-3: "a", -2: "a", 1: "b", 0: "b"}),
        ("-1:a;;;-2:b", {-1: "a", -2: "b", 0: "b"}),
        ("a cat: the film;;;2:c", {0: "a cat: the film", 2: "c"}),
        ("/a/0.png;;; -1 : /b/1.png", {0: "/a/0.png", -1: "/b/1.png"}),
    ],
)
def test_texts_per_section(text: str | None, expected: dict[int, str]) -> None:
    assert parse_sections(text) == expected


def test_places_from_the_end_go_before_places_from_the_start() -> None:
    values = {0: "", 3: "", -1: ""}
    assert [chosen(values, number, 4) for number in range(4)] == [0, 0, 0, -1]
    assert [chosen(values, number, 5) for number in range(5)] == [0, 0, 0, 3, -1]


def test_one_frame_settings_are_read_and_unknown_ones_rejected() -> None:
    assert OneFrame.parse("no_2x, no_post,target_index=3,control_index=0;10", 9) == OneFrame(3, (0, 10), no_2x=True, no_post=True)
    assert OneFrame.parse("default", 9) == OneFrame(9)
    with pytest.raises(UserError, match='"no_8x" is not known'):
        OneFrame.parse("no_8x", 9)
    with pytest.raises(UserError, match="give whole numbers"):
        OneFrame.parse("control_index=a", 9)


def test_a_mask_weakens_latents_where_it_is_dark() -> None:
    mask = np.zeros((64, 32), dtype=np.uint8)
    mask[:32] = 255
    found = latent_mask(mask, 8, 4)
    assert found.shape == (8, 4)
    assert found[:3].min() > 0.95
    assert found[5:].max() < 0.05


def test_guidance_rescale_brings_the_spread_back() -> None:
    plain, mixed = torch.randn(1, 4, 2, 8, 8), 5 * torch.randn(1, 4, 2, 8, 8)
    assert rescaled(mixed, plain, 1.0).std() == pytest.approx(plain.std().item(), rel=1e-4)
    assert rescaled(mixed, plain, 0.0) is mixed


def test_magcache_skips_by_its_rules() -> None:
    """Ratio 1.1 each: errors 0.1, then 0.21 more; the third would be 0.331 more. Nothing is skipped in the first 2 steps and the last."""
    cache = MagCache((1.1,) * 10, retention=0.2, threshold=0.5, most=6)
    runs = []

    def run(x: torch.Tensor) -> torch.Tensor:
        runs.append(len(runs))
        return x + 2.0

    outputs = [cache(run, torch.full((1, 3, 2), float(step)), 3) for step in range(10)]
    assert cache.skipped == [2, 3, 5, 6, 8]
    assert len(runs) == 5
    assert all(torch.equal(out, torch.full((1, 3, 2), step + 2.0)) for step, out in enumerate(outputs))


def test_magcache_keeps_to_the_number_of_steps_in_a_row() -> None:
    cache = MagCache((1.0,) * 12, retention=0.0, threshold=1.0, most=2)
    for _ in range(12):
        cache(lambda x: x + 1, torch.zeros(1, 1, 1), 1)
    assert cache.skipped == [1, 2, 4, 5, 7, 8, 10]


def test_ratios_for_another_number_of_steps_are_the_nearest_ones() -> None:
    assert parse_ratios("0") == MEASURED
    assert spread((1.0, 2.0, 3.0), 5) == (1.0, 1.0, 2.0, 3.0, 3.0)  # 0.5 and 1.5 round to the even neighbour, as numpy does
    assert spread((1.0, 2.0), 1) == (2.0,)
    with pytest.raises(UserError, match="give numbers separated by commas"):
        parse_ratios("1.0;2.0")


class _FrameCounter:
    """Stands in for the VAE: latent frame n becomes the frames 4n-3..4n with the value n (frame 0 alone)."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.lengths.append(latents.shape[2])
        values = latents[:, :3, :, :1, :1] * 0.476986
        first, rest = values[:, :, :1], values[:, :, 1:].repeat_interleave(4, dim=2)
        return torch.cat([first, rest], dim=2).expand(-1, -1, -1, 8, 8).clone()


@pytest.mark.parametrize("sections", [1, 2, 5])
def test_decoding_two_sections_at_a_time_gives_every_frame_once(sections: int) -> None:
    """Where two pieces share frames they agree here, except the first frame of the later piece, which it knows no past of."""
    latents = (torch.arange(1 + 3 * sections).float() / 100).view(1, -1, 1, 1).expand(16, -1, 1, 1)
    vae = _FrameCounter()
    video = FramePackLatentDecoder(vae, 3, bulk=False).decode(latents)  # type: ignore[arg-type]
    bulk = FramePackLatentDecoder(_FrameCounter(), 3, bulk=True).decode(latents)  # type: ignore[arg-type]
    assert video.shape == bulk.shape == (3, 12 * sections + 1, 8, 8)
    assert max(vae.lengths) <= 7
    assert (video - bulk).abs().max() < 0.006


DECODED = {
    1: (0.51718, 0.43710, 0.25772, 0.54819, 0.34461, 0.44782, 0.22512, 0.25360, 0.47860, 79.6168),
    2: (1.00000, 0.33083, 0.72339, 0.37994, 0.60196, 0.53529, 0.26640, 0.57180, 0.69106, 111.3110),
    4: (0.43256, 0.30948, 0.70202, 0.55448, 0.35298, 0.47730, 0.41458, 0.67832, 0.66728, 157.9456),
}
"""Nine values of the video, evenly spread over it, and its length: recorded from musubi-tuner's `decode_latent` with a window of 2."""


@pytest.mark.parametrize("sections", DECODED)
def test_decoding_with_an_overlap_gives_musubi_tuners_video(sections: int, reference_hunyuan_vae: Path) -> None:
    vae = HunyuanVAE.load(reference_hunyuan_vae, torch.device("cpu"), torch.float32)
    latents = torch.randn(16, 1 + 2 * sections, 3, 4, generator=torch.Generator().manual_seed(sections))
    video = FramePackLatentDecoder(vae, 2, bulk=False).decode(latents)
    assert video.shape == (3, 8 * sections + 1, 24, 32)
    found = [*video.flatten()[torch.linspace(0, video.numel() - 1, 9).long()].tolist(), video.norm().item()]
    assert found == pytest.approx(DECODED[sections], rel=1e-3, abs=1e-3)
