"""Headers without torch, reading, atomic saving, and what damaged files say."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic, split_files

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool", "float8_e4m3fn"]


@settings(max_examples=30, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    ),
    metadata=st.dictionaries(st.text(st.characters(blacklist_categories=("Cs",)), max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_is_saved_is_read_back(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("round") / "a file ü 日本.safetensors"
    made = {name: torch.randint(0, 2, shape).to(getattr(torch, dtype)) for name, (dtype, shape) in tensors.items()}
    save_atomic(made, path, metadata)
    again = load(path)
    assert again.keys() == made.keys()
    for name, tensor in made.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].double(), tensor.double())
    header = read_header(path)
    assert header.metadata == metadata
    assert {name: info.shape for name, info in header.tensors.items()} == {name: tuple(t.shape) for name, t in made.items()}


def test_files_are_what_the_safetensors_library_writes_and_equal_each_time(tmp_path):
    tensors = {"b": torch.randn(3, 5).t(), "ü": torch.ones(7, dtype=torch.bfloat16), "a": torch.tensor(2.0), "n": torch.empty(0, 4)}
    save_atomic(tensors, tmp_path / "ours", {"z": "1", "a": '日本 \\ "\n', "m": "3"})
    theirs = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"only": "one"})
    save_atomic(tensors, tmp_path / "one", {"only": "one"})
    assert (tmp_path / "one").read_bytes() == theirs
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"z": "1", "a": '日本 \\ "\n', "m": "3"} and torch.equal(file.get_tensor("b"), tensors["b"])
    save_atomic(tensors, tmp_path / "again", {"z": "1", "a": '日本 \\ "\n', "m": "3"})
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ours").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind are POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_a_saved_file_is_the_umasks_choice(tmp_path, mask, mode):
    former = os.umask(mask)
    try:
        save_atomic({"a": torch.ones(2)}, tmp_path / "lora.safetensors")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "lora.safetensors").stat().st_mode) == mode


def test_the_longest_name_a_file_system_takes_can_be_saved(tmp_path):
    path = tmp_path / f"{'猫' * 81}.safetensors"  # 255 bytes
    save_atomic({"a": torch.ones(2)}, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_text_that_is_not_unicode_does_not_cost_the_file(tmp_path):
    save_atomic({"a": torch.ones(2)}, tmp_path / "lora.safetensors", {"path": os.fsdecode(b"caf\xe9")})
    assert read_header(tmp_path / "lora.safetensors").metadata == {"path": "caf?"}


def test_reading_a_header_imports_no_torch(tmp_path):
    save_atomic({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    code = (
        "import sys; from musubi_backend.weights.recognise import recognise;"
        f"recognise({str(tmp_path / 'a.safetensors')!r}); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": _backend()}, check=False).returncode == 0


def _backend() -> str:
    import musubi_backend

    return str(Path(musubi_backend.__file__).parent.parent)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_rejected(tmp_path, keep):
    path = tmp_path / "whole.safetensors"
    save_atomic({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"whole.safetensors is (not a safetensors file|truncated)"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"PK\x03\x04" + bytes(100), "PyTorch pickle"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"", "empty"),
        (struct.pack("<Q", 10) + b"not json!!", "header is damaged"),
        (struct.pack("<Q", 2) + b"[]", "header is damaged"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path)


def test_a_header_that_lies_about_sizes_is_rejected(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match="damaged: tensor a"):
        read_header(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="folder"):
        read_header(tmp_path)


def test_all_parts_of_a_split_model_are_found(tmp_path):
    parts = [tmp_path / f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    for part in parts[:2]:
        save_atomic({"a": torch.ones(1)}, part)
    with pytest.raises(UserError, match=r"model-00003-of-00003.safetensors is missing"):
        split_files(parts[0])
    save_atomic({"a": torch.ones(1)}, parts[2])
    assert split_files(parts[1]) == parts
    assert split_files(tmp_path / "single.safetensors") == [tmp_path / "single.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_atomic({"a": torch.ones(3)}, path, {"step": "1"})
    with pytest.raises(Exception, match="meta"):
        save_atomic({"a": torch.ones(3), "b": torch.empty(2, device="meta")}, path)
    assert read_header(path).metadata == {"step": "1"}
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]
