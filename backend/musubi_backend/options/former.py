"""Flags that other versions and guides use, and what they are called here."""

from __future__ import annotations

from collections.abc import Collection

FORMER: dict[str, tuple[str, ...]] = {
    "--llm_path": ("--t5", "--text_encoder1"),
    "--solver": ("--sample_solver",),
    "--num_inference_steps": ("--infer_steps",),
    "--image_input": ("--image_path",),
    "--ema_decay": ("--beta",),
    "--input_lora": ("--lora_weight",),
}
"""The first one that a tool has is meant."""

ELSEWHERE = {"--train_batch_size": "batch_size in the [general] or [[datasets]] part of the dataset file"}


def answer(flag: str, known: Collection[str]) -> str:
    """What to say of a former flag where a tool has the flags `known`; nothing where it has no successor there."""
    today = next((name for name in FORMER.get(flag, ()) if name in known), None) or ELSEWHERE.get(flag)
    return f"; it is {today} today" if today else ""
