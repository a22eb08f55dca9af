"""Messages, and how their widgets are called in other languages: by the nodes and by the page alike."""

from __future__ import annotations

from typing import NamedTuple


class Called(NamedTuple):
    """english: what is said; ja, zh: what is shown of it. A part that begins with "not " must not be there."""

    english: str
    ja: tuple[str, ...]
    zh: tuple[str, ...]


CALLED = (
    Called(
        "fp8_base works only with mixed_precision: turn that on too",
        ("「fp8 (学習)」（fp8_base）は「混合精度」（mixed_precision）と一緒",),
        ("“fp8（训练）”（fp8_base）需配合“混合精度”（mixed_precision）使用",),
    ),
    Called("failed: path is empty: enter a path", ("失敗: 「パス」（path）が空です",), ("“路径”（path）为空",)),
    Called(
        "that would be 9 videos, and 8 is the most: lower at_most, or fewer strengths or prompts\nat_most: lower at_most",
        ("「最大数」（at_most）を下げる", "not 「最大数」（at_most）:"),
        ("请降低“最多数量”（at_most）", "not “最多数量”（at_most）:"),
    ),
    Called(
        "first and last leave 1 of 5 checkpoints; two or more are averaged. Save them more often while training (save_every_n_epochs), "
        "or take a wider range",
        ("「開始位置」（first）と「終了位置」（last）で", "(「保存間隔（エポック）」 save_every_n_epochs)"),
        ("“起点”（first）与“终点”（last）", "(“保存间隔（轮）” save_every_n_epochs)"),
    ),
    Called("/d/set.toml: batch_size must be 1 or more", ("set.toml: batch_size は 1 以上",), ("set.toml：batch_size 必须",)),
    Called("/batch_size/learning_rate.json holds no tensors", ("/batch_size/learning_rate.json に",), ("/batch_size/learning_rate.json ",)),
    Called(
        "--blocks_to_swap 50: at most 38 of the blocks of this model can be offloaded to system RAM",
        ("--blocks_to_swap 50: ",),
        ("--blocks_to_swap 50：",),
    ),
    Called("blocks_to_swap: nobody has translated this of blocks_to_swap", ("blocks_to_swap: nobody",), ("blocks_to_swap: nobody",)),
    Called("finished · loss 0.5 · 3 steps · learning_rate", ("完了 · loss 0.5 · 3 ステップ · ",), ("已完成 · loss 0.5 · 3 步 · ",)),
)  # fmt: skip


def wrong(one: Called, language: str, shown: str) -> list[str]:
    """The parts that are not as they should be; also a mark that was left."""
    parts = [*getattr(one, language), "not \ue000"]
    return [part for part in parts if (part.removeprefix("not ") in shown) == part.startswith("not ")]
