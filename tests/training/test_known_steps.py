"""The loop against numbers worked out here: a model of one number, noise and timesteps that are given, plain SGD.

The model predicts k * input, with k = up * down of a LoRA of rank 1 on a weight of 0. With input x and target y, the loss is
mean((k x - y)^2), and its gradients follow by the chain rule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend import job
from musubi_backend.architectures.card import HIGH, LOW
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.dataset.batches import BatchDescription, CachedItem
from musubi_backend.errors import StopRequested, UserError
from musubi_backend.layers.blocks import Checkpointed, Prepared
from musubi_backend.layers.experts import Experts
from musubi_backend.layers.linear import Linear
from musubi_backend.lora.expert_networks import ExpertNetworks
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool
from musubi_backend.seeds import derived_seed
from musubi_backend.training import optimizers, schedules, window
from musubi_backend.training.checkpoints import Checkpoints
from musubi_backend.training.distributed import OneProcess, Processes
from musubi_backend.training.lean_torch import leave_compiler_out
from musubi_backend.training.loop import Loop
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.training.run import Run
from musubi_backend.training.samples import Samples
from musubi_backend.training.saved_states import Position
from musubi_backend.training.settings import LoggingSettings, TimestepSampling, TrainingSettings
from musubi_backend.training.state import TrainingState
from musubi_backend.training.trackers import Trackers
from musubi_backend.training.validation import LEVELS, Validation, levels
from musubi_backend.training.window import Drawn
from musubi_backend.weights.safetensors_file import load, read_header
from torch import Tensor, nn

RATE, T = 0.1, 0.25
LATENTS = [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25], [2.0, 1.0]]
NOISE = [[0.5, 1.0], [-1.0, 0.75], [2.0, -0.5], [0.25, -1.25], [1.5, 0.5], [-0.75, 1.25], [0.5, -2.0], [1.0, 1.0]]
ADAPTER = "lora_unet_block_linear"


class Descent(torch.optim.Optimizer):
    """Plain SGD; torch's own loads its compiler first, which takes seconds."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is not None:
                    one -= group["lr"] * one.grad


@pytest.fixture(autouse=True)
def optimizers_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (Descent, Modes):
        monkeypatch.setattr(torch.optim, one.__name__, one, raising=False)


