"""Progress and errors read from logs, in the wording of both engines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def follower(part: Any) -> Any:
    """Both ways into one progress: `feed_log` takes what musubi-tuner prints, `feed_metrics` the events of our backend."""
    progress = part("nodes.jobs.progress").Progress()
    log, events = part("nodes.jobs.musubi_log").LogFollower(progress), part("nodes.jobs.progress").EventFollower(progress)
    return SimpleNamespace(progress=progress, feed_log=log.feed, feed_metrics=lambda text: events.feed(text.encode()))


def test_a_training_of_musubi_tuner(follower: Any) -> None:
    follower.feed_log(
        b"Trying to import sageattention\n"
        b"INFO:musubi_tuner.training.trainer_base:Loading DiT model from /m/dit.safetensors\n"
        b"\rLoading dit.safetensors:  50%|#####     | 34/69 [00:00<00:00, 99.00it/s]\n"
    )
    assert follower.progress.phase == "Loading dit.safetensors"
    assert follower.progress.step == 34
    follower.feed_log("running training / 学習開始\n\nepoch 1/2\n".encode())
    assert follower.progress.phase == "epoch 1 of 2"
    follower.feed_log("\rsteps:  12%|█▎        | 1/8 [00:00<00:07,  1.10s/it, avr_loss=2.03]\r".encode())
    progress = follower.progress
    assert (progress.step, progress.total) == (1, 8)
    assert progress.losses == {1: 2.03}
    follower.feed_log("\rSampling timesteps for prompt 1:  33%|███  | 1/3 [00:00<00:00, 24.16it/s]\r".encode())
    assert progress.step == 1, "a sample's own bar is not the training's"
    assert "1/3" in progress.text


def test_counts_without_a_total(follower: Any) -> None:
    follower.feed_log(b"INFO:musubi_tuner.cache_latents:Encoding dataset [0]\n\r12it [00:03,  3.91it/s]\r")
    assert (follower.progress.phase, follower.progress.step, follower.progress.total) == ("encoding dataset 0", 12, None)


def test_generation_bar_without_a_title(follower: Any) -> None:
    follower.feed_log("Starting sampling (high noise: False).\n\r 25%|██▌       | 1/4 [00:00<00:00, 32.82it/s]\r".encode())
    assert follower.progress.text == "sampling · 1/4"


def test_download_bars_with_scaled_numbers_are_not_progress(follower: Any) -> None:
    follower.feed_log(b"\rmodel:  10%|#   | 1.2G/11.4G [00:10<01:30, 110MB/s]\r")
    assert follower.progress.step == 0


def test_losses_that_are_not_finite_never_reach_the_page(follower: Any, part: Any) -> None:
    follower.feed_metrics('{"event": "step", "step": 1, "total": 4, "loss": 0.5}\n{"event": "step", "step": 2, "total": 4, "lo')
    follower.feed_metrics('ss": null}\n')
    follower.feed_log("\rsteps:  75%|███ | 3/4 [00:00<00:07,  1.10s/it, avr_loss=nan]\r".encode())
    assert follower.progress.losses == {1: 0.5}
    assert follower.progress.loss is None
    loss_map = part("nodes.loss_curve").loss_map
    assert loss_map([float("nan"), 0.5]) == {"loss": [0.5, 0.500001]}
    assert len(loss_map([])["loss"]) == 2


@pytest.mark.parametrize(
    "line",
    ["a caption: 5%|x| 1.2.3/4 [0<0]", "5%|x| ./. [0<0]", "steps:  12%|x| 1/8 [00:00<00:07, 1s/it, avr_loss=-]", "1%|x| 1/2 [0<0, {0}]"],
)
def test_words_that_look_like_a_bar_do_no_harm(follower: Any, line: str) -> None:
    follower.feed_log(f"{line}\n".encode())
    assert follower.progress.losses == {}


def test_damaged_events_are_passed_over(follower: Any) -> None:
    follower.feed_metrics('{"event": "step", "st\n\n[1]\n{"event": "step"}\n{"event": "step", "step": 2, "total": 4, "loss": 0.25}\n')
    assert follower.progress.losses == {2: 0.25}


def test_samples_are_announced(follower: Any) -> None:
    follower.feed_metrics('{"event": "sample", "path": "/out/sample/猫.mp4"}\n')
    assert follower.progress.sample == "/out/sample/猫.mp4"


CASES = {
    "our own error": ("INFO:a:b\nERROR: clip.mp4 is cut off\ncopy it again\nINFO:a:c\n", "clip.mp4 is cut off\ncopy it again"),
    "the last of two": ("ERROR: first\n\nERROR: second\n", "second"),
    "a traceback": (
        'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    raise ValueError("bad key")\nValueError: bad key\n',
        "ValueError: bad key",
    ),
    "a chain of tracebacks": (
        "Traceback (most recent call last):\n  File 'a'\nKeyError: 'x'\n\nDuring handling of the above exception, another exception "
        "occurred:\n\n"
        "Traceback (most recent call last):\n  File 'b'\nRuntimeError: the real one\n",
        "RuntimeError: the real one",
    ),
    "under accelerate launch": (
        "Traceback (most recent call last):\n  File 'a'\nAssertionError: fp8 needs fp8_base\n"
        "Traceback (most recent call last):\n  File 'launch.py'\nsubprocess.CalledProcessError: Command '[...]' returned non-zero "
        "exit status 1.\n",
        "AssertionError: fp8 needs fp8_base",
    ),
    "an error that ends at a traceback": ("ERROR: no space\nTraceback (most recent call last):\n  File 'a'\nno exception\n", "no space"),
    "an error of many lines": ("ERROR: 1\n" + "".join(f"{n}\n" for n in range(2, 20)), "\n".join(str(n) for n in range(1, 13))),
    "only the launcher": (
        "Traceback (most recent call last):\n  File 'a'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \nlast\n",
        "File 'a'\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \nlast",
    ),
    "behind a bar that nobody closed": (
        "  0%|          | 0/3 [00:00<?, ?it/s]Traceback (most recent call last):\n  File 'a'\n    ^^^^^^\nAttributeError: no tell\n"
        "  0%|          | 0/3 [00:00<?, ?it/s]\n",
        "AttributeError: no tell",
    ),
    "a message behind a bar": ("steps:  1%|  | 1/3 [00:09<00:18, 9.1s/it, avr_loss=1]ERROR: the disk is full\n", "the disk is full"),
    "only words": ("something\nlast words\n", "something\nlast words"),
    "the last three of many": ("1\n\n2\n3\n\n4\n", "2\n3\n4"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_real_error_is_found(part: Any, case: str) -> None:
    text, expected = CASES[case]
    assert part("nodes.jobs.errors").last_error(text) == expected


def test_out_of_memory_comes_with_advice(part: Any) -> None:
    text = "Traceback (most recent call last):\n  File 'a'\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert "gradient checkpointing" in part("nodes.jobs.errors").last_error(text)


def test_what_a_stop_would_lose_and_how_it_goes_on_is_followed(follower: Any) -> None:
    progress = follower.progress
    follower.feed_metrics('{"event": "keep", "what": "7 steps"}\n')
    assert progress.keep == "7 steps" and not progress.heard
    follower.feed_metrics('{"event": "stopping", "file": "cat-state", "content": "the state", "bytes": 12, "total": 99}\n')
    assert (progress.heard, progress.file, progress.content, progress.bytes, progress.expected) == (True, "cat-state", "the state", 12, 99)
    follower.feed_metrics('{"event": "keep", "what": ""}\n{"event": "ended", "outcome": "stopped", "text": "saved"}\n')
    assert (progress.keep, progress.outcome) == ("", "saved")


def test_every_change_is_seen(follower: Any) -> None:
    for text in (
        '{"event": "keep", "what": "x"}\n',
        '{"event": "step", "step": 1, "total": 9, "loss": 1.0}\n',
        '{"event": "sample", "path": "x"}\n',
    ):
        before = follower.progress.version
        follower.feed_metrics(text)
        assert follower.progress.version > before
    for text in (b"saving checkpoint: a\n", b"steps:  50%|##| 4/8 [00:00<00:07]\n", b"12it [00:03,  3.91it/s]\n", b"model saved\n"):
        before = follower.progress.version
        follower.feed_log(text)
        assert follower.progress.version > before, text


def test_a_file_is_being_written_until_the_next_step(follower: Any) -> None:
    follower.feed_log(b"steps:  50%|##| 4/8 [00:00<00:07]\nsaving checkpoint: /out/cat.safetensors\n")
    assert follower.progress.file == "/out/cat.safetensors"
    follower.feed_log(b"steps:  62%|##| 5/8 [00:00<00:07]\n")
    assert follower.progress.file == ""
    follower.feed_log(b"saving state\n")
    assert follower.progress.file == "the state"


def test_the_first_loss_of_a_step_counts_and_steps_never_go_back(follower: Any) -> None:
    follower.feed_log(b"steps:  62%|##| 5/8 [00:00<00:07,  1.10s/it, avr_loss=0.25]\n")
    follower.feed_log(b"steps:  62%|##| 5/8 [00:00<00:07,  1.10s/it, avr_loss=0.75]\n")
    assert follower.progress.losses == {5: 0.25}
    follower.feed_metrics('{"event": "step", "step": 3, "total": 8, "loss": 0.5}\n')
    assert (follower.progress.step, follower.progress.total, follower.progress.losses) == (5, 8, {5: 0.25, 3: 0.5})


def test_phases_of_a_training_leave_its_numbers(follower: Any) -> None:
    follower.feed_log(b"10%|#| 1/10 [00:00<00:07]\nLoading VAE from /m/vae.safetensors\n")
    assert (follower.progress.phase, follower.progress.step, follower.progress.total) == ("loading the VAE", 0, None)
    follower.feed_log(b"steps:  50%|##| 4/8 [00:00<00:07]\nepoch 2/3\ngenerating sample images\n")
    assert (follower.progress.phase, follower.progress.step, follower.progress.total) == ("making a sample", 4, 8)
    follower.feed_log(b"steps: 100%|##| 8/8 [00:00<00:00]\n")
    assert follower.progress.text == "training · 8/8", "nothing is left"
