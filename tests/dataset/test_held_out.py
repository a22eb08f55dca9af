"""Which items are not trained on: whole clips, a share of them, the same ones each time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.cache.files import save_latents, save_text
from musubi_backend.cache.forms import CacheForms, floats, main_latents
from musubi_backend.cache.names import LatentName, latent_name, text_name
from musubi_backend.dataset.batches import CachedDataset
from musubi_backend.dataset.config import load_config
from musubi_backend.dataset.held_out import hold_out
from musubi_backend.errors import UserError

FORMS = CacheForms(main_latents(16), {"t5": floats((None, None))})


@pytest.fixture
def opened(make: SimpleNamespace, tmp_path: Path) -> Any:
    """Data sets of clips with two windows each: (clips, source, settings) of each."""

    def made(*given: tuple[int, str, str], split: float | None = None) -> CachedDataset:
        sections = []
        for number, (clips, source, settings) in enumerate(given):
            folder = tmp_path / f"cache{number}"
            for clip in range(clips):
                if (folder / text_name(f"clip{clip}", "wan")).exists():
                    continue
                for start in (0, 8):
                    name = LatentName(f"clip{clip}", 64, 48, start, 9)
                    latents = {"latents": torch.zeros(16, 3, 6, 8, dtype=torch.bfloat16)}
                    save_latents(folder / latent_name(name, "wan"), latents, CARD, width=64, height=48, frame_count=9)
                save_text(folder / text_name(f"clip{clip}", "wan"), {"varlen_t5": torch.ones(3, 32).bfloat16()}, CARD, caption="c")
            sections.append(f"video_directory = '{source}'\ncache_directory = '{folder}'\ntarget_frames = [9]\n{settings}")
        config = make.config(tmp_path, *sections)
        return CachedDataset.open(load_config(config.path, {"validation_split": split}), CARD, FORMS)

    return made


def clips(items: Any) -> list[tuple[str, str]]:
    """(cache folder, clip) of each item."""
    return sorted((item.latents.parent.name, item.name[:5]) for item in items)


@pytest.mark.parametrize(
    ("given", "split", "count"),
    [
        ([(5, "a", "")], 0.2, 1),
        ([(5, "a", "")], 0.01, 1),
        ([(5, "a", "")], 0.5, 2),
        ([(5, "a", "")], 0.99, 4),
        ([(5, "a", "num_repeats = 3")], 0.4, 2),
        ([(5, "a", ""), (5, "a", "")], 0.4, 4),
        ([(4, "a", "validation_split = 1"), (4, "b", "")], None, 4),
        ([(4, "a", "validation_split = 0"), (4, "b", "")], 0.5, 2),
        ([(4, "a", ""), (2, "b", "validation_split = 1.0")], 0.5, 4),
        ([(5, "a", "")], None, 0),
    ],
)
def test_a_share_of_the_clips_is_held_out_with_all_their_windows(given: Any, split: float | None, count: int, opened: Any) -> None:
    dataset = opened(*given, split=split)
    trained, held = hold_out(dataset, 3)
    assert len({*clips(held)}) == count and len(held) == 2 * count == len({*held}), "each window once"
    assert not {*clips(held)} & {*clips(trained.items)} and {*held} | {*trained.items} == {*dataset.items}
    assert sorted(name for batch in trained.batches(1, 1) for name in batch.names) == sorted(item.name for item in trained.items)
    if len(given) == 2 and given[0][1] == given[1][1]:
        assert len({name for _, name in clips(held)}) == 2, "a clip of two data sets lies on one side"
    if not count:
        assert trained is dataset


def test_the_choice_follows_the_seed_and_stays_when_clips_are_added(opened: Any) -> None:
    dataset = opened((8, "a", ""), split=0.25)
    chosen = [hold_out(dataset, seed)[1] for seed in range(6)]
    assert hold_out(opened((8, "a", ""), split=0.25), 2)[1] == chosen[2]
    assert len({*map(str, chosen)}) > 2
    grown = opened((9, "a", ""), split=0.25)
    kept = [{*hold_out(grown, seed)[1]} & {*before} for seed, before in enumerate(chosen)]
    assert all(len(one) >= 2 for one in kept), "one clip of two at most is another"


@pytest.mark.parametrize(
    ("given", "split", "said"),
    [
        ([(1, "a", "")], 0.5, "validation_split 0.5 holds out a part of the images and clips, and there is only clip0"),
        ([(3, "a", "validation_split = 1")], None, "leaves nothing to train on"),
        ([(3, "a", "validation_split = 1"), (3, "a", "")], None, r"datasets\[1\]: validation_split is 0, and 1 in another dataset with"),
    ],
)
def test_what_cannot_be_held_out_is_said(given: Any, split: float | None, said: str, opened: Any) -> None:
    with pytest.raises(UserError, match=said):
        hold_out(opened(*given, split=split), 0)


@pytest.mark.parametrize("value", ["2", "-0.1", "true", "'a tenth'"])
def test_a_share_is_a_number_from_0_to_1(value: str, opened: Any) -> None:
    with pytest.raises(UserError, match=r"validation_split = .* is not understood; expected a share from 0 to 1"):
        opened((1, "a", f"validation_split = {value}"))
