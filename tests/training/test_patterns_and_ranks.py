"""Patterns that match nothing and ranks that a layer cannot hold are said."""

from __future__ import annotations

from typing import Any

import pytest


def warnings(project: Any, capsys: pytest.CaptureFixture[str], **values: Any) -> list[str]:
    project.train("said", max_train_steps=1, **values)
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("WARNING:musubi_backend.lora.network:")]


def test_patterns_that_match_nothing_are_named(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = ["exclude_patterns=['ffn', '.*ffn.*']", "include_patterns=['blocks.0.ffn.0', '.*self_attn.q']"]
    (first, second) = warnings(project, capsys, network_args=patterns)
    assert "exclude_patterns: 'ffn' matches no layer; whole names are compared, such as blocks.0." in first
    assert "include_patterns: '.*self_attn.q' matches nothing that is excluded" in second
    assert warnings(project, capsys, network_args=["exclude_patterns=['.*ffn.*']"]) == []


def test_a_rank_above_the_width_of_a_layer_is_named(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The layers of the model are 32 wide."""
    (said,) = warnings(project, capsys, network_dim=33)
    assert "--network_dim 33 is above the width of 20 of the 20 layers (blocks.0.self_attn.q: 32)" in said
    assert warnings(project, capsys, network_dim=32) == []
