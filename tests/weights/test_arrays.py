"""Tensors as numpy arrays: roundings worked out by hand, and files that cannot be read so."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.weights.arrays import TensorFile, from_float32, is_float, rounded, to_float32
from musubi_backend.weights.safetensors_file import save_atomic

STEP = 2.0**-7  # from 1 to the next number of bfloat16


@pytest.mark.parametrize(
    ("value", "bfloat16"),
    [
        (1.0, 1.0),
        (1 + STEP / 2, 1.0),  # half way: to the even one
        (1 + STEP * 3 / 2, 1 + 2 * STEP),
        (1 + STEP / 2 + 2.0**-20, 1 + STEP),
        (1 + STEP / 2 - 2.0**-20, 1.0),
        (-1 - STEP * 3 / 2, -1 - 2 * STEP),
        (3.4e38, float("inf")),
        (-float("inf"), -float("inf")),
        (2.0**-133, 2.0**-133),  # the least that is not 0
        (0.0, 0.0),
    ],
)
def test_bfloat16_rounds_to_the_nearest_and_half_way_to_even(value: float, bfloat16: float) -> None:
    assert rounded(value, "BF16") == bfloat16 == torch.tensor(value).bfloat16().item()
    array = np.array([value, 1.0], np.float32)
    assert to_float32(from_float32(array, "BF16"), "BF16").tolist() == [bfloat16, 1.0]


def test_what_is_no_number_stays_none() -> None:
    array = np.array([1.0, np.nan, -np.inf], np.float32)
    array.view(np.uint32)[1] = 0x7FFFFFFF  # would become -0 by rounding
    bits = from_float32(array, "BF16")
    assert bits.tolist() == [0x3F80, 0x7FC0, 0xFF80]


@pytest.mark.parametrize(
    ("value", "dtype", "kept"),
    [
        (1e6, "F16", float("inf")),
        (0.1, "F64", 0.1),
        (0.1, "F32", 0.10000000149011612),
        (0.1, "F16", 0.0999755859375),
        (300.0, "F8_E4M3", 288.0),
        (0.3, "F8_E5M2", 0.3125),
        (7.5, "I64", 7.5),
    ],
)
def test_one_number_as_a_dtype_holds_it(value: float, dtype: str, kept: float) -> None:
    assert rounded(value, dtype) == kept


def test_which_names_are_floating_point() -> None:
    assert [name for name in ("F64", "F32", "BF16", "F16", "F8_E4M3", "I64", "U8", "BOOL") if not is_float(name)] == ["I64", "U8", "BOOL"]


def test_tensors_come_as_they_are_stored(tmp_path: Path) -> None:
    stored = {
        "a.alpha": torch.tensor(4.0, dtype=torch.bfloat16),
        "b.alpha": torch.tensor([8], dtype=torch.int64),
        "c": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
        "d": torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn),
        "e": torch.empty(0, 3),
        "f": torch.tensor([-3, 3], dtype=torch.int8),
    }
    save_atomic(stored, tmp_path / "x.safetensors")
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert (file.number("a.alpha"), file.number("b.alpha")) == (4.0, 8.0)
        assert file.float32("c").tolist() == [[1.5, -2.0]] and file.array("c").dtype == np.float16
        assert file.array("d").dtype == np.uint8 and file.float32("d").tolist() == [0.5, 448.0]
        assert file.array("e").shape == (0, 3) and file.array("f").tolist() == [-3, 3]
        with pytest.raises(UserError, match=r"c is \[1, 2\]; one number is expected"):
            file.number("c")
    with pytest.raises(ValueError, match="closed file"):
        file.array("c")


def test_a_file_that_shrinks_or_holds_other_dtypes_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_atomic({"a": torch.ones(4)}, path)
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"x\.safetensors ended while tensor a was read"):
            file.array("a")
    text = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    with pytest.raises(UserError, match=r"tensor a has dtype F8_E8M0, which this tool cannot read"):
        TensorFile(path)