class WanAttentionBlock(nn.Module):
    """A block by the name in Wan's card."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(1, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x.unsqueeze(-1)).squeeze(-1)
        return result


class OneNumber(Checkpointed):
    """Predicts its input times one number."""

    def __init__(self) -> None:
        super().__init__()
        self.block = WanAttentionBlock()

    def prepared(self, x: Tensor) -> Prepared:
        return Prepared([self.block], x, (), lambda x: x)


class Scaled(Wan):
    """Wan, but for its model; latents are halved, so that leaving that out shows."""

    def scale_latents(self, latents: Tensor) -> Tensor:
        return latents * 0.5

    def inputs(self, transformer: nn.Module, noisy: Tensor, *rest: Any, **more: Any) -> Any:
        return (noisy,), {}


class GivenDraws(StepRandomness):
    """Noise by the number of the micro-step, and one noise level."""

    def __init__(self) -> None:
        super().__init__(0, 0, torch.device("cpu"))
        self.asked: list[tuple[Any, float | None]] = []

    def start(self, micro_step: int) -> None:
        super().start(micro_step)
        self.micro_step = micro_step

    def noise(self, shape: Sequence[int]) -> Tensor:
        return torch.tensor(NOISE[self.micro_step]).view(1, 1, 1, 1, 2)

    def levels(self, sampling: TimestepSampling, shape: Sequence[int], u: Any, boundary: float | None, step: int) -> tuple[Tensor, Tensor]:
        self.asked.append((u, boundary))
        return torch.tensor([T]), torch.tensor([T * 1000 + 1])


class GivenItems:
    """Batches of one item each, in the same order in every epoch."""

    def __init__(self, count: int, broken: Mapping[int, float] | None = None) -> None:
        self.latents = [torch.tensor(LATENTS[index % len(LATENTS)]).view(1, 1, 1, 1, 2) for index in range(count)]
        for index, value in (broken or {}).items():
            self.latents[index] = torch.full_like(self.latents[index], value)
        self.asked: list[tuple[int, int]] = []

    def batches(self, seed: int, epoch: int) -> list[BatchDescription]:
        self.asked.append((seed, epoch))
        paths = [Path(f"item{index}") for index in range(len(self.latents))]
        return [BatchDescription((CachedItem((0,), path, path),)) for path in paths]

    def collate(self, batch: BatchDescription) -> dict[str, Any]:
        return {"latents": self.latents[int(batch.names[0].removeprefix("item"))], "timesteps": [0.125]}


class Shown(Trackers):
    """Keeps what would go to a tracker."""

    def __init__(self) -> None:
        super().__init__(LoggingSettings(), {})
        self.rows: list[tuple[int, Mapping[str, float]]] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def of(self, tag: str) -> list[float]:
        return [values[tag] for _, values in self.rows if tag in values]


class Small:
    """A run of the one-number model, ready to start."""

    def __init__(
        self, folder: Path, *flags: str, items: int = 4, dtype: torch.dtype = torch.float32, processes: Processes | None = None,
        broken: Mapping[int, float] | None = None, up: float = 0.6, down: float = 0.8, **values: Any,
    ) -> None:  # fmt: skip
        settings = {
            "task": "t2v-1.3B", "dit": "x", "dataset_config": "x", "output_dir": folder, "output_name": "cat",
            "network_module": "networks.lora_wan", "optimizer_type": "Descent", "learning_rate": RATE, "max_grad_norm": 0,
            "max_train_steps": 4, "seed": 7, "mixed_precision": "no", "timestep_sampling": "uniform", **values,
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in (f"--{key}", *(value if isinstance(value, list) else [str(value)]))]
        args = read(tool("wan_train_network"), ["--sdpa", *words, *flags])
        leave_compiler_out()
        wan, model = Scaled(), OneNumber()
        model.requires_grad_(False)
        self.network = LoRANetwork.create(model, CARD, rank=1, alpha=1.0, dropout=args.network_dropout, network_args=args.network_args)
        self.network.load_state_dict(
            {f"{ADAPTER}.lora_up.weight": torch.tensor([[up]]), f"{ADAPTER}.lora_down.weight": torch.tensor([[down]]),
             f"{ADAPTER}.alpha": torch.tensor(1.0)}
        )  # fmt: skip
        self.network.train()
        settings = TrainingSettings.read(args)
        choice = optimizers.build(settings.optimizer, args.learning_rate, self.network.parameter_groups(args.learning_rate))
        schedule = schedules.build(settings.schedule, choice.optimizer, args.max_train_steps, choice.schedule_free)
        self.shown = Shown()
        windows = math.ceil(items / args.gradient_accumulation_steps)
        folder.mkdir(parents=True, exist_ok=True)
        self.items = GivenItems(items, broken)
        self.run = Run(
            settings, wan, self.items, processes or OneProcess(torch.device("cpu")), dtype, model, self.network, choice,  # type: ignore[arg-type]
            schedule, 7, args.max_train_steps, math.ceil(args.max_train_steps / windows), Checkpoints(settings, CARD, {}),
            Samples(settings.sampling, settings.saving, wan), self.shown, {"run": "r"},
        )  # fmt: skip
        self.loop = Loop(self.run)
        self.draws = self.loop.randomness = GivenDraws()
        self.after: list[list[float]] = []
        choice.optimizer.register_step_post_hook(lambda *_: self.after.append(self.numbers))

    @property
    def numbers(self) -> list[float]:
        """[up, down]"""
        state = self.network.state_dict()
        return [state[f"{ADAPTER}.lora_{part}.weight"].item() for part in ("up", "down")]


class Expected:
    """The same run in plain numbers."""

    def __init__(self, up: float = 0.6, down: float = 0.8) -> None:
        self.up, self.down = up, down
        self.losses: list[float] = []

    def step(self, pairs: Sequence[tuple[int, int]], accumulate: int = 1, rate: float = RATE, limit: float | None = None) -> list[float]:
        """One optimizer step over (item, micro-step) pairs; returns [up, down] after it."""
        for_up = for_down = 0.0
        losses = []
        for item, micro_step in pairs:
            clean = [0.5 * value for value in LATENTS[item]]
            x = [(1 - T) * c + T * n for c, n in zip(clean, NOISE[micro_step], strict=True)]
            y = [n - c for c, n in zip(clean, NOISE[micro_step], strict=True)]
            k = self.up * self.down
            losses.append(sum((k * a - b) ** 2 for a, b in zip(x, y, strict=True)) / 2)
            slope = sum(2 * a * (k * a - b) for a, b in zip(x, y, strict=True)) / 2 / accumulate
            for_up, for_down = for_up + slope * self.down, for_down + slope * self.up
        if limit is not None:
            share = min(1.0, limit / math.hypot(for_up, for_down))
            for_up, for_down = for_up * share, for_down * share
        self.up, self.down = self.up - rate * for_up, self.down - rate * for_down
        self.losses.append(sum(losses) / len(losses))
        return [self.up, self.down]


def test_each_batch_is_one_step_of_gradient_descent(tmp_path: Path) -> None:
    small, expected = Small(tmp_path, max_train_steps=6), Expected()
    small.loop.start()
    wanted = [expected.step([(step % 4, step)]) for step in range(6)]
    torch.testing.assert_close(small.after, wanted)
    assert small.loop.history == pytest.approx(expected.losses, rel=1e-5)
    assert small.shown.of("loss/current") == pytest.approx(expected.losses, rel=1e-5)
    assert small.loop.position == Position(step=6, epoch=1, batch=2, micro_step=6)
    assert small.items.asked == [(7, 1), (7, 2)], "the order of each epoch is its own"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["plain", "with a scaler"])
@pytest.mark.parametrize("by_block", [False, True], ids=["one by one", "by block"])
def test_a_window_is_the_mean_of_its_batches_and_a_short_last_one_counts_for_less(
    by_block: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Three batches in windows of two: as in musubi-tuner, the lone third is divided by two as well."""
    flags = ["--accumulate_by_block", "--blocks_to_swap", "1"] if by_block else []
    small, expected = Small(tmp_path, *flags, items=3, gradient_accumulation_steps=2, dtype=dtype), Expected()
    assert small.loop.at_once == (2 if by_block else 1)
    small.loop.start()
    windows = [[(0, 0), (1, 1)], [(2, 2)], [(0, 3), (1, 4)], [(2, 5)]]
    torch.testing.assert_close(small.after, [expected.step(window, accumulate=2) for window in windows])
    assert small.loop.history == pytest.approx(expected.losses, rel=1e-5)
    assert small.loop.position == Position(step=4, epoch=2, batch=0, micro_step=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["plain", "with a scaler"])
