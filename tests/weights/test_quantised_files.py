"""Every layout of fp8 weight files gives weight * scale; what is quantised in another way is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.memory.fp8 import Fp8Linear, hold_in_fp8
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.safetensors_file import save_atomic
from torch import Tensor, nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 4)
        self.second = nn.Linear(4, 2)


def _toy() -> Toy:
    with torch.device("meta"):
        return Toy()


def _json(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


# what a file holds next to first.weight; the scale it means, as something that multiplies [4, 128]
LAYOUTS: dict[str, tuple[torch.dtype, dict[str, Tensor], Tensor]] = {
    "plain": (E4M3, {}, torch.tensor(1.0)),
    "plain e5m2": (E5M2, {}, torch.tensor(1.0)),
    "fp8_scaled": (
        E4M3,
        {"scaled_fp8": torch.ones(2).to(E4M3), "first.scale_weight": torch.tensor(0.25), "first.scale_input": torch.tensor(3.0)},
        torch.tensor(0.25),
    ),
    "fp8_scaled with an empty marker": (
        E4M3,
        {"scaled_fp8": torch.ones(0).to(E4M3), "first.scale_weight": torch.ones(1) * 0.3},
        torch.tensor(0.3),
    ),
    "comfy_quant": (
        E4M3,
        {
            "first.comfy_quant": _json(json.dumps({"format": "float8_e4m3fn"})),
            "first.weight_scale": torch.tensor(0.7),
            "first.input_scale": torch.tensor(3.0),
        },
        torch.tensor(0.7),
    ),
    "musubi-tuner, rows": (E4M3, {"first.scale_weight": torch.arange(1.0, 5.0)[:, None].bfloat16()}, torch.arange(1.0, 5.0)[:, None]),
    "musubi-tuner, blocks": (
        E4M3,
        {"first.scale_weight": torch.arange(1.0, 9.0).view(4, 2, 1).bfloat16()},
        torch.arange(1.0, 9.0).view(4, 2).repeat_interleave(64, dim=1),
    ),
}


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(4, 128, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", ["one file", "two files", "pickled", "prefixed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_means_weight_times_scale(tmp_path: Path, weight: Tensor, layout: str, form: str) -> None:
    dtype, extra, scale = LAYOUTS[layout]
    state = {**Toy().state_dict(), **extra, "first.weight": weight.to(dtype)}
    path = _write(state, tmp_path, form)
    expected = weight.to(dtype).float() * scale

    plain = _toy()
    load_into(plain, open_weights(path, ("model.",)), dtype=torch.float32)
    torch.testing.assert_close(plain.first.weight, expected)
    torch.testing.assert_close(plain.second.weight, state["second.weight"])

    kept = _toy()
    hold_in_fp8(kept, ["first"], "block")
    load_into(kept, open_weights(path, ("model.",)), dtype=torch.float32)
    assert isinstance(kept.first, Fp8Linear)
    assert torch.equal(kept.first.weight.view(torch.uint8), weight.to(dtype).view(torch.uint8))  # not quantised twice
    torch.testing.assert_close(kept.first.dense(torch.float32), expected)


def test_hunyuan_video_s_scales_lie_beside(tmp_path: Path, weight: Tensor) -> None:
    torch.save({"module": {**Toy().state_dict(), "first.weight": weight.to(E4M3)}}, tmp_path / "states_fp8.pt")
    torch.save({"first": torch.tensor(0.5), "second": torch.tensor(2.0)}, tmp_path / "states_fp8_map.pt")
    model = _toy()
    load_into(model, open_weights(tmp_path / "states_fp8.pt"), dtype=torch.float32)
    torch.testing.assert_close(model.first.weight, weight.to(E4M3).float() * 0.5)


def test_a_changed_weight_is_quantised_anew_and_others_keep_their_bits(tmp_path: Path, weight: Tensor) -> None:
    dtype, extra, scale = LAYOUTS["fp8_scaled"]
    state = {**Toy().state_dict(), **extra, "first.weight": weight.to(dtype), "second.weight": torch.ones(2, 4).to(dtype)}
    save_atomic(state, tmp_path / "fp8.safetensors")
    seen: dict[str, torch.dtype] = {}

    def add_one(name: str, tensor: Tensor) -> Tensor:
        seen[name] = tensor.dtype
        return tensor + 1 if name == "first.weight" else tensor

    model = _toy()
    hold_in_fp8(model, ["first", "second"], "block")
    load_into(model, open_weights(tmp_path / "fp8.safetensors"), dtype=torch.bfloat16, transform=add_one)
    assert seen["first.weight"] == torch.float32
    expected = weight.to(dtype).float() * scale + 1
    assert isinstance(model.first, Fp8Linear)
    assert isinstance(model.second, Fp8Linear)
    torch.testing.assert_close(model.first.dense(torch.float32), expected, rtol=0.07, atol=1e-3)
    assert model.second.scale_weight is None
    assert torch.equal(model.second.dense(torch.float32), torch.ones(2, 4))


@pytest.mark.parametrize(
    "extra",
    [
        {"first.weight_scale": torch.ones(4, 4, dtype=torch.uint8), "first.weight": torch.ones(4, 128).to(E4M3)},  # mxfp8
        {"first.weight_scale": torch.ones(()), "first.weight": torch.ones(4, 128, dtype=torch.int8)},  # int8
        {"first.weight_scale_2": torch.ones(()), "first.weight": torch.ones(4, 64, dtype=torch.uint8)},  # nvfp4
        {"first.weight.absmax": torch.ones(8)},  # bitsandbytes
        {"first.qweight": torch.ones(4, 4, dtype=torch.int32)},  # GPTQ
    ],
)
def test_other_formats_are_rejected_by_name(tmp_path: Path, extra: dict[str, Tensor]) -> None:
    save_atomic({**Toy().state_dict(), **extra}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors holds weights quantised in a way that is not read"):
        open_weights(tmp_path / "other.safetensors")


def test_a_scale_that_does_not_fit_is_rejected(tmp_path: Path) -> None:
    for scale in (torch.ones(3), torch.ones(4, 5, 1), torch.ones(3, 1)):
        save_atomic({**Toy().state_dict(), "first.scale_weight": scale}, tmp_path / "odd.safetensors")
        with pytest.raises(UserError, match=r"first\.scale_weight .* does not fit first\.weight"):
            open_weights(tmp_path / "odd.safetensors")


def _write(state: dict[str, Tensor], folder: Path, form: str) -> Path:
    if form == "pickled":
        torch.save(state, folder / "model.pth")
        return folder / "model.pth"
    if form == "prefixed":
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    if form != "two files":
        save_atomic(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    # the weight and its scale in different parts
    for number, names in enumerate(([n for n in state if n.endswith(".weight")], [n for n in state if not n.endswith(".weight")]), start=1):
        save_atomic({name: state[name] for name in names}, folder / f"model-{number:05d}-of-00002.safetensors")
    return folder / "model-00001-of-00002.safetensors"
