"""A caption that is longer than its encoder reads has a line with the item's name; one that just fits has none."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.caching import text
from musubi_backend.encoders.clip_text import ClipText
from musubi_backend.encoders.llama import LlamaEncoder
from musubi_backend.encoders.token_files import TokenIds
from musubi_backend.encoders.tokenizer import Tokenizer
from musubi_backend.encoders.umt5 import UMT5
from PIL import Image


def words(caption: str, limit: int) -> list[int]:
    """One id per word and one for the end."""
    return [*range(len(caption.split())), 1][:limit]


def words_as(count: int) -> str:
    return " ".join(["word"] * count)


def test_each_encoder_knows_its_limit() -> None:
    ids = TokenIds(words, lambda _: None, "here", 1000)
    device = torch.device("cpu")
    umt5 = UMT5(None, Tokenizer(words, "here", 1000), device, torch.float32)
    clip, llama = ClipText(None, ids, device, torch.float32), LlamaEncoder(None, ids, device, torch.float32)
    assert [bool(line) for line in umt5.cut([words_as(511), words_as(512), ""])] == [False, True, False]
    assert [bool(line) for line in clip.cut([words_as(76), words_as(77)])] == [False, True]
    # the caption joins the last word of the instruction, and the end of the turn that of the caption
    assert [bool(line) for line in llama.cut([words_as(200), words_as(258)])] == [False, True]
    assert "512" in umt5.cut([words_as(600)])[0] and "77" in clip.cut([words_as(99)])[0] and "256" in llama.cut([words_as(300)])[0]


def test_the_caching_verb_names_the_item(dataset_toml: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    for name, count in (("short", 5), ("long", 600)):
        Image.new("RGB", (64, 64)).save(tmp_path / "in" / f"{name}.png")
        (tmp_path / "in" / f"{name}.txt").write_text(words_as(count))
    config = dataset_toml(tmp_path / "dataset.toml", "image", tmp_path / "in", tmp_path / "cache", resolution=[64, 64])
    umt5 = UMT5(None, Tokenizer(words, "here", 1000), torch.device("cpu"), torch.float32)
    encoder = SimpleNamespace(cut=umt5.cut, encode=lambda captions: [{"varlen_t5": torch.zeros(3, 8)} for _ in captions])
    architecture = SimpleNamespace(card=CARD, text_encoder=lambda device: encoder, configured=lambda given: architecture)
    args = Namespace(dataset_config=str(config), batch_size=None, skip_existing=False, keep_cache=False, device="cpu", on_bad_items="stop")
    with caplog.at_level(logging.WARNING):
        text.run(args, architecture)  # type: ignore[arg-type]
    (line,) = [line for line in caplog.messages if "too long" in line]
    assert "512 tokens" in line and "long.png" in line and "short.png" not in line
