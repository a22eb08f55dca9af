"""Which steps are guided, and how predictions are mixed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from musubi_backend.architectures.request import Guidance
from musubi_backend.errors import UserError
from musubi_backend.inference.guidance import SKIP_MODES, cfg_steps, check, guided_prediction, pattern_text

CONDITIONAL, NEGATIVE, SKIPPED = 5.0, 2.0, 1.0


@pytest.mark.parametrize(
    ("mode", "ratio", "pattern"),
    [
        ("none", 0.5, "AAAAAAAAAA"),
        ("early", None, "AAAAAAAAAA"),
        ("early", 0.3, "SSSSSSSAAA"),
        ("late", 0.3, "AAASSSSSSS"),
        ("middle", 0.5, "AASSSSSAAA"),
        ("early_late", 0.5, "SSAAAAASSS"),
        ("alternate", 0.5, "SASASASASA"),
        ("alternate", 0.25, "SSSASSSASS"),
        ("alternate", 1.0, "AAAAAAAAAA"),
        ("early", 0.0, "SSSSSSSSSS"),
    ],
)
def test_patterns_over_ten_steps(mode: str, ratio: float | None, pattern: str) -> None:
    assert pattern_text(cfg_steps(mode, ratio, 10)) == pattern


@given(st.sampled_from([mode for mode in SKIP_MODES if mode not in ("none", "alternate")]), st.floats(0, 1), st.integers(1, 100))
def test_the_ratio_is_the_share_of_guided_steps(mode: str, ratio: float, steps: int) -> None:
    assert sum(cfg_steps(mode, ratio, steps)) == int(steps * ratio)


def test_bad_settings_are_rejected_by_name() -> None:
    with pytest.raises(UserError, match="--cfg_skip_mode sometimes"):
        cfg_steps("sometimes", 0.5, 10)
    with pytest.raises(UserError, match=r"--cfg_apply_ratio 1\.5"):
        cfg_steps("early", 1.5, 10)
    with pytest.raises(UserError, match="block 2 does not exist; this model has blocks 0 to 1"):
        check(Guidance(slg_mode="original", slg_layers=(0, 2)), blocks=2)
    with pytest.raises(UserError, match="needs --slg_layers"):
        check(Guidance(slg_mode="uncond"), blocks=2)


def _mix(guidance: Guidance, step: int = 0, apply_cfg: bool = True) -> tuple[float, list[tuple[bool, tuple[int, ...]]]]:
    calls = []

    def predict(positive: bool, skip: tuple[int, ...]) -> torch.Tensor:
        calls.append((positive, skip))
        return torch.tensor(CONDITIONAL if positive else SKIPPED if skip else NEGATIVE)

    return guided_prediction(predict, guidance, step, 10, apply_cfg).item(), calls


def test_plain_guidance() -> None:
    assert _mix(Guidance(scale=3.0)) == (NEGATIVE + 3 * (CONDITIONAL - NEGATIVE), [(True, ()), (False, ())])


def test_skipped_steps_and_scale_one_run_the_model_once() -> None:
    assert _mix(Guidance(scale=3.0), apply_cfg=False) == (CONDITIONAL, [(True, ())])
    assert _mix(Guidance(scale=1.0)) == (CONDITIONAL, [(True, ())])
    assert not Guidance(scale=1.0).needs_negative


def test_skip_layer_guidance_only_in_its_part_of_the_run() -> None:
    original = Guidance(scale=3.0, slg_mode="original", slg_layers=(1,), slg_scale=2.0, slg_start=0.1, slg_end=0.3)
    plain = NEGATIVE + 3 * (CONDITIONAL - NEGATIVE)
    assert [_mix(original, step)[0] for step in (0, 1, 2, 3)] == [plain, *[plain + 2 * (CONDITIONAL - SKIPPED)] * 2, plain]
    uncond = Guidance(scale=3.0, slg_mode="uncond", slg_layers=(1,), slg_end=0.3)
    assert _mix(uncond) == (SKIPPED + 3 * (CONDITIONAL - SKIPPED), [(True, ()), (False, (1,))])


def test_original_mode_still_acts_without_plain_guidance() -> None:
    guidance = Guidance(scale=1.0, slg_mode="original", slg_layers=(1,), slg_scale=2.0)
    assert guidance.needs_negative
    assert _mix(guidance) == (CONDITIONAL + 2 * (CONDITIONAL - SKIPPED), [(True, ()), (False, (1,))])
