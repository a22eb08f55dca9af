"""Cache file names, both ways, against the names recorded from musubi-tuner."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from musubi_backend.cache.names import (
    LatentName,
    latent_files,
    latent_name,
    media_stem,
    parse_latent_name,
    parse_text_name,
    text_files,
    text_name,
)


def test_recorded_names_survive_parsing_and_building(shared: Path) -> None:
    index = json.loads((shared / "golden/cache/index.json").read_text())
    for case, content in index.items():
        arch = case.split("_")[0]
        for name in content["files"]:
            stem = parse_text_name(name, arch)
            if stem is not None:
                assert text_name(stem, arch) == name
                continue
            parsed = parse_latent_name(name, arch, video="video" in case)
            assert parsed is not None and latent_name(parsed, arch) == name
            assert parsed.stem in ("clip_0", "clip_1", "pic_0", "pic_1")


@given(
    stem=st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1),
    size=st.tuples(st.integers(1, 99999), st.integers(1, 99999)),
    start=st.integers(0, 10**6),
    frames=st.integers(1, 9999),
)
def test_any_stem_survives(stem: str, size: tuple[int, int], start: int, frames: int) -> None:
    clip = LatentName(stem, *size, start, frames)
    assert parse_latent_name(latent_name(clip, "wan"), "wan", video=True) == clip
    image = LatentName(stem, *size)
    assert parse_latent_name(latent_name(image, "wan"), "wan", video=False) == image
    assert parse_text_name(text_name(stem, "wan"), "wan") == stem


def test_names_of_others_are_reported_apart() -> None:
    assert parse_latent_name("a_0064x0064_hv.safetensors", "wan", video=False) is None
    assert parse_latent_name("a_0064x0064_wan.safetensors", "wan", video=True) is None
    assert parse_text_name("a_hv_te.safetensors", "wan") is None
    assert media_stem("x/clip.final.mp4") == "clip.final"
    assert media_stem("x/frames of clip/") == "frames of clip"


def test_listing_takes_only_this_architecture_and_this_kind(tmp_path: Path) -> None:
    names = [
        "b_0064x0064_wan.safetensors",
        "a_0064x0064_wan.safetensors",
        "a_wan_te.safetensors",
        "a_0064x0064_hv.safetensors",
        ".x_wan.safetensors",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert [file.name for file in latent_files(tmp_path, "wan")] == ["a_0064x0064_wan.safetensors", "b_0064x0064_wan.safetensors"]
    assert [file.name for file in text_files(tmp_path, "wan")] == ["a_wan_te.safetensors"]
    assert latent_files(tmp_path / "none", "wan") == []
