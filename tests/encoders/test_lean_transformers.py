"""Encoders import little of what transformers brings along, and whoever wants the rest later gets it whole."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from musubi_backend.encoders import lean_transformers

SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import torch
from musubi_backend.encoders.lean_transformers import empty_weights, from_transformers

UMT5Config, UMT5EncoderModel = from_transformers("UMT5Config", "UMT5EncoderModel")
with empty_weights():
    model = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
assert all(weight.is_meta for weight in model.parameters())
model.load_state_dict({name: torch.ones(weight.shape) for name, weight in model.state_dict().items()}, assign=True)
model(input_ids=torch.ones(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 5))
heavy = {"accelerate", "scipy", "sympy", "torch._dynamo", "torch.distributed.tensor", "transformers.generation.continuous_batching"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)

import accelerate, scipy.optimize
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert torch.distributed.is_available()
from transformers.generation.continuous_batching import PagedAttentionCache
assert PagedAttentionCache.__module__.startswith("transformers.generation.continuous_batching.")
"""


@pytest.mark.slow
def test_an_encoder_imports_little_and_what_is_imported_later_is_whole(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=repository / "backend", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "importing all of it" not in done.stderr


def test_a_transformers_that_does_not_go_along_is_imported_whole(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(names: tuple[str, ...]) -> list[str]:
        if not any("importing all of it" in record.message for record in caplog.records):
            raise ImportError("cannot import name 'x'")
        return list(names)

    kept = {name: sys.modules[name] for name in sys.modules if name.partition(".")[0] == "transformers"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(lean_transformers, "_classes", fails)
    with caplog.at_level(logging.INFO):
        assert lean_transformers.from_transformers("UMT5Config") == ["UMT5Config"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
