"""A family says in its folder how LoRA files name its layers; another says that it has the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.weights.safetensors_file import save_atomic

THEIRS, OWN = "blocks.1.ff.proj_out", "blocks.1.shrink"


@pytest.mark.parametrize(
    ("layer", "said", "native", "own_path"),
    [
        (OWN, "", "dots", OWN),
        (OWN, "spots", "dots", OWN),
        (THEIRS, "", "spots", THEIRS),
        (THEIRS, "dots 2", "dots", OWN),
        (THEIRS, "other", "", THEIRS),
    ],
    ids=["own names", "own names count more than metadata", "names that two have", "whose they are is in the metadata", "a stranger"],
)
def test_a_lora_is_recognised_by_names_and_by_metadata_where_two_have_them(
    part: Any, tmp_path: Path, layer: str, said: str, native: str, own_path: str
) -> None:
    layouts = part("backend.musubi_backend.lora.layouts")
    path = tmp_path / "lora.safetensors"
    factors = {f"diffusion_model.{layer}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_atomic(factors, path, {"modelspec.architecture": said} if said else {})
    lora = layouts.LoRAFile.open(path)
    try:
        assert lora.native == native
        assert [place for place, _ in layouts.arranged(lora, lora.native)] == [own_path]
    finally:
        lora.close()


def test_families_of_one_table_are_known_to_share_their_layers(part: Any) -> None:
    names = part("backend.musubi_backend.lora.layer_names")
    groups = part("backend.musubi_backend.architectures").same_layers()
    assert ["dots", "spots"] in [[card.id for card in group] for group in groups]
    assert names.title_of("spots") == "Spots 2.0, or Dots, diffusers' names"
    assert names.diffusers("dots") == "spots" and names.own("spots") == "spots"
