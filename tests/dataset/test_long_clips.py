"""A clip of many overlapping windows is decoded in parts, so that the frames held at once do not grow with its length."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from musubi_backend.dataset import decoding
from musubi_backend.dataset.ahead import decoded
from musubi_backend.dataset.decoding import decode
from musubi_backend.dataset.discovery import discover
from musubi_backend.dataset.items import MediaItem
from musubi_backend.dataset.problems import Problem

FRAME = 64 * 48 * 3
SLIDE = "target_frames = [5, 9]\nframe_extraction = 'slide'\nframe_stride = 1"


def sliding(make: SimpleNamespace, folder: Path, frames: int) -> MediaItem:
    make.caption(make.clip(folder / "in" / "long.mp4", frames))
    (dataset,) = make.config(folder, f"video_directory = '{folder}/in'\n{SLIDE}").datasets
    (item,) = discover(dataset, make.card).items
    return item


def held_while_decoding(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The bytes of each array of frames that somebody still holds."""
    held: dict[int, int] = {}
    real = decoding._read

    def watched(*given: Any) -> np.ndarray:
        pixels = real(*given)
        whole = pixels if pixels.base is None else pixels.base
        held[id(whole)] = whole.nbytes
        weakref.finalize(whole, held.pop, id(whole), None)
        return pixels

    monkeypatch.setattr(decoding, "_read", watched)
    return held


@pytest.mark.parametrize("frames", [40, 120])
def test_the_frames_held_at_once_do_not_grow_with_the_clip(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    item = sliding(make, tmp_path, frames)
    expected = decode(item, make.card)
    assert isinstance(expected, list) and len(expected) == (frames - 4) + (frames - 8)
    names, digests = [one.entry.name for one in expected], [one.pixels.tobytes() for one in expected]
    del expected
    held, most, number = held_while_decoding(monkeypatch), 0, 0
    room = 40 * FRAME  # of which a part takes half, with two frames in the clip's own size
    for found, part in decoded([item], make.card, in_flight=room):
        assert found is item and isinstance(part, list)
        most = max(most, sum(held.values()))
        for entry in part:
            assert (entry.entry.name, entry.pixels.tobytes()) == (names[number], digests[number])
            number += 1
            assert entry.is_last == (number == len(names))
        del entry, part
    assert number == len(names)
    assert 9 * FRAME <= most <= room + 20 * FRAME


def test_a_window_larger_than_the_room_is_a_part_of_its_own(make: SimpleNamespace, tmp_path: Path) -> None:
    parts = [part for _, part in decoded([sliding(make, tmp_path, 12)], make.card, in_flight=FRAME)]
    assert [len(part) for part in parts] == [1] * 12  # type: ignore[arg-type]


def test_a_short_clip_is_decoded_once(make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item, reads = sliding(make, tmp_path, 20), []
    real = decoding._read
    monkeypatch.setattr(decoding, "_read", lambda *given: reads.append(1) or real(*given))
    assert len(list(decoded([item], make.card))) == len(reads) == 1


def test_items_behind_a_long_clip_wait_and_come_in_order(make: SimpleNamespace, tmp_path: Path) -> None:
    long = sliding(make, tmp_path, 40)
    for number in range(4):
        make.caption(make.clip(tmp_path / "more" / f"{number}.mp4", 9))
    (dataset,) = make.config(tmp_path, f"video_directory = '{tmp_path}/more'\n{SLIDE}").datasets
    others = discover(dataset, make.card).items
    order = [item.path.name for item, _ in decoded([others[0], long, *others[1:]], make.card, workers=4, in_flight=40 * FRAME)]
    assert list(dict.fromkeys(order)) == ["0.mp4", "long.mp4", "1.mp4", "2.mp4", "3.mp4"] and order == sorted(order, key=order.index)
    assert order.count("long.mp4") > 2


def test_a_part_that_cannot_be_decoded_ends_the_item_with_its_reason(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, real = sliding(make, tmp_path, 40), decoding._read
    monkeypatch.setattr(decoding, "_read", lambda path, needed, *given: real(path, needed, *given)[: 999 if needed[0] == 0 else 1])
    results = [part for _, part in decoded([item], make.card, in_flight=40 * FRAME)]
    assert isinstance(results[0], list) and not results[0][-1].is_last
    assert len(results) == 2 and isinstance(results[1], Problem) and "another number of frames" in results[1].reason


def test_leaving_in_the_middle_of_a_long_clip_ends_its_thread(make: SimpleNamespace, tmp_path: Path) -> None:
    import threading

    before = set(threading.enumerate())
    stream = decoded([sliding(make, tmp_path, 60)], make.card, in_flight=40 * FRAME)
    next(stream)
    (worker,) = set(threading.enumerate()) - before
    stream.close()
    worker.join(30)
    assert not worker.is_alive()
