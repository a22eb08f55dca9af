"""The event log: every kind comes back as it was written, and a reader takes what it knows of what it gets."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import events, job

SAMPLES: dict[str, Any] = {"int": 3, "float": 0.5, "str": "猫 \ud800", "tuple[str, ...]": ("a", "b"), "tuple[float, ...]": (0.5, 2.0)}


def filled(kind: type[events.Event]) -> events.Event:
    own = [field for field in fields(kind) if field.name not in ("time", "clock", "rank")]
    return kind(**{field.name: SAMPLES[str(field.type).removesuffix(" | None")] for field in own})


def written(*kinds: events.Event) -> bytes:
    lines = [events.line_of(event, time=1700000000.25, clock=12.5, rank=1) for event in kinds]
    return "".join(lines).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("kind", events.KINDS.values(), ids=events.KINDS)
def test_an_event_comes_back_as_it_was_written(kind: type[events.Event]) -> None:
    (read,) = events.Reader().feed(written(filled(kind)))
    same = {**vars(filled(kind)), "time": 1700000000.25, "clock": 12.5, "rank": 1}
    assert type(read) is kind and vars(read) == same


def test_every_kind_is_in_the_page_that_explains_them(repository: Path) -> None:
    page = (repository / "docs" / "events.md").read_text(encoding="utf-8")
    for name, kind in events.KINDS.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
        missing = [field.name for field in fields(kind) if field.name not in ("time", "clock", "rank") and f"`{field.name}`" not in row]
        assert row and not missing, (name, missing)
    assert f"version {events.VERSION}" in page


def test_a_log_is_read_while_it_is_written() -> None:
    """Byte by byte, also inside a character."""
    reader, found = events.Reader(), []
    for byte in written(events.Phase("学習"), events.Keep("7 steps")):
        found += reader.feed(bytes([byte]))
    assert next(event for event in found if isinstance(event, events.Phase)).text == "学習"
    assert len(found) == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "keep", "wh',  # the disk was full
        '{"event": "tomorrow", "what": "x"}',
        '{"event": "keep", "v": 2, "what": "it means something else by then"}',
        '{"event": "keep", "v": "1"}',
        '{"event": ["keep"]}',
        '{"event": "phase"}',  # without what it is about
        '{"event": "phase", "text": 3}',
        '["keep"]',
        "[" * 3000,
        "",
    ],
)
def test_a_line_that_says_nothing_is_passed_over(line: str) -> None:
    read = events.Reader().feed(written(events.Keep("a")) + line.encode() + b"\n" + written(events.Keep("b")))
    assert [event.what for event in read if isinstance(event, events.Keep)] == ["a", "b"]
    assert len(read) == 2


def test_unknown_fields_are_left_and_odd_values_are_as_if_they_were_not_there() -> None:
    line = json.dumps({"event": "step", "v": 1, "step": 3, "loss": "much", "total": 2**60, "lr": True, "weather": "fine"})
    (step,) = events.Reader().feed(line.encode() + b"\n")
    assert isinstance(step, events.Step)
    assert (step.step, step.loss, step.total, step.lr) == (3, None, None, None)


def test_numbers_that_are_not_finite_become_unknown() -> None:
    (step,) = events.Reader().feed(written(events.Step(1, loss=float("nan"), lr=float("inf"))))
    assert isinstance(step, events.Step) and step.loss is None and step.lr is None


def test_a_line_without_end_takes_no_memory() -> None:
    reader = events.Reader()
    for _ in range(5):
        assert reader.feed(b"x" * events.LONGEST_LINE) == []
        assert len(reader._rest) <= events.LONGEST_LINE
    assert len(reader.feed(b"\n" + written(events.Keep("a")))) == 1


@pytest.mark.parametrize(("rank", "said"), [(None, 0), ("3", 3), ("x", 0)])
def test_an_event_has_both_clocks_and_the_rank(rank: str | None, said: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.delenv("RANK", raising=False) if rank is None else monkeypatch.setenv("RANK", rank)
    for text in ("one", "two"):
        job.phase(text)
    first, second = events.read(tmp_path / events.FILE_NAME)
    assert first.rank == said and first.time > 1e9 and second.clock >= first.clock > 0


def test_requests_are_heard_and_the_unknown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    for word in ("save", "dance", "", "pause"):
        job._hear(word)
    assert job.take_requests() == ["save", "pause"] and job.take_requests() == []
    job._hear("sample")
    job.ended(events.FINISHED)
    log = [event for event in events.read(tmp_path / events.FILE_NAME) if isinstance(event, events.Request)]
    assert [(event.name, event.answer) for event in log] == [
        ("save", "heard"), ("dance", "ignored"), ("pause", "heard"), ("sample", "heard"), ("sample", "ignored"),
    ]  # fmt: skip
    assert "save, sample, pause, resume" in log[1].text
