"""Scales of fp8 weights, sizes in metadata and tensors of PyTorch files: compared with what they go into before anything computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.errors import UserError
from musubi_backend.weights import quantised
from musubi_backend.weights.loader import open_weights, read_pickled
from musubi_backend.weights.safetensors_file import TensorInfo, save_atomic


@pytest.mark.parametrize(
    ("weight", "scale", "fits"),
    [
        ((8, 64), (), True), ((8, 64), (1,), True), ((8, 64), (8, 1), True), ((8, 64), (8, 4, 1), True), ((8, 2, 1, 2, 2), (1,), True),
        ((8, 64), (8,), False), ((8, 64), (4, 1), False), ((8, 64), (8, 3, 1), False), ((8, 64), (8, 0, 1), False), ((8, 64), (0,), False),
        ((8, 64), (8, 4, 2), False), ((8, 64), (8, 64), False), ((8, 64), (1, 64), False), ((8, 2, 1, 2, 2), (8, 1), False),
        ((), (8, 1), False), ((8,), (8, 1), False), ((), (), True),
    ],
)  # fmt: skip
def test_scales_fit_their_weight_or_are_rejected(weight: tuple[int, ...], scale: tuple[int, ...], fits: bool) -> None:
    tensors = {"a.weight": TensorInfo("F8_E4M3", weight, 0, 0), "a.scale_weight": TensorInfo("F32", scale, 0, 0)}
    if fits:
        assert quantised.sort(tensors, Path("x")).scales == {"a.weight": "a.scale_weight"}
        return
    with pytest.raises(UserError, match=r"does not fit a\.weight"):
        quantised.sort(tensors, Path("x"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_scale_that_is_no_number_is_named(value: float, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    tensors = {"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn), "a.scale_weight": torch.tensor([[1.0], [value]])}
    if ending == ".pth":
        torch.save(tensors, path)
    else:
        save_atomic(tensors, path)
    with pytest.raises(UserError, match=r"scale of a\.weight holds numbers that are not finite"):
        open_weights(path).scale("a.weight")


def test_sparse_tensors_of_pytorch_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(2, 2), "b": torch.eye(3).to_sparse()}, path)
    with pytest.raises(UserError, match="b is stored as a sparse"):
        read_pickled(path)


GOOD: dict[str, Any] = {"dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2}


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 10**9}, {"num_layers": 0}, {"num_heads": 0}, {"dim": "x"}, {"dim": 1.5}, {"dim": True}, {"dim": -1}, {"dim": None},
     {"dim": 10**12}, {"eps": "small"}, {"eps": 1e999}, {"image_dim": [1]}, {"text_len": {}}, {"unknown": 1}],
)  # fmt: skip
def test_sizes_that_no_model_has_are_rejected(change: dict[str, Any]) -> None:
    assert WanGeometry.from_json(json.dumps(GOOD)).image_dim is None
    with pytest.raises(UserError, match="musubi_geometry"):
        WanGeometry.from_json(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("widths", [[1, 2], 3, ["a", "b", "c"], [1, 2, -3], [[1], 2, 3]])
def test_lists_of_sizes_are_whole_numbers(widths: Any) -> None:
    good = {"dim": 32, "num_heads": 2, "mlp_dim": 64, "num_double_layers": 1, "num_single_layers": 1}
    assert FramePackGeometry.from_json(json.dumps(good)).rope_widths == (16, 56, 56)
    with pytest.raises(UserError, match="rope_widths"):
        FramePackGeometry.from_json(json.dumps({**good, "rope_widths": widths}))