@pytest.mark.parametrize("limit", [0, 0.01, 1000])
def test_gradients_are_clipped_to_the_limit_after_unscaling(limit: float, dtype: torch.dtype, tmp_path: Path) -> None:
    small, expected = Small(tmp_path, max_grad_norm=limit, dtype=dtype), Expected()
    small.loop.start()
    torch.testing.assert_close(small.after, [expected.step([(step, step)], limit=limit or None) for step in range(4)])
    if limit == 0.01:
        start = [[0.6, 0.8], *small.after]
        moves = [math.dist(one, other) for one, other in itertools.pairwise(start)]
        assert moves == pytest.approx([RATE * 0.01] * 4, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_step_that_overflows_is_skipped_and_the_scale_halved(tmp_path: Path) -> None:
    small = Small(tmp_path, max_train_steps=2, dtype=torch.float16, broken={0: 1e18})
    assert small.loop.scaler is not None
    before = small.loop.scaler.get_scale()
    small.loop.start()
    assert small.loop.scaler.get_scale() == before / 2 and len(small.after) == 1, "one step was skipped, one was done"


def test_the_rate_of_a_step_is_the_one_it_used(tmp_path: Path) -> None:
    small, expected = Small(tmp_path, lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6), Expected()
    small.loop.start()
    rates = [RATE * share for share in (0, 0.5, 1, 0.75, 0.5, 0.25)]
    assert small.shown.of("lr/unet") == pytest.approx(rates)
    torch.testing.assert_close(small.after, [expected.step([(step % 4, step)], rate=rate) for step, rate in enumerate(rates)])


def test_checkpoints_hold_the_weights_of_their_step_and_the_oldest_go(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"items": 2, "max_train_steps": 8, "save_every_n_epochs": 1, "save_last_n_epochs": 2}
    small = Small(tmp_path, save_every_n_steps=2, save_last_n_steps=3, **settings)
    small.loop.start()
    # the end is cat.safetensors; epoch 4, the last, gets no file of its own
    saved = {path.stem: (load(path), read_header(path).metadata) for path in tmp_path.glob("*.safetensors")}
    assert set(saved) == {"cat", "cat-000002", "cat-000003", "cat-step00000006", "cat-step00000008"}
    # epochs count from 1, but from 0 in files that are named by their step, as in musubi-tuner
    for stem, step, epoch in (
        ("cat", 8, 4), ("cat-000002", 4, 2), ("cat-000003", 6, 3), ("cat-step00000006", 6, 2), ("cat-step00000008", 8, 3)
    ):  # fmt: skip
        tensors, metadata = saved[stem]
        assert tensors[f"{ADAPTER}.lora_up.weight"].item() == pytest.approx(small.after[step - 1][0]), stem
        assert (metadata["ss_steps"], metadata["ss_epoch"]) == (str(step), str(epoch)), stem


def test_the_average_is_of_one_epochs_batches_also_after_resuming(tmp_path: Path) -> None:
    whole = Small(tmp_path / "whole", max_train_steps=8, learning_rate=1e-12)
    whole.loop.start()
    losses = whole.loop.history
    of_an_epoch = [sum(losses[max(0, step - 4) : step]) / min(4, step) for step in range(1, 9)]
    assert whole.shown.of("loss/average") == pytest.approx(of_an_epoch)
    assert whole.shown.of("loss/epoch") == pytest.approx([of_an_epoch[3], of_an_epoch[7]])
    for step in (2, 6):
        first = Small(tmp_path / f"first {step}", max_train_steps=step, learning_rate=1e-12)
        first.loop.start()
        state: TrainingState = first.loop.state()
        rest = Small(tmp_path / f"rest {step}", max_train_steps=8, learning_rate=1e-12)
        rest.loop.go_to(state.position, state.losses, state.history)
        rest.loop.start()
        assert rest.shown.of("loss/average") == pytest.approx(of_an_epoch[step:])
        assert rest.loop.history == pytest.approx(losses)


@pytest.mark.parametrize("count", [1, 2])
def test_a_state_inside_a_window_knows_nothing_of_it(count: int, tmp_path: Path) -> None:
    """The average of the first epoch leaves out batches that will come again."""
    processes = None if count == 1 else Halves(torch.device("cpu"))
    last = 4 * count - 1
    small = Small(tmp_path, items=4 * count, gradient_accumulation_steps=2, broken={last: math.nan}, processes=processes)
    with pytest.raises(UserError, match=f"the loss is not finite at step 2, training item{last}"):
        small.loop.start()
    state = small.loop.state()
    assert len(state.losses) == 2 and state.position == Position(step=1, epoch=0, batch=2 * count, micro_step=2)


@pytest.mark.parametrize(("broken", "what"), [({2: math.nan}, "loss .* training item2"), ({2: 4e18}, "gradient .* training item2, item3")])
def test_a_window_that_is_not_finite_changes_nothing_wherever_it_began(broken: dict[int, float], what: str, tmp_path: Path) -> None:
    """Its losses are read at its end: the first of two is named, of two gradients both."""
    slope: dict[str, Any] = {"up": 0.0, "down": 1e4} if broken[2] > 1 else {}
    small = Small(tmp_path, gradient_accumulation_steps=2, broken=broken, learning_rate=1e-12, **slope)
    with pytest.raises(UserError, match=what) as caught:
        small.loop.start()
    assert ("item3" in str(caught.value)) == ("item3" in what)
    assert len(small.after) == 1 and small.numbers == small.after[0] and len(small.loop.state().losses) == 2


def test_a_stop_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    small = Small(tmp_path)
    job.request_stop()
    with pytest.raises(StopRequested, match="stopped before a step was done; there is nothing new to save"):
        small.loop.start()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_keeps_no_graph(tmp_path: Path) -> None:
    small = Small(tmp_path)
    assert not small.loop._backward(small.items.collate(small.items.batches(7, 1)[0]), 0).requires_grad


def test_losses_are_weighted_by_the_timestep_that_the_model_is_given(tmp_path: Path) -> None:
    small, expected = Small(tmp_path, weighting_scheme="cosmap", max_train_steps=1), Expected()
    small.loop.start()
    expected.step([(0, 0)])
    sigma = (T * 1000 + 1) / 1000
    assert small.loop.history == pytest.approx([expected.losses[0] * 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))], rel=1e-5)


