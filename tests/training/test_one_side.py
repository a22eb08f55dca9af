"""A batch of two experts lies on the side of its first item, whatever is drawn again."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.training.timesteps import on_one_side
from torch import Tensor


@pytest.mark.parametrize(("first", "fits"), [(0.9, 0.7), (0.1, 0.2)])
def test_what_is_on_the_other_side_is_drawn_again_until_it_is_not(first: float, fits: float) -> None:
    drawn = iter([1 - first, fits])

    def draw(count: int) -> tuple[Tensor, Tensor]:
        assert count == 1
        t = torch.tensor([next(drawn)])
        return t, t * 1000

    given = torch.tensor([first, 1 - first])
    t, timesteps = on_one_side(given, given * 1000, 0.5, draw, (given[:1], given[:1] * 1000))
    torch.testing.assert_close(t, torch.tensor([first, fits]))
    torch.testing.assert_close(timesteps, t * 1000)
    assert torch.equal(given, torch.tensor([first, 1 - first])), "what was given stays"


def test_the_side_can_be_given() -> None:
    t = torch.tensor([0.9, 0.1])
    t, timesteps = on_one_side(
        t,
        t * 1000,
        0.5,
        lambda count: (torch.full((count,), 0.3), torch.full((count,), 300.0)),
        (torch.tensor([0.2]), torch.tensor([200.0])),
    )
    torch.testing.assert_close(t, torch.tensor([0.3, 0.1]))
    assert timesteps.tolist() == [300, 100]


def test_what_never_falls_on_that_side_takes_the_firsts_place() -> None:
    first = (torch.tensor([0.8]), torch.tensor([800.0]))
    t, timesteps = on_one_side(
        torch.tensor([0.9, 0.1]), torch.tensor([900.0, 100.0]), 0.5,
        lambda count: (torch.full((count,), 0.2), torch.full((count,), 200.0)), first,
    )  # fmt: skip
    torch.testing.assert_close(t, torch.tensor([0.9, 0.8]))
    assert timesteps.tolist() == [900, 800]


def test_the_boundary_itself_is_high_noise() -> None:
    t = torch.tensor([0.5, 0.75])
    same, _ = on_one_side(t, t * 1000, 0.5, lambda count: pytest.fail("nothing is to be drawn again"), (t[:1], t[:1] * 1000))
    assert torch.equal(same, t)
