"""How strongly each checkpoint counts in an averaged LoRA, and what it is called. Standard library only: the node uses it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError

SIGMA_REL_LIMIT = 12**-0.5
"""The width of an even average over all checkpoints; no power function is wider."""


def linear_betas(beta: float, beta2: float | None, steps: int) -> tuple[float, ...]:
    """The decay before each of `steps` files: evenly from beta to beta2 (None: the same throughout)."""
    end = beta if beta2 is None else beta2
    return tuple(beta + (end - beta) * (index / (steps - 1)) if steps > 1 else beta for index in range(steps))


def power_betas(sigma_rel: float, steps: int) -> tuple[float, ...]:
    """The decay before each of `steps` files of a power function EMA whose width is `sigma_rel` of the whole training. The first is
    0: the file before it counts for nothing. UserError outside 0 < sigma_rel < 0.2887."""
    exponent = gamma(sigma_rel) + 1
    return tuple((1 - 1 / step) ** exponent for step in range(1, steps + 1))


def gamma(sigma_rel: float) -> float:
    """The exponent of the power function: the positive root of g^3 + 7 g^2 + (16 - t) g + (12 - t), t = sigma_rel^-2.

    Algorithm 2 of arXiv 2312.02696. Left of the root the cubic is negative, right of it positive.
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise UserError(
            f"sigma_rel {sigma_rel:g} is out of range: it must lie above 0 and below {SIGMA_REL_LIMIT:.4f}, where all checkpoints count "
            "the same. 0.2 is a good start; smaller values prefer later checkpoints"
        )
    t: float = sigma_rel**-2
    low, high = 0.0, 1.0 + t**0.5
    while low < (middle := (low + high) / 2) < high:
        if ((middle + 7) * middle + 16 - t) * middle + 12 - t < 0:
            low = middle
        else:
            high = middle
    return float(high)


def shares(betas: Sequence[float]) -> tuple[float, ...]:
    """How much of the result comes from each file, the first one included; they add up to 1."""
    result = [1.0]
    for beta in betas:
        result = [share * beta for share in result] + [1 - beta]
    return tuple(result)


def averaged_name(output: Path, sigma_rel: float) -> Path:
    """Where the result of one of several widths goes: "lora.safetensors" -> "lora-sigma0.15.safetensors"."""
    return output.with_name(f"{output.stem}-sigma{sigma_rel:g}{output.suffix}")


def counted_once(metadata: Sequence[Mapping[str, str]]) -> list[int]:
    """Which of these checkpoints to average, by what their files say: of several that are the same step of one training, the last.

    They are the same where the step is, unless session or weights are known to differ. Files that do not say their step all count.
    """
    return [index for index, mine in enumerate(metadata) if not any(_is_same_step(mine, later) for later in metadata[index + 1 :])]


def _is_same_step(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    if "ss_steps" not in one or one["ss_steps"] != other.get("ss_steps"):
        return False
    for key in ("sshs_model_hash", "ss_session_id"):  # equal weights are decisive: a continued training has another session
        if key in one and key in other:
            return one[key] == other[key]
    return True
