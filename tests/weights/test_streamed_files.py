"""Files that are written tensor by tensor: what they hold, their hashes, and what is left when it goes wrong."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from musubi_backend import job
from musubi_backend.errors import StopRequested, UserError
from musubi_backend.weights.safetensors_file import layout_of, load, read_header
from musubi_backend.weights.streamed_file import Hashes, Target, hashes, refuse_inputs, write

SPECS = {"b": ("U8", (3,)), "a": ("F32", (2, 1)), "c": ("F32", (1,))}
DATA = {"a": struct.pack("<2f", 1, 2), "b": b"\7\10\11", "c": struct.pack("<f", 3)}


def made(name: str, files: int = 1) -> list[memoryview]:
    return [memoryview(DATA[name])] * files


@pytest.mark.parametrize("threads", [1, 3])
def test_each_file_holds_its_own_tensors_and_metadata(tmp_path: Path, threads: int) -> None:
    one, other = Target(tmp_path / "one.safetensors", {"x": "1"}), Target(tmp_path / "other.safetensors", {"x": "2"}, hashed=True)
    doubled = {name: bytes(byte ^ 1 for byte in data) for name, data in DATA.items()}
    write([one, other], SPECS, lambda name: [memoryview(DATA[name]), memoryview(doubled[name])], threads=threads)
    assert {name: tensor.flatten().tolist() for name, tensor in load(one.path).items()} == {"a": [1, 2], "c": [3], "b": [7, 8, 9]}
    assert load(other.path)["b"].tolist() == [6, 9, 8] and load(one.path)["a"].shape == (2, 1)
    assert read_header(one.path).metadata == {"x": "1"}
    said = read_header(other.path).metadata
    assert said["x"] == "2" and said["sshs_model_hash"] == hashlib.sha256(doubled["a"] + doubled["c"] + doubled["b"]).hexdigest()


def test_hashes_see_the_file_as_if_only_training_metadata_were_in_it() -> None:
    data, specs = bytes(range(256)) * 5000, {"a": ("U8", (256 * 5000,))}
    found = []
    for metadata in ({"ss_steps": "1"}, {"ss_steps": "1", "other": "longer than that"}, {"ss_steps": "1", "ss_tag": "longer too"}):
        made = hashes(specs, metadata)
        made.update(memoryview(data))
        found.append(made.metadata())
    start = len(layout_of(specs, {"ss_steps": "1"})[1])
    assert found[0]["sshs_legacy_hash"] == hashlib.sha256((bytes(start) + data)[0x100000:0x110000]).hexdigest()[:8]
    assert found[0] == found[1] and found[0]["sshs_model_hash"] == found[2]["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert found[0]["sshs_legacy_hash"] != found[2]["sshs_legacy_hash"], "their header is longer"


@pytest.mark.parametrize("start", [0, 8, 0x100000 - 3, 0x100000, 0x10FFFF, 0x110000])
@pytest.mark.parametrize("piece", [1 << 16, 100_000])
def test_the_old_hash_is_of_64_kb_at_1_mib(start: int, piece: int) -> None:
    data = bytes(number * number >> 3 & 255 for number in range(300_000)) * 4
    made_of = Hashes(start)
    for begin in range(0, len(data), piece):
        made_of.update(memoryview(data)[begin : begin + piece])
    file = bytes(start) + data
    assert made_of.metadata()["sshs_legacy_hash"] == hashlib.sha256(file[max(start, 0x100000) : 0x110000]).hexdigest()[:8]
    assert made_of.metadata()["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_bytes_of_another_size_are_a_mistake_and_nothing_appears(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(b"before")
    targets = [Target(tmp_path / name) for name in ("one.safetensors", "other.safetensors")]
    with pytest.raises(ValueError, match=r"b: 2 bytes were made for U8 \[3\]"):
        write(targets, SPECS, lambda name: [memoryview(DATA[name]), memoryview(b"12" if name == "b" else DATA[name])])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("one.safetensors", b"before")]


def test_a_stop_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(job, "stop_requested", lambda: len(asked) > 1)
    with pytest.raises(StopRequested, match="nothing was written"):
        write([Target(tmp_path / "one.safetensors")], SPECS, lambda name: asked.append(name) or made(name), threads=1)
    assert not [*tmp_path.iterdir()]


def test_an_output_that_is_an_input_is_rejected_by_any_name(tmp_path: Path) -> None:
    source, link, free = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    source.write_bytes(b"weights")
    link.hardlink_to(source)
    refuse_inputs([free], [source, tmp_path / "missing"], "--output")
    for output in (source, link, tmp_path / "x" / ".." / "a.safetensors"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"--output: .* is the input .*a\.safetensors; inputs are never changed"):
            refuse_inputs([free, output], [free.with_name("d"), source], "--output")
    assert source.read_bytes() == b"weights" and not free.exists()
