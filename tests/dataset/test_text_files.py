"""Every reader of people's text files takes the same encodings; what none of them can be is reported, never guessed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from musubi_backend.dataset.config import read_file
from musubi_backend.texts import read_text
from musubi_backend.tools.caption_files import TextFiles, read_lines

TEXT = "a 猫\r\nand more"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_say_the_encoding_and_are_no_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == "a 猫\nand more"
    (tmp_path / "a.toml").write_bytes('name = "猫"'.encode(encoding))
    (tmp_path / "a.json").write_bytes(json.dumps({"name": "猫"}, ensure_ascii=False).encode(encoding))
    assert read_file(tmp_path / "a.toml") == read_file(tmp_path / "a.json") == {"name": "猫"}
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"image_path": "猫.png", "caption": "x"}, ensure_ascii=False).encode(encoding))
    assert [record["caption"] for record in read_lines(tmp_path / "a.jsonl", "image_path").values()] == ["x"]


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfea\x00b"])
def test_other_bytes_are_rejected_with_their_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"not UTF-\d+ text \(byte \d"):
        read_text(tmp_path / "a.txt")
    assert TextFiles(".txt").has(tmp_path / "a.png")  # it is not overwritten


def test_a_mark_alone_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\n")
    assert not TextFiles(".txt").has(tmp_path / "a.png")
