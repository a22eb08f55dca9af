"""A finished file is never lost: one that cannot get its name stays where it was made, and the message says where."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest


def full_disk(made: Path, target: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(target))


def test_a_file_that_cannot_be_placed_stays_and_is_named(part: Any, tmp_path: Path) -> None:
    publishing = part("nodes.publishing")
    wanted = tmp_path / "models" / "merged.safetensors"
    told = r"merged\.safetensors could not be written: there is no space left"
    with pytest.raises(publishing.NotPlaced, match=told) as caught, publishing.made_beside(wanted) as new:
        new.write_bytes(b"28 GB")
        publishing.place(new, wanted, full_disk)
    assert str(new) in str(caught.value)
    assert new.read_bytes() == b"28 GB" and not wanted.exists()


def test_what_a_failed_tool_left_is_removed(part: Any, tmp_path: Path) -> None:
    publishing = part("nodes.publishing")
    with pytest.raises(ValueError), publishing.made_beside(tmp_path / "merged.safetensors") as new:
        new.write_bytes(b"half")
        raise ValueError
    with publishing.made_beside(tmp_path / "merged.safetensors") as new:
        new.write_bytes(b"whole")
        path, said = publishing.place(new, tmp_path / "merged.safetensors")
    assert (path.read_bytes(), said) == (b"whole", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["merged.safetensors"]
