"""What `accelerate launch` was told besides how many processes and where: it says so in the environment, and none of it is to be silently
left out."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UserError

_NOT_OFFERED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
_FSDP = "ACCELERATE_USE_FSDP"


def check(environment: Mapping[str, str], *, fsdp: bool) -> None:
    """UserError for what this trainer does not do. fsdp: is the transformer spread?"""
    asked = [title for name, title in _NOT_OFFERED.items() if environment.get(name, "").lower() in ("true", "1")]
    if asked:
        raise UserError(
            f"accelerate was told to use {' and '.join(asked)}, which this trainer does not support: optimizer and "
            "gradients of a LoRA are small. For a transformer that is larger than one GPU use --fsdp; take the rest out of accelerate's "
            "configuration"
        )
    if environment.get(_FSDP, "").lower() in ("true", "1") and not fsdp:
        raise UserError("accelerate was told to use FSDP: give the trainer --fsdp, or take FSDP out of accelerate's configuration")