def test_noise_levels_are_asked_for_with_the_strata_of_the_batch_and_the_boundary_of_the_experts(tmp_path: Path) -> None:
    small = Small(tmp_path, max_train_steps=1)
    small.loop.start()
    assert small.draws.asked == [([0.125], None)]
    small.run.transformer = Experts({HIGH: lambda device: OneNumber(), LOW: lambda device: OneNumber()}, 0.875, torch.device("cpu"))
    assert Loop(small.run).boundary == 0.875


def test_a_finite_loss_with_infinite_gradients_stops_the_training_by_name(tmp_path: Path) -> None:
    """The loss is about 1e36 and so is its slope; the gradient of up is that times down, which does not fit into float32."""
    small = Small(tmp_path, broken={1: 4e18}, up=0.0, down=1e4, learning_rate=1e-12)
    with pytest.raises(UserError, match="the gradient is not finite at step 2, training item1") as caught:
        small.loop.start()
    assert "item0" not in str(caught.value) and len(small.after) == 1
    assert all(math.isfinite(value) for value in small.numbers)


def test_norms_are_limited_after_each_step_and_reported(tmp_path: Path) -> None:
    small, expected = Small(tmp_path, max_train_steps=2, scale_weight_norms=0.3), Expected()
    small.loop.start()
    first = expected.step([(0, 0)])
    torch.testing.assert_close(small.after[0], first)
    share = 0.3 / abs(first[0] * first[1])
    expected.up, expected.down = (value * share**0.5 for value in first)
    second = expected.step([(1, 1)])
    torch.testing.assert_close(small.after[1], second)
    assert small.shown.of("max_norm/max_key_norm") == pytest.approx([0.3, abs(second[0] * second[1])])
    assert small.shown.of("max_norm/keys_scaled") == [1, 0]


