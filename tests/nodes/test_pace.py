"""No figure without sense reaches a person: speeds and times left of trainings with slow starts, samples, saving and resuming."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.pace import Pace
from musubi_backend.training import progress as training_progress


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def follower(part: Any, clock: list[float]) -> Any:
    """Both ways into one progress: `feed_log` takes what musubi-tuner prints, `feed_metrics` the events of our backend."""
    progress = part("nodes.jobs.progress").Progress()
    log, events = part("nodes.jobs.musubi_log").LogFollower(progress, lambda: clock[0]), part("nodes.jobs.progress").EventFollower(progress)
    return SimpleNamespace(progress=progress, feed_log=log.feed, feed_metrics=lambda text: events.feed(text.encode()))


def bar(step: int, total: int, figures: str = "00:00<00:00, 99.00it/s", title: str = "steps: ") -> bytes:
    return f"\r{title}{100 * step // total:3d}%|##   | {step}/{total} [{figures}, avr_loss=0.1]\r".encode()


def test_the_first_step_is_no_measure() -> None:
    pace = Pace()
    pace.add(1, 600.0)
    assert (pace.rate(), pace.left(10)) == ("", "")
    pace.add(1, 2.0)
    assert (pace.rate(), pace.left(10)) == ("2.00s/it", "00:20")
    assert pace.left(0) == ""


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 0.0])
def test_what_cannot_be_is_not_measured(seconds: float) -> None:
    pace = Pace()
    pace.add(1, 1.0)
    pace.add(1, seconds)
    assert (pace.rate(), pace.left(10)) == ("", "")


def test_the_mean_is_of_the_last_fifty() -> None:
    pace = Pace()
    for seconds in (9.0, 1.0, 2.0, 6.0):
        pace.add(1, seconds)
    assert pace.seconds == 3.0
    for _ in range(50):
        pace.add(1, 5.0)
    assert pace.seconds == 5.0


def test_days_are_hours() -> None:
    pace = Pace()
    pace.add(1, 0.0)
    pace.add(10, 600.0)
    assert pace.left(1500) == "25:00:00"


def test_samples_and_saving_of_musubi_tuner_are_not_steps(follower: Any, clock: list[float]) -> None:
    follower.feed_log(b"running training\n" + bar(0, 100))
    clock[0] += 300  # the first step compiles
    follower.feed_log(bar(1, 100, "05:00<8:15:00, 300.00s/it"))
    assert (follower.progress.rate, follower.progress.left) == ("", "")
    for step in range(2, 6):
        clock[0] += 2
        follower.feed_log(bar(step, 100) + bar(step, 100))
    assert (follower.progress.rate, follower.progress.left) == ("2.00s/it", "03:10")
    follower.feed_log(b"\nINFO:x:generating sample images at step: 5\n")
    for step in range(3):
        clock[0] += 100
        follower.feed_log(bar(step, 20, title="Sampling timesteps for prompt 1: "))
    follower.feed_log(b"\nsaving checkpoint: /out/cat.safetensors\n" + bar(5, 100, "11:00<3:29:00, 132.00s/it"))
    clock[0] += 2
    follower.feed_log(bar(6, 100))
    assert (follower.progress.rate, follower.progress.left) == ("2.00s/it", "03:08")


@pytest.mark.parametrize("figures", ["00:00<?, -29868528.48it/s", "00:00<00:00, infit/s", "00:00<?, nanit/s", "00:03<12345:00:00, 9e9s/it"])
def test_nonsense_of_a_bar_is_not_passed_on(follower: Any, figures: str) -> None:
    for step in (900, 901):
        follower.feed_log(bar(step, 1000, figures))
    assert follower.progress.text in ("loss 0.1000 · 901/1000",)


def test_an_item_that_waits_for_its_model_is_no_measure(follower: Any, clock: list[float]) -> None:
    for step, seconds in ((0, 0), (1, 90), (2, 1), (3, 1)):
        clock[0] += seconds
        follower.feed_log(bar(step, 50, title=""))
    assert follower.progress.text.endswith("3/50 · 00:47 left · 1.00it/s")


def test_our_own_trainer_says_how_long_steps_took(follower: Any) -> None:
    for step, seconds in ((901, 70.0), (902, 0.5), (903, 0.5)):
        follower.feed_metrics(f'{{"event": "step", "step": {step}, "total": 1003, "loss": 0.5, "seconds": {seconds}}}\n')
    assert follower.progress.text == "loss 0.5000 · 903/1003 · 00:50 left"
    follower.feed_metrics('{"event": "phase", "text": "loading the VAE"}\n')
    assert follower.progress.text == "loss 0.5000 · loading the VAE · 903/1003"


def test_a_bar_that_begins_anew_is_measured_anew(follower: Any, clock: list[float]) -> None:
    for step in (0, 1, 2, 3):
        clock[0] += 1
        follower.feed_log(bar(step, 4, title=""))
    clock[0] += 500
    follower.feed_log(bar(0, 4, title=""))
    assert follower.progress.rate == ""
    for step in (1, 2):
        clock[0] += 8
        follower.feed_log(bar(step, 4, title=""))
    assert (follower.progress.rate, follower.progress.left) == ("8.00s/it", "00:16")


def test_what_is_done_between_two_steps_is_no_step(follower: Any, clock: list[float]) -> None:
    follower.feed_log(b"running training\n")
    for step in (0, 1, 2):
        clock[0] += 2
        follower.feed_log(bar(step, 100))
    clock[0] += 50
    follower.feed_log(b"\nINFO:x:writing the state of the optimizer\n")
    clock[0] += 50
    follower.feed_log(bar(3, 100))
    assert follower.progress.rate == "2.00s/it"


def test_several_steps_at_once_share_their_time(follower: Any, clock: list[float]) -> None:
    for step in (0, 10, 20, 30):
        clock[0] += 20
        follower.feed_log(bar(step, 100))
    assert (follower.progress.rate, follower.progress.left) == ("2.00s/it", "02:20")


def test_bars_of_our_tools_are_measured_by_the_clock_of_their_process(follower: Any) -> None:
    def reported(done: int, clock: float, title: str = "") -> None:
        follower.feed_metrics(f'{{"event": "progress", "done": {done}, "total": 50, "title": "{title}", "clock": {clock}}}\n')

    for done, clock in ((10, 5.0), (11, 95.0), (12, 97.0), (14, 101.0)):  # ten were there; the first waits for its model
        reported(done, clock)
    assert follower.progress.text == "starting · 14/50 · 01:12 left · 2.00s/it"
    reported(0, 200.0, "merging")
    assert follower.progress.text == "merging · 0/50"
    for done, clock in ((1, 201.0), (2, 202.0), (12, 207.0)):
        reported(done, clock, "merging")
    assert (follower.progress.rate, follower.progress.left) == ("1.83it/s", "00:21")


def test_the_trainers_bar_counts_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now, shown = [0.0], io.StringIO()
    monkeypatch.setattr(training_progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("sys.stderr", shown)
    steps = training_progress.StepBar(1000, 900, shown=True)
    for seconds in (60, 2, 2):
        now[0] += seconds
        steps.step({"avr_loss": 0.5})
        steps.pause()
        now[0] += 500  # a sample
        steps.resume()
    steps.close()
    bars = [text for text in re.split(r"[\r\n]+", shown.getvalue()) if text]
    assert "900/1000" in bars[0] and "?" in bars[0]
    assert "901/1000" in bars[1] and "?it/s" in bars[1]
    assert re.search(r"903/1000 \[\d\d:\d\d<03:14, +2\.00s/it, avr_loss=0\.5\]", bars[-1]), bars[-1]
    assert "-" not in shown.getvalue()
