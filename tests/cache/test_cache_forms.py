"""Caches that are whole and cannot be trained with are named before a model is loaded: by their headers, for every family."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.framepack.cache_forms import cache_forms as framepack_forms
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.hunyuan_video.adapter import ADAPTER as HUNYUAN
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.wan.cache_forms import cache_forms as wan_forms
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.cache.forms import CacheForms, problem
from musubi_backend.dataset.batches import CachedDataset
from musubi_backend.dataset.config import load_config
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import Header, TensorInfo, read_header, save_atomic

Edit = Callable[[dict[str, TensorInfo]], Any]
WAN = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32, image_dim=32)


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, CacheForms]:
    """Forms for models of the sizes with which the reference caches were made."""
    sizes = {"dim": 32, "num_heads": 2, "mlp_dim": 64, "num_double_layers": 1, "num_single_layers": 1, "text_dim": 32, "pooled_dim": 24}
    monkeypatch.setattr("musubi_backend.architectures.hunyuan_video.load.geometry", lambda settings: HunyuanGeometry(**sizes))
    return {
        "wan_t2v": wan_forms(CARD.task("t2v-14B"), WAN),
        "wan_i2v21": wan_forms(CARD.task("i2v-14B"), WAN),
        "wan_flf": wan_forms(CARD.task("flf2v-14B"), WAN),
        "wan_fun_control": wan_forms(CARD.task("t2v-1.3B-FC"), WAN),
        "hv": HUNYUAN.cache_forms(),
        "fp": framepack_forms(FramePackGeometry(**sizes, image_dim=16)),
    }


def reported(path: Path, forms: CacheForms, edit: Edit = lambda tensors: None) -> str | None:
    tensors = dict(read_header(path).tensors)
    edit(tensors)
    return problem(Header(tensors, {}), forms.texts if path.name.endswith("_te.safetensors") else forms.latents)


def test_every_recorded_cache_fits_its_family(families: dict[str, CacheForms], shared: Path) -> None:
    seen = 0
    for family, forms in families.items():
        for path in sorted((shared / "golden/cache").glob(f"{family}_*/*.safetensors")):
            assert reported(path, forms) is None, path
            seen += 1
    assert seen == 39


def shaped(name: str, *shape: int) -> Edit:
    return lambda tensors: tensors.update({name: replace(tensors[name], shape=shape)})


def typed(name: str, dtype: str) -> Edit:
    return lambda tensors: tensors.update({name: replace(tensors[name], dtype=dtype)})


def without(name: str) -> Edit:
    return lambda tensors: tensors.pop(name)


WAN_CLIP = "wan_i2v21_video/clip_0_00000-009_0064x0048_wan"
HV_TEXT, FP_TEXT = "hv_video/clip_0_hv_te", "fp_video/clip_0_fp_te"
FP_SECTION = "fp_video/clip_0_00000-009-0000_0064x0048_fp"


@pytest.mark.parametrize(
    ("family", "file", "edit", "said"),
    [
        ("wan_t2v", WAN_CLIP, without("latents_3x6x8_float32"), "lacks latents"),
        ("wan_t2v", WAN_CLIP, shaped("latents_3x6x8_float32", 48, 3, 6, 8), "latents of 48x3x6x8, and 16xframesxheightxwidth is needed"),
        ("wan_t2v", WAN_CLIP, shaped("latents_3x6x8_float32", 16, 6, 8), "latents of 16x6x8"),
        ("wan_t2v", WAN_CLIP, shaped("latents_3x6x8_float32", 16, 0, 6, 8), "latents of 16x0x6x8"),
        ("wan_t2v", WAN_CLIP, shaped("latents_3x6x8_float32", 16, 3, 6, 9), "odd width, 9"),
        ("wan_t2v", WAN_CLIP, typed("latents_3x6x8_float32", "U8"), "latents in U8"),
        ("wan_t2v", WAN_CLIP, lambda t: t.update(latents_3x6x8_float16=t["latents_3x6x8_float32"]), "latents more than once"),
        ("wan_i2v21", WAN_CLIP, shaped("latents_image_3x6x8_float32", 16, 3, 6, 8), "latents_image of 16x3x6x8, and 20x3x6x8"),
        ("wan_i2v21", WAN_CLIP, shaped("latents_image_3x6x8_float32", 20, 1, 6, 8), "and 20x3x6x8 is needed"),
        ("wan_i2v21", WAN_CLIP, without("clip_float32"), "lacks clip"),
        ("wan_i2v21", WAN_CLIP, shaped("clip_float32", 257, 1280), "clip of 257x1280, and anyx32 or 1…2xanyx32"),
        ("wan_flf", WAN_CLIP, lambda t: None, "the first frame but not the last"),
        ("wan_fun_control", WAN_CLIP, lambda t: None, "lacks latents_control"),
        ("wan_t2v", "wan_t2v_video/clip_0_wan_te", shaped("varlen_t5_bfloat16", 513, 32), "t5 of 513x32, and 1…512x32"),
        ("wan_t2v", "wan_t2v_video/clip_0_wan_te", shaped("varlen_t5_bfloat16", 5, 4096), "t5 of 5x4096"),
        ("wan_t2v", "wan_t2v_video/clip_0_wan_te", shaped("varlen_t5_bfloat16", 0, 32), "t5 of 0x32"),
        ("wan_t2v", "wan_t2v_video/clip_0_wan_te", typed("varlen_t5_bfloat16", "I64"), "t5 in I64"),
        ("hv", HV_TEXT, shaped("llm_mask", 255), "llm_mask of 255, and 256 is needed"),
        ("hv", HV_TEXT, shaped("llm_float32", 256, 4096), "llm of 256x4096"),
        ("hv", HV_TEXT, typed("llm_mask", "F32"), "llm_mask in F32"),
        ("hv", HV_TEXT, shaped("clipL_float32", 768), "clipL of 768, and 24 is needed"),
        ("hv", HV_TEXT, shaped("clipL_float32"), "clipL of one number"),
        ("fp", FP_TEXT, shaped("llama_attention_mask", 1, 512), "llama_attention_mask of 1x512"),
        ("fp", FP_TEXT, shaped("clip_l_pooler_float32", 768), "clip_l_pooler of 768"),
        ("fp", FP_SECTION, shaped("image_embeddings_float32", 729, 1152), "image_embeddings of 729x1152"),
        ("fp", FP_SECTION, shaped("latent_indices_int64", 9), "latent_indices of 9, and 2 is needed"),
        ("fp", FP_SECTION, shaped("clean_latent_indices_int64", 3), "clean_latent_indices of 3, and 2"),
        ("fp", FP_SECTION, shaped("latents_clean_4x_2x6x8_float32", 16, 15, 6, 8), "latents_clean_4x of 16x15x6x8, and 16x16x6x8"),
        ("fp", FP_SECTION, shaped("latents_clean_2x_2x6x8_float32", 16, 2, 8, 6), "latents_clean_2x of 16x2x8x6, and 16x2x6x8"),
        ("fp", FP_SECTION, typed("latent_indices_int64", "F32"), "latent_indices in F32"),
        ("fp", FP_SECTION, without("image_embeddings_float32"), "lacks image_embeddings"),
    ],
)  # fmt: skip
def test_a_cache_of_another_form_is_rejected(
    family: str, file: str, edit: Edit, said: str, families: dict[str, CacheForms], shared: Path
) -> None:
    assert said in (reported(shared / "golden/cache" / f"{file}.safetensors", families[family], edit) or "nothing")


class Folder:
    """One clip with both caches, and the forms of a text-to-video model for them."""

    def __init__(self, folder: Path) -> None:
        self.latents, self.text = (folder / "cache" / name for name in ("a_00000-009_0064x0064_wan.safetensors", "a_wan_te.safetensors"))
        config = folder / "dataset.toml"
        config.write_text(
            f"[[datasets]]\nvideo_directory = '{folder / 'clips'}'\ncache_directory = '{folder / 'cache'}'\n"
            "resolution = [64, 64]\ntarget_frames = [9]\n"
        )
        self.config = load_config(config)
        self.write({})

    def write(self, values: dict[str, torch.Tensor], text: torch.Tensor | None = None) -> None:
        (self.latents.parent).mkdir(exist_ok=True)
        tensors = {"latents_3x8x8_bfloat16": torch.zeros(16, 3, 8, 8, dtype=torch.bfloat16), **values}
        metadata = {"architecture": "wan", "width": "64", "height": "64", "frame_count": "9", "format_version": "1.0.1"}
        save_atomic(tensors, self.latents, metadata)
        found = torch.ones(3, 32, dtype=torch.bfloat16) if text is None else text
        save_atomic({"varlen_t5_bfloat16": found}, self.text, {"architecture": "wan", "caption1": "a"})

    def open(self) -> CachedDataset:
        return CachedDataset.open(self.config, CARD, wan_forms(CARD.task("t2v-14B"), WAN))

    def batch(self) -> dict[str, Any]:
        dataset = self.open()
        return dataset.collate(dataset.batches(0, 1)[0])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_values_that_cannot_be_trained_with_are_named_when_they_are_read(folder: Folder) -> None:
    for change, said in (
        ({"latents_3x8x8_bfloat16": torch.full((16, 3, 8, 8), float("inf"), dtype=torch.bfloat16)}, "not finite"),
        ({"f_indices_int64": torch.tensor([0, 1, -5])}, "positions that no video has"),
        ({"f_indices_int64": torch.tensor([0, 1, 2**62])}, "positions that no video has"),
    ):
        folder.write(change)
        with pytest.raises(UserError, match=said) as caught:
            folder.batch()
        assert str(folder.latents) in str(caught.value)
    folder.write({}, torch.full((3, 32), float("nan"), dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"a_wan_te.*not finite; delete it"):
        folder.batch()


def test_masks_that_are_no_tokens_with_padding_behind_are_rejected() -> None:
    from musubi_backend.cache.forms import mask, unfit_values

    for row in ([1, 1, 0], [1, 1, 1], [0, 0, 0]):
        assert unfit_values(torch.tensor(row), mask((3,))) is None
    for row in ([1, 0, 1], [2**40, 0, 0], [-1, 0, 0], [0, 1, 1]):
        assert "not a mask of tokens" in (unfit_values(torch.tensor(row), mask((3,))) or "")


def test_a_cache_made_anew_in_another_form_while_training_is_named(folder: Folder) -> None:
    dataset = folder.open()
    folder.write({}, torch.ones(3, 64))
    with pytest.raises(UserError, match=r"a_wan_te\.safetensors: it holds t5 of 3x64"):
        dataset.collate(dataset.batches(0, 1)[0])


def test_frames_must_be_those_of_the_name(folder: Folder) -> None:
    folder.write({"latents_3x8x8_bfloat16": torch.zeros(16, 5, 8, 8, dtype=torch.bfloat16)})
    with pytest.raises(UserError, match="holds 5 latent frames, and a window of 9 frames has 3"):
        folder.open()


def test_only_what_is_trained_with_is_read(folder: Folder) -> None:
    folder.write({"guidance": torch.ones(1), "clip_float16": torch.full((5, 32), float("nan"))})
    assert set(folder.batch()) == {"latents", "t5"}


def damaged(content: bytes, source: random.Random) -> Iterator[bytes]:
    """Two hundred changes of a file: bytes anywhere, words of its header, its length."""
    words = [b"9", b"-1", b"[]", b"null", b"16", b"BF16", b"F8_E4M3", b"I64", b"BOOL", b"{", b'"', b"1e999", b"wan", b"\\ud800", b"latents"]
    length = int.from_bytes(content[:8], "little") + 8
    for number in range(250):
        changed = bytearray(content)
        if number % 5 == 0:
            yield bytes(changed[: source.randrange(len(changed))])
            continue
        for _ in range(source.randrange(1, 4)):
            at, word = source.randrange(len(changed) if number % 2 else length), source.choice(words)
            changed[at : at + len(word)] = word
        yield bytes(changed)


def test_five_hundred_damaged_caches_are_read_or_rejected(folder: Folder) -> None:
    source, refused = random.Random(17), 0
    for path in (folder.latents, folder.text):
        whole = path.read_bytes()
        for content in damaged(whole, source):
            path.write_bytes(content)
            try:
                batch = folder.batch()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error).split("\n  ")[0]
                continue
            assert batch["latents"].shape[:2] == (1, 16)
            assert [text.shape[1] for text in batch["t5"]] == [32]
        path.write_bytes(whole)
    assert 200 < refused < 500


@pytest.mark.parametrize(
    "size", ["00000-009_0000x0000", "00000-000_0064x0064", f"00000-{'9' * 40}_0064x0064", f"00000-009_{'9' * 60}x0064", "00000-009_64x0000"]
)
def test_names_with_numbers_that_no_clip_has_are_no_caches(folder: Folder, size: str) -> None:
    odd = folder.latents.with_name(f"a_{size}_wan.safetensors")
    shutil.copy(folder.latents, odd)
    dataset = folder.open()
    assert [problem.path for problem in dataset.problems] == [odd]
    assert len(dataset.items) == 1
