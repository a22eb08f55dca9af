"""Headers whose numbers do not fit, files that shrink while they are read, and what kinds of files lack."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.weights.quantised import sort
from musubi_backend.weights.recognise import kind_of
from musubi_backend.weights.safetensors_file import TensorInfo, iterate, layout_of, load, read_header, read_tensor, save_atomic


def write(path: Path, entries: dict[str, object], data: bytes) -> Path:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("offsets", "shape", "words"),
    [
        ([-8, 0], [2], "header is damaged"),
        ([8, 0], [2], "does not fit its bytes"),
        ([0, 8], [3], "does not fit its bytes"),
        ([0, 8], [-2], "header is damaged"),
        ([0, 12], [3], "is truncated"),
        ([4, 12], [2], "is truncated"),
        ([0, 4], [1], "has 4 bytes more than its header says"),
        ([0], [2], "header is damaged"),
        ([0, "x"], [2], "header is damaged"),
    ],
)
def test_offsets_that_do_not_fit_are_rejected(tmp_path: Path, offsets: list[object], shape: list[int], words: str) -> None:
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(8))
    with pytest.raises(UserError, match=words):
        read_header(path)


def test_a_header_that_just_fits_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, struct.pack("<2f", 1, 2))
    assert load(path)["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_a_file_that_is_cut_while_it_is_read_is_rejected(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "x.safetensors"
    save_atomic({"a": torch.ones(2)}, path)
    info = read_header(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-lost])
    with path.open("rb") as file, pytest.raises(UserError, match=r"x.safetensors ended while tensor a was read"):
        read_tensor(file, "a", info, path)


def test_tensors_come_in_the_order_they_are_stored(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [1]}
    path = write(tmp_path / "x.safetensors", {"a": {**entry, "data_offsets": [1, 2]}, "b": {**entry, "data_offsets": [0, 1]}}, b"\1\2")
    assert [(name, int(tensor)) for name, tensor in iterate(path)] == [("b", 1), ("a", 2)]


def test_wide_numbers_are_stored_first_so_that_all_are_aligned() -> None:
    assert layout_of({"a": ("U8", (1,)), "b": ("F64", (1,)), "c": ("BF16", (1,)), "d": ("F32", (1,))})[0] == ["b", "d", "c", "a"]


def info(dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(dtype, shape, 0, 0)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (4, 2, 1), (4, 8, 1)])
def test_scales_that_fit_are_taken(shape: tuple[int, ...]) -> None:
    sorted_ = sort({"a.weight": info("F8_E4M3", 4, 8), "a.scale_weight": info("F32", *shape)}, Path("x"))
    assert sorted_.scales == {"a.weight": "a.scale_weight"} and set(sorted_.tensors) == {"a.weight"}


@pytest.mark.parametrize("shape", [(4,), (8, 1), (1, 8), (4, 2), (4, 3, 1), (8, 2, 1), (4, 2, 2)])
def test_scales_that_fit_nothing_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"does not fit a\.weight"):
        sort({"a.weight": info("F8_E4M3", 4, 8), "a.scale_weight": info("F32", *shape)}, Path("x"))


@pytest.mark.parametrize("marker", ["scaled_fp8", "a.scale_input", "a.input_scale", "a.comfy_quant"])
def test_markers_are_no_tensors_of_the_model(marker: str) -> None:
    assert set(sort({"a.weight": info("F8_E4M3", 4, 8), marker: info("F32")}, Path("x")).tensors) == {"a.weight"}


def test_a_scale_without_its_weight_is_a_tensor_like_others() -> None:
    sorted_ = sort({"a.scale_weight": info("F32"), "b.weight": info("F32", 4)}, Path("x"))
    assert sorted_.scales == {} and set(sorted_.tensors) == {"a.scale_weight", "b.weight"}


@pytest.mark.parametrize("lost", [1, 7])
def test_a_header_that_is_cut_by_a_few_bytes_is_truncated_not_damaged(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, b"")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=f"is truncated: {size - lost} bytes of {size}"):
        read_header(path)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3"])
def test_other_small_numbers_are_rejected(dtype: str) -> None:
    with pytest.raises(UserError, match="quantised in a way that is not read"):
        sort({"a.weight": info(dtype, 4, 8)}, Path("x"))


def test_names_of_a_kind_with_what_it_lacks_are_another_kind() -> None:
    from musubi_backend.weights.recognise import rules

    for rule in rules():
        names = {name: info("F32", 8, 8, 1, 1, 1) for name in rule.has}
        found = kind_of({**names, **{name: info("F32", 8, 8) for name in rule.lacks[:1]}}) if rule.lacks else None
        assert found is None or found.id != rule.id or found.name != rule.name, rule


def test_only_what_may_be_missing_may_be_missing(tmp_path: Path) -> None:
    from musubi_backend.weights.loader import load_into, open_weights

    save_atomic({"weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    weights, layer = open_weights(tmp_path / "x.safetensors"), torch.nn.Linear(2, 2)
    load_into(layer, weights, optional=["bias"])
    assert layer.weight.tolist() == [[1, 1], [1, 1]] and not layer.weight.requires_grad
    with pytest.raises(UserError, match="1 missing: bias"):
        load_into(layer, weights)
