"""500 damaged files of each format: read, or rejected with a UserError; nothing else comes out. The seed is fixed."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged import HOSTILE, ODD, damaged
from musubi_backend.dataset.config import read_file
from musubi_backend.dataset.jsonl import read_records
from musubi_backend.documents import parse_json, parse_toml
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import read_header

SEEDS: dict[str, bytes] = {
    "json": json.dumps({"general": {"resolution": [64, 64]}, "datasets": [{"image_directory": "x", "num_repeats": 1}]}).encode(),
    "toml": b"[general]\nresolution = [64, 64]\n[[datasets]]\nimage_directory = 'x'\n",
    "jsonl": b'{"image_path": "x.png", "caption": "a"}\n{"image_path": "y.png", "caption": "b"}\n',
}


@pytest.mark.parametrize("kind", SEEDS)
def test_files_of_people(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"file.{kind}"
    read: Callable[[Path], Any] = (lambda file: read_records(file, "image")) if kind == "jsonl" else read_file
    read_whole, refused = 0, 0
    for content in damaged(SEEDS[kind]):
        path.write_bytes(content)
        try:
            read(path)
            read_whole += 1
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        except (OSError, ValueError):
            assert kind == "jsonl", "its reader says so"
            refused += 1
    assert refused > 100 and read_whole > 5


def test_headers(tmp_path: Path) -> None:
    source, path = random.Random(13), tmp_path / "x.safetensors"
    for _ in range(500):
        entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        entry[source.choice(list(entry))] = source.choice([*ODD, [source.choice(ODD), source.choice(ODD)]])
        text = json.dumps({"a": source.choice([entry, entry, *ODD]), "__metadata__": source.choice(ODD)}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        try:
            header = read_header(path)
        except UserError:
            continue
        assert all(isinstance(side, int) and side >= 0 for info in header.tensors.values() for side in info.shape)
    for text in HOSTILE:
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        with pytest.raises(UserError):
            assert not read_header(path).tensors


def test_what_people_may_not_write_is_said() -> None:
    for text, said in (("[" * 10**5, "deep"), ("1" * 5000, "digits"), ("[1]", "is needed"), (r'{"a": "\ud83d"}', "half a character")):
        with pytest.raises(ValueError, match=said):
            parse_json(text, dict)
    assert parse_json(r'{"a": "\ud83d\ude00"}', dict) == {"a": "😀"}
    with pytest.raises(ValueError, match=r"deep|TOML"):
        parse_toml("a = " + "[" * 10**5)
