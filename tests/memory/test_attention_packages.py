"""Attention by other packages: asked for by name, given the layout they document, rejected where they cannot work.

The packages need a GPU; here stand-ins with their documented signatures compute the same with PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from musubi_backend.architectures.loading import attention_of
from musubi_backend.architectures.settings import AttentionSettings
from musubi_backend.errors import UserError
from musubi_backend.layers import attention as attention_module
from musubi_backend.layers.attention import attention, check_mode
from torch import Tensor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All [B, S, H, D]."""
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def sageattn(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "HND", is_causal: bool = False, **_: Any) -> Tensor:
    assert not is_causal
    assert tensor_layout == "NHD"
    return _reference(q, k, v)


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, causal: bool = False) -> Tensor:
    return _reference(q, k, v)


def flash3(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    return _reference(q, k, v), q.new_zeros(1)


PACKAGES = {
    "sage": ("sageattention", "sageattn", sageattn),
    "flash": ("flash_attn", "flash_attn_func", flash_attn_func),
    "flash3": ("flash_attn_interface", "flash_attn_func", flash3),
    "xformers": ("xformers.ops", "memory_efficient_attention", lambda q, k, v: _reference(q, k, v)),
}


@pytest.fixture(autouse=True)
def kernels_found_afresh() -> Iterator[None]:
    attention_module._kernel.cache_clear()
    yield
    attention_module._kernel.cache_clear()


def _install(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function, stand_in = PACKAGES[mode]
    package: Any = ModuleType(name)
    setattr(package, function, stand_in)
    monkeypatch.setitem(sys.modules, name, package)
    if "." in name:
        parent: Any = ModuleType(name.partition(".")[0])
        parent.ops = package
        monkeypatch.setitem(sys.modules, parent.__name__, parent)


@pytest.mark.parametrize("mode", PACKAGES)
def test_packages_get_their_layout(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(mode, monkeypatch)
    q, k, v = (torch.randn(2, length, 3, 8, generator=torch.Generator().manual_seed(length)) for length in (5, 7, 7))
    check_mode(mode, torch.bfloat16, CPU)
    torch.testing.assert_close(attention(q, k, v, mode), attention(q, k, v))
    if mode == "xformers":
        check_mode(mode, torch.float32, CPU)
    else:
        with pytest.raises(UserError, match="computes in 16 bits only, and this runs in float32"):
            check_mode(mode, torch.float32, CPU)


@pytest.mark.parametrize(
    ("flag", "package"),
    [("sageattn", "sageattention"), ("flash", "flash_attn"), ("flash3", "flash_attn_interface"), ("xformers", "xformers")],
)
def test_a_package_that_is_not_there_is_named(flag: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sageattention", "flash_attn", "flash_attn_interface", "xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, None)
    mode, split = attention_of(AttentionSettings(attn_mode=flag, split_attn=True))
    assert split
    with pytest.raises(UserError, match=f"needs the package {package} .*--attn_mode torch"):
        check_mode(mode, torch.bfloat16, CPU)
    check_mode("torch", torch.float32, CPU)


@pytest.mark.parametrize(
    ("mode", "capability", "dtype", "said"),
    [
        ("flash", (7, 5), torch.float16, r"flash_attn needs a GPU .* \(RTX 30 or later\); This GPU does not; use PyTorch's attention"),
        ("sage", (7, 5), torch.float16, "sageattention needs a GPU"),
        ("flash3", (7, 5), torch.float16, "flash_attn_interface needs a GPU"),
        ("flash3", (12, 0), torch.bfloat16, "has code for RTX 30 to H200 only, and This GPU is newer"),
        ("xformers", (7, 5), torch.bfloat16, "xformers in bfloat16 needs a GPU .*; use an fp16 file, or use PyTorch's attention"),
        ("xformers", (7, 5), torch.float16, ""), ("flash", (8, 6), torch.bfloat16, ""), ("flash", (12, 0), torch.bfloat16, ""),
        ("flash3", (9, 0), torch.bfloat16, ""), ("sage", (12, 0), torch.bfloat16, ""), ("torch", (7, 5), torch.bfloat16, ""),
    ],
)  # fmt: skip
def test_a_package_without_code_for_the_gpu_is_refused_before_a_model_is_loaded(
    mode: str, capability: tuple[int, int], dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "This GPU")
    if mode in PACKAGES:
        _install(mode, monkeypatch)
    if said:
        with pytest.raises(UserError, match=said):
            check_mode(mode, dtype, CUDA)
    else:
        check_mode(mode, dtype, CUDA)
