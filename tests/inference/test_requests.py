"""From a prompt line, the arguments and the task to a request: what a line says goes before an argument, and that before the task."""

from __future__ import annotations

from typing import Any

import pytest
from musubi_backend.architectures.request import Guidance, Images, SampleRequest
from musubi_backend.architectures.wan import fitting
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.errors import UserError
from musubi_backend.inference.requests import build_request
from musubi_backend.inference.settings import GenerateSettings


class Taking(Wan):
    """Wan with a setting of its own in lines, and without an opinion of images."""

    own_settings = frozenset(("video_seconds",))


@pytest.fixture(autouse=True)
def any_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("_check_images", "_check_one_frame"):
        monkeypatch.setattr(fitting, check, lambda *_: None)


TASK = CARD.task("t2v-14B")


def built(line: dict[str, Any] | None = None, **arguments: Any) -> SampleRequest:
    """video_size is height and width, as in musubi-tuner."""
    given = {"task": "t2v-14B", "video_size": [480, 832], **arguments}
    return build_request({"prompt": "a cat", **(line or {})}, GenerateSettings.read(given), Taking().configured(given))


@pytest.mark.parametrize(
    ("key", "argument", "field"),
    [
        ("frame_count", "video_length", "frames"), ("sample_steps", "infer_steps", "steps"), ("seed", "seed", "seed"),
        ("discrete_flow_shift", "flow_shift", "flow_shift"),
        ("negative_prompt", "negative_prompt", "negative_prompt"),
    ],
)  # fmt: skip
def test_a_line_goes_before_an_argument(key: str, argument: str, field: str) -> None:
    assert getattr(built({key: 9}, **{argument: 5}), field) == 9
    assert getattr(built(**{argument: 5}), field) == 5


def test_a_lines_guidance_and_one_frame_settings_go_before_the_arguments() -> None:
    assert built({"guidance_scale": 9.0}, guidance_scale=5.0).guidance.scale == 9
    frame = "target_index=1,control_index=0"
    assert built({"one_frame": frame}, one_frame_inference="other").one_frame == frame
    assert built(one_frame_inference=frame).one_frame == frame


def test_what_is_not_given_is_the_tasks() -> None:
    request = built(video_length=None, infer_steps=None, flow_shift=None, guidance_scale=None)
    assert (request.frames, request.steps, request.guidance.scale) == (TASK.frames, TASK.steps, TASK.guidance_scale)
    assert request.flow_shift == TASK.flow_shift_at(832, 480) and request.negative_prompt == (TASK.negative_prompt or CARD.negative_prompt)


def test_zero_is_a_value() -> None:
    request = built(seed=0, guidance_scale=0.0)
    assert request.seed == 0 and request.guidance.scale == 0


def test_sizes_are_height_and_width_in_arguments_and_named_in_lines() -> None:
    assert (built().width, built().height) == (832, 480)
    wide = built({"width": 640})
    assert (wide.width, wide.height) == (640, 480)


def test_every_setting_of_the_guidance_arrives() -> None:
    settings = {"cfg_skip_mode": "late", "cfg_apply_ratio": 0.5, "slg_mode": "uncond", "slg_layers": "9,10"}
    settings |= {"slg_scale": 1.5, "slg_start": 0.2, "slg_end": 0.7}
    assert built({"guidance_scale": 2.0}, **settings).guidance == Guidance(2.0, "late", 0.5, "uncond", (9, 10), 1.5, 0.2, 0.7)
    with pytest.raises(UserError, match='--slg_layers "9;10"'):
        built(slg_layers="9;10")


def test_every_image_arrives_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "size_of", lambda path: (832, 480))
    arguments = {
        "image_path": "start", "end_image_path": "end", "control_path": "video", "control_image_path": ["a", "b"],
        "control_image_mask_path": ["m"],
    }  # fmt: skip
    assert built(**arguments).images == Images("start", "end", "video", ("a", "b"), ("m",))
    line = {"image_path": "s", "end_image_path": "e", "control_video_path": "v", "control_image_path": ("c",)}
    assert built(line, **arguments).images == Images("s", "e", "v", ("c",), ("m",))


@pytest.mark.parametrize(("trimmed", "fits"), [(0, True), (4, True), (5, False), (-1, False)])
def test_not_all_frames_can_be_trimmed(trimmed: int, fits: bool) -> None:
    if fits:
        assert built(video_length=5, trim_tail_frames=trimmed).frames == 5
    else:
        with pytest.raises(UserError, match="only 0 to 4 of 5 frames can go"):
            built(video_length=5, trim_tail_frames=trimmed)


def test_settings_of_the_architecture_alone_are_kept_apart() -> None:
    assert built({"video_seconds": 2.0, "frame_count": 5}).own == {"video_seconds": 2.0}
