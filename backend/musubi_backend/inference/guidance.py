"""Classifier-free guidance, the ways to skip it on some steps, and skip-layer guidance.

Skip-layer guidance (SLG, github.com/Stability-AI/sd3.5) compares with a prediction made while some blocks are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..architectures.request import Guidance
from ..errors import UserError

SKIP_MODES = ("early", "late", "middle", "early_late", "alternate", "none")


def cfg_steps(skip_mode: str, apply_ratio: float | None, steps: int) -> list[bool]:
    """For each step, whether guidance is applied. "early" skips the first steps, "middle" the ones in between, and so on;
    "alternate" spreads the guided steps evenly."""
    if skip_mode not in SKIP_MODES:
        raise UserError(f"--cfg_skip_mode {skip_mode}: unknown; choose one of {', '.join(SKIP_MODES)}")
    if skip_mode == "none" or apply_ratio is None:
        return [True] * steps
    if not 0 <= apply_ratio <= 1:
        raise UserError(f"--cfg_apply_ratio {apply_ratio}: must be between 0 and 1")
    if skip_mode == "alternate":
        return _spread(apply_ratio, steps)
    guided = int(steps * apply_ratio)
    skipped = steps - guided
    if skip_mode == "middle":
        first = guided // 2
        return [not first <= step < first + skipped for step in range(steps)]
    first = {"early": skipped, "late": 0, "early_late": skipped // 2}[skip_mode]
    return [first <= step < first + guided for step in range(steps)]


def _spread(ratio: float, steps: int) -> list[bool]:
    """Guided each time the ratios summed up so far reach another whole step."""
    pattern, owed = [], 0.0
    for _ in range(steps):
        owed += ratio
        pattern.append(owed >= 1.0)
        owed -= float(pattern[-1])
    return pattern


def pattern_text(guided: list[bool]) -> str:
    """musubi-tuner's way of showing it: A where guidance is applied, S where it is skipped."""
    return "".join("A" if applied else "S" for applied in guided)


def check(guidance: Guidance, blocks: int) -> None:
    """Reject skip-layer settings that do nothing or name blocks that do not exist. blocks: how many the model has."""
    if guidance.slg_mode is None:
        return
    if not guidance.slg_layers:
        raise UserError(f"--slg_mode {guidance.slg_mode} needs --slg_layers, the indices of the blocks to leave out, for example 9")
    wrong = [layer for layer in guidance.slg_layers if not 0 <= layer < blocks]
    if wrong:
        raise UserError(f"--slg_layers: block {wrong[0]} does not exist; this model has blocks 0 to {blocks - 1}")


def guided_prediction(
    predict: Callable[[bool, tuple[int, ...]], Tensor], guidance: Guidance, step: int, steps: int, apply_cfg: bool
) -> Tensor:
    """The velocity to follow at one step.

    predict(positive, skip_blocks): the model's velocity with the prompt or the negative prompt, without some blocks.
    """
    positive = predict(True, ())
    if not apply_cfg or not guidance.needs_negative:
        return positive
    skips_layers = int(guidance.slg_start * steps) <= step < int(guidance.slg_end * steps)
    if guidance.slg_mode == "uncond" and skips_layers:
        negative = predict(False, guidance.slg_layers)
    else:
        negative = predict(False, ()) if guidance.scale != 1.0 else positive
    mixed = negative + guidance.scale * (positive - negative)
    if guidance.slg_mode == "original" and skips_layers:
        mixed = mixed + guidance.slg_scale * (positive - predict(False, guidance.slg_layers))
    return mixed
