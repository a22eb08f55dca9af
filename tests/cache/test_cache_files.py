"""Cache files: the same keys, shapes, dtypes and metadata as recorded from musubi-tuner, and nothing lost on the way."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.headers import check_cache, latents_problem, text_problem
from musubi_backend.cache.names import parse_text_name
from musubi_backend.cache.tensor_keys import base_name
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import load, read_header


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return {base_name(name): tensor for name, tensor in load(path).items()}


def wan_files(shared: Path) -> list[Path]:
    return [path for folder in sorted((shared / "golden/cache").glob("wan_*")) for path in sorted(folder.glob("*.safetensors"))]


def test_every_recorded_wan_cache_is_written_again_with_the_same_header_and_values(shared: Path, tmp_path: Path) -> None:
    files = wan_files(shared)
    assert len(files) >= 18
    for path in files:
        recorded = read_header(path)
        tensors = tensors_of(path)
        copy = tmp_path / path.name
        copy.unlink(missing_ok=True)
        if parse_text_name(path.name, "wan") is not None:
            tensors = {"varlen_" + name: tensor for name, tensor in tensors.items()}
            save_text(copy, tensors, CARD, caption=recorded.metadata["caption1"])
        else:
            sizes = {key: int(recorded.metadata[key]) for key in ("width", "height")}
            frames = recorded.metadata.get("frame_count")
            save_latents(copy, tensors, CARD, **sizes, frame_count=int(frames) if frames else None)
        written = read_header(copy)
        assert written.metadata == recorded.metadata, path
        assert {n: (t.dtype, t.shape) for n, t in written.tensors.items()} == {n: (t.dtype, t.shape) for n, t in recorded.tensors.items()}
        again = tensors_of(copy)
        assert all(torch.equal(again[name.removeprefix("varlen_")], tensor) for name, tensor in tensors.items())


def test_recorded_names_of_all_architectures_reduce_to_what_training_reads(shared: Path) -> None:
    bases = set()
    for content in json.loads((shared / "golden/cache/index.json").read_text()).values():
        for file in content["files"].values():
            bases |= {base_name(name) for name in file["tensors"]}
    assert {
        "latents",
        "latents_image",
        "latents_control",
        "clip",
        "t5",
        "llm",
        "llm_mask",
        "clipL_mask",
        "latents_clean_2x",
        "latent_indices",
    } <= bases
    assert {"llama_vec", "llama_attention_mask", "image_embeddings"} <= bases
    assert not any("float" in base or "int64" in base or "varlen" in base for base in bases)


def test_nan_becomes_zero_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a_0016x0016_wan.safetensors"
    latents = torch.ones(16, 1, 2, 2)
    latents[0, 0, 0, 0] = torch.nan
    with caplog.at_level(logging.WARNING):
        save_latents(path, {"latents": latents}, CARD, width=16, height=16)
    assert "has NaN" in caplog.text
    assert tensors_of(path)["latents"].sum() == 63
    assert latents.isnan().sum() == 1  # the caller's tensor is left alone


@pytest.mark.parametrize(("shape", "changes", "name"), [
    ((16, 1, 2, 3), {}, "latents_1x2x3_float32"),
    ((16, 2, 3), {"latent_rank": 3}, "latents_2x3_float32"),
    ((16, 2, 3), {"latent_rank": 3, "named_with_frame": True}, "latents_1x2x3_float32"),
])  # fmt: skip
def test_latents_without_frames_are_named_as_their_family_does(
    tmp_path: Path, shape: tuple[int, ...], changes: dict[str, Any], name: str
) -> None:
    path, card = tmp_path / "a_0024x0016_wan.safetensors", replace(CARD, **changes)
    save_latents(path, {"latents": torch.ones(shape)}, card, width=24, height=16)
    assert list(read_header(path).tensors) == [name]
    assert latents_problem(path, card, width=24, height=16, bucket=(24, 16), frames=None, latent_frames=1, needs=["latents"]) is None


def test_text_files_are_merged_and_the_other_precision_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder with ' and 日本" / "a_wan_te.safetensors"
    save_text(path, {"llm": torch.ones(3, dtype=torch.float16), "llm_mask": torch.ones(3, dtype=torch.bool)}, CARD, caption="one")
    save_text(path, {"clipL": torch.zeros(2)}, CARD, caption="one")
    with caplog.at_level(logging.WARNING):
        save_text(path, {"llm": torch.zeros(4, dtype=torch.bfloat16)}, CARD, caption="two")
    assert "caption mismatch: existing=one, new=two" in caplog.text
    header = read_header(path)
    assert set(header.tensors) == {"llm_bfloat16", "llm_mask", "clipL_float32"}
    assert header.metadata == {"architecture": "wan", "caption1": "two", "format_version": "1.0.1"}


@pytest.mark.parametrize(("rank", "shape", "problem"), [
    (3, (16, 6, 8), None),
    (3, (16, 1, 6, 8), "latents are 1x6x8, expected 6x8"),
    (4, (16, 6, 8), "latents are 6x8, expected 1x6x8"),
])  # fmt: skip
def test_latents_have_the_dimensions_that_the_card_says(rank: int, shape: tuple[int, ...], problem: str | None, tmp_path: Path) -> None:
    path, card = tmp_path / "a_0064x0048_wan.safetensors", replace(CARD, latent_rank=rank)
    save_latents(path, {"latents": torch.zeros(shape)}, card, width=64, height=48)
    assert latents_problem(path, card, width=64, height=48, bucket=(64, 48)) == problem


def test_a_good_cache_is_recognised_from_its_header_alone(shared: Path) -> None:
    folder = shared / "golden/cache/wan_t2v_video"
    clip = folder / "clip_0_00000-009_0064x0048_wan.safetensors"
    good = {"width": 64, "height": 48, "bucket": (64, 48), "frames": 9}
    assert latents_problem(clip, CARD, **good) is None
    assert latents_problem(folder / "none", CARD, **good) == "there is no cache yet"
    assert "frame_count" in (latents_problem(clip, CARD, **{**good, "frames": 13}) or "")
    assert "expected 3x8x8" in (latents_problem(clip, CARD, **{**good, "bucket": (64, 64)}) or "")
    assert latents_problem(clip, CARD, **good, needs={"latents", "clip"}) == "clip missing"
    caption = "a tiny clip number 0"
    assert text_problem(folder / "clip_0_wan_te.safetensors", CARD, caption=caption, needs={"t5"}) is None
    assert text_problem(folder / "clip_0_wan_te.safetensors", CARD, caption="new") == "the caption has changed"


def test_damaged_and_foreign_caches_are_rejected_with_the_fix(shared: Path, tmp_path: Path) -> None:
    clip = shared / "golden/cache/wan_t2v_video/clip_0_00000-009_0064x0048_wan.safetensors"
    cut = tmp_path / clip.name
    cut.write_bytes(clip.read_bytes()[:-10])
    garbage = tmp_path / "garbage_wan.safetensors"
    garbage.write_bytes(b"not a cache at all" * 10)
    empty = tmp_path / "empty_wan.safetensors"
    empty.touch()
    foreign = shared / "golden/cache/hv_video/clip_0_00000-009_0064x0048_hv.safetensors"
    for path, word in [(cut, "damaged"), (garbage, "damaged"), (empty, "damaged"), (foreign, "'hunyuan_video'")]:
        with pytest.raises(UserError, match=word) as refused:
            check_cache(path, CARD)
        assert str(path) in str(refused.value) and "elete it and cache again" in str(refused.value)
        assert latents_problem(path, CARD, width=64, height=48, bucket=(64, 48), frames=9) is not None
    shutil.copy(foreign, tmp_path / "a_wan_te.safetensors")
    with pytest.raises(UserError, match="hunyuan_video"):
        save_text(tmp_path / "a_wan_te.safetensors", {"varlen_t5": torch.zeros(1, 2)}, CARD, caption="x")


def test_a_failing_write_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a_0016x0016_wan.safetensors"
    save_latents(path, {"latents": torch.ones(16, 1, 2, 2)}, CARD, width=16, height=16)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_latents(path, {"latents": torch.zeros(16, 1, 2, 2)}, CARD, width=16, height=16)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_a_damaged_model_gives_is_no_cache(value: str, tmp_path: Path) -> None:
    path = tmp_path / "clip_wan_te.safetensors"
    with pytest.raises(UserError, match=r"clip_wan_te\.safetensors: the model that encodes gave no numbers for .*t5"):
        save_text(path, {"varlen_t5": torch.full((3, 4), float(value))}, CARD, caption="a clip")
    assert not path.exists()