class Modes(Descent):
    """Notes in which mode it is, as schedule-free optimizers have them."""

    training = False

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False


class Watched(Samples):
    """Samples that keep in which modes they were made, and what the model predicted."""

    def __init__(self, small: Small, steps: Sequence[int]) -> None:
        self.small, self.steps = small, steps
        self.made: list[tuple[int, bool, bool, Tensor]] = []

    def due(self, step: int, epoch: int | None = None) -> bool:
        return epoch is None and step in self.steps

    def sampled(self, transformer: nn.Module, step: int, device: torch.device, each: Any = None) -> list[Tensor]:
        training: bool = self.small.run.choice.optimizer.training  # type: ignore[attr-defined]
        self.made.append((step, self.small.network.training, training, transformer(torch.ones(1, 64))))
        return []

    def write(self, latents: Sequence[Tensor], step: int, epoch: int | None, device: torch.device) -> list[Path]:
        return []


def test_samples_and_checkpoints_see_the_weights_meant_for_them_and_training_goes_on_in_its_own_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first step and after the last."""
    flags = {"optimizer_type": "Modes", "network_dropout": 0.9, "save_every_n_steps": 2, "learning_rate": 1e-12}
    small = Small(tmp_path, **flags)
    optimizer: Any = small.run.choice.optimizer
    samples = small.run.samples = Watched(small, (0, 1, 4))
    saved: list[bool] = []
    write = small.run.checkpoints.save_lora

    def watched(*rest: Any, **named: Any) -> Any:
        saved.append(optimizer.training)
        return write(*rest, **named)

    monkeypatch.setattr(small.run.checkpoints, "save_lora", watched)
    stepped: list[tuple[bool, bool]] = []
    optimizer.register_step_post_hook(lambda *_: stepped.append((optimizer.training, small.network.training)))
    small.loop.start()
    assert [(step, network, mode) for step, network, mode, _ in samples.made] == [(0, False, False), (1, False, False), (4, False, False)]
    for _, _, _, prediction in samples.made:
        torch.testing.assert_close(prediction.detach(), torch.full((1, 64), 0.48))  # no number is dropped
    assert saved == [False] * 3 and stepped == [(True, True)] * 4


def test_no_samples_are_made_at_first_where_a_training_goes_on(tmp_path: Path) -> None:
    small = Small(tmp_path, optimizer_type="Modes", max_train_steps=3)
    samples = small.run.samples = Watched(small, (0,))
    small.loop.go_to(Position(step=2, epoch=0, batch=2, micro_step=2), [1.0, 1.0], [1.0, 1.0])
    small.loop.start()
    assert len(small.after) == 1 and samples.made == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["plain", "with a scaler"])
def test_steps_in_which_every_lora_module_is_dropped_count_and_change_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    small = Small(tmp_path, network_args=["module_dropout=0.999999"], dtype=dtype)
    small.loop.start()
    assert small.loop.position.step == 4 and small.after == []
    assert small.numbers == pytest.approx([0.6, 0.8])


def test_dropout_acts_in_training(tmp_path: Path) -> None:
    small, plain = Small(tmp_path, network_dropout=0.5, max_train_steps=8), Small(tmp_path, max_train_steps=8)
    for one in (small, plain):
        one.loop.start()
    assert small.loop.history[0] != pytest.approx(plain.loop.history[0], rel=1e-4)
    again = Small(tmp_path, network_dropout=0.5, max_train_steps=8)
    again.loop.start()
    assert again.loop.history == small.loop.history, "and follows the seed"


class Halves(OneProcess):
    """The second of two processes, whose partner always has the same numbers plus 1 (gradients) or plus 2 (losses)."""

    rank, count, is_main = 1, 2, False

    def average_gradients(self, parameters: Any) -> None:
        for one in parameters:
            one.grad += 0.5

    def mean(self, values: Tensor) -> Tensor:
        return values + 1


def test_one_of_two_processes_trains_every_second_batch_with_the_mean_gradient_and_reports_nothing(tmp_path: Path) -> None:
    small, expected = Small(tmp_path, processes=Halves(torch.device("cpu")), max_train_steps=2), Expected()
    small.loop.start()
    wanted = []
    for step, item in enumerate((1, 3)):
        up, down = expected.step([(item, step)])
        expected.up, expected.down = up - RATE * 0.5, down - RATE * 0.5
        wanted.append([expected.up, expected.down])
    torch.testing.assert_close(small.after, wanted)
    assert small.loop.history == pytest.approx([loss + 1 for loss in expected.losses])
    assert small.loop.position == Position(step=2, epoch=1, batch=0, micro_step=2)
    assert not small.shown.of("loss/current")
    together = Small(tmp_path / "windows", processes=Halves(torch.device("cpu")), max_train_steps=1, gradient_accumulation_steps=2)
    together.loop.start()
    expected = Expected()
    expected.step([(1, 0), (3, 1)])
    assert together.loop.history == pytest.approx([expected.losses[0] + 1])


def test_one_of_two_processes_that_ends_inside_an_epoch_counts_the_batches_of_both_and_goes_on_behind_them(tmp_path: Path) -> None:
    first = Small(tmp_path / "first", processes=Halves(torch.device("cpu")), max_train_steps=1)
    first.loop.start()
    state = first.loop.state()
    assert state.position == Position(step=1, epoch=0, batch=2, micro_step=1) and len(state.losses) == 1
    rest, expected = Small(tmp_path / "rest", processes=Halves(torch.device("cpu")), max_train_steps=2), Expected()
    rest.loop.go_to(state.position, state.losses, state.history)
    rest.loop.start()
    up, down = expected.step([(3, 1)])  # the second pair of batches; noise continues with the micro-step
    torch.testing.assert_close(rest.after, [[up - RATE * 0.5, down - RATE * 0.5]])


class FirstHalf(OneProcess):
    """The first or second of two processes, whose partner has nothing."""

    count = 2

    def __init__(self, rank: int) -> None:
        super().__init__(torch.device("cpu"))
        self.rank = rank

    def mean(self, values: Tensor) -> Tensor:
        return values / 2


def held(small: Small, count: int = 3) -> Validation:
    small.run.held = tuple(batch.items[0] for batch in small.items.batches(0, 0)[:count])
    return Validation(small.run)


def test_the_validation_loss_is_that_of_the_items_at_their_own_noise_without_dropout_and_leaves_no_trace(tmp_path: Path) -> None:
    small = Small(tmp_path, network_dropout=0.5, weighting_scheme="cosmap", max_validation_steps=2)
    losses = []
    for item, clean in enumerate(LATENTS[:2]):
        for number, level in enumerate(levels(small.run.settings.timesteps, (1, 2), None)):
            noise = torch.randn(2, generator=torch.Generator().manual_seed(derived_seed(7, "validation noise", f"item{item}", number)))
            t, sigma = level.t.item(), level.timesteps.item() / 1000
            x, y = (1 - t) * 0.5 * torch.tensor(clean) + t * noise, noise - 0.5 * torch.tensor(clean)
            losses.append(((0.48 * x - y) ** 2).mean().item() * 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)))
    before = torch.random.get_rng_state()
    found = [held(small).measure(small.loop._load, small.loop._loss_at, small.loop.down.helps) for _ in range(2)]
    assert found[0] == found[1] == pytest.approx(sum(losses) / 8, rel=5e-3)  # sigma is rounded to the schedule's
    assert torch.equal(torch.random.get_rng_state(), before) and small.network.training
    assert all(one.grad is None for one in small.network.parameters()) and small.numbers == pytest.approx([0.6, 0.8])


def test_two_processes_validate_what_one_does(tmp_path: Path) -> None:
    alone, *halves = [Small(tmp_path, processes=one) for one in (None, FirstHalf(0), FirstHalf(1))]
    losses = [held(one).measure(one.loop._load, one.loop._loss_at, one.loop.down.helps) for one in (alone, *halves)]
    assert None not in losses and losses[0] == pytest.approx(sum(losses[1:]), rel=1e-12)  # type: ignore[arg-type]
    assert all(losses)


def test_of_two_experts_each_is_validated_and_they_change_place_once(tmp_path: Path) -> None:
    small, seen = Small(tmp_path, timestep_sampling="shift"), []
    small.run.transformer = Experts({HIGH: lambda device: OneNumber(), LOW: lambda device: OneNumber()}, 0.875, torch.device("cpu"))

    def loss_of(batch: Any, latents: Tensor, noise: Tensor, t: Tensor, timesteps: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(timesteps.item() / 1000 >= 0.875)
        return torch.tensor(2.0)

    assert held(small).measure(small.loop._load, loss_of, small.loop.down.helps) == pytest.approx(2.0), "shares are those of the whole"
    assert seen == sorted(seen, reverse=True) and len(seen) == 3 * LEVELS and {*seen} == {True, False}


@pytest.mark.parametrize("error", [StopRequested("stop"), UserError("a cache is gone"), RuntimeError("CUDA out of memory")])
def test_a_validation_that_ends_early_has_no_loss_and_ends_no_training(error: Exception, tmp_path: Path) -> None:
    small, asked = Small(tmp_path), []

    def loss_of(*given: Any) -> Tensor:
        asked.append(given)
        raise error

    assert held(small).measure(small.loop._load, loss_of, small.loop.down.helps) is None
    assert len(asked) == 1 and small.network.training


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({}, [0, 3, 6, 7]), ({"validate_every_n_epochs": 2}, [0, 6, 7]), ({"validate_every_n_steps": 2}, [0, 2, 4, 6, 7]),
        ({"validate_every_n_steps": 5, "validate_every_n_epochs": 1}, [0, 3, 5, 6, 7]),
    ],
)  # fmt: skip
def test_the_validation_loss_is_measured_at_the_start_when_it_is_due_and_at_the_end_once_and_told(
    flags: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    small = Small(tmp_path, items=3, max_train_steps=7, optimizer_type="Modes", learning_rate=1e-12, **flags)
    optimizer: Any = small.run.choice.optimizer
    seen: list[bool] = []
    loop = small.loop
    loop.validation = held(small, 1)
    part = loop.validation._part
    loop.validation._part = lambda *given: seen.append(optimizer.training or small.network.training) or part(*given)  # type: ignore[func-returns-value, method-assign]
    loop.start()
    rows = [(step, values["loss/validation"]) for step, values in small.shown.rows if "loss/validation" in values]
    assert [step for step, _ in rows] == steps and len({round(loss, 4) for _, loss in rows}) == 1
    assert len(seen) == LEVELS * len(steps) and not any(seen), "with the weights that are meant for it"


def test_the_loop_draws_by_the_seed_and_the_rank_of_its_process(tmp_path: Path) -> None:
    small = Small(tmp_path, processes=Halves(torch.device("cpu")))
    draws = Loop(small.run).randomness
    draws.start(3)
    assert torch.equal(draws.noise((4,)), torch.randn(4, generator=torch.Generator().manual_seed(derived_seed(7, "noise", 3, 1))))


@pytest.mark.parametrize("lora_per_expert", [False, True])
def test_only_batches_of_one_expert_pass_the_blocks_together(lora_per_expert: bool, tmp_path: Path) -> None:
    """Where both experts train one LoRA, the order of its gradients stays."""
    small = Small(tmp_path)
    small.run.transformer = Experts({HIGH: lambda device: OneNumber(), LOW: lambda device: OneNumber()}, 0.5, torch.device("cpu"))
    if lora_per_expert:
        small.run.network = ExpertNetworks({HIGH: small.network, LOW: small.network})
    zero = torch.zeros(1)
    drawn = [Drawn({}, zero, zero, zero, torch.tensor([timestep])) for timestep in (400.0, 800.0, 900.0, 300.0)]
    assert list(window.of_one_expert(small.run, drawn)) == ([[1, 2], [0, 3]] if lora_per_expert else [[0], [1, 2], [3]])
