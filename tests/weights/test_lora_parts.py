"""Parts of fused layers split and put together, and DoRA's magnitudes in one form, in numbers worked out here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from musubi_backend.errors import UserError
from musubi_backend.lora.parts import LoRAWeights, Part, fuse, fusible, number, split, usual
from musubi_backend.lora.shapes import ALPHA, DORA, DOWN, UP, changes_weight, kind_of, size_of

Numbers = npt.NDArray[np.float32]
WIDTH, RANK = 4, 2


def held_weights(alpha: float | None = None, **parts: Numbers) -> LoRAWeights:
    names = {"down": DOWN, "up": UP, "dora": DORA}
    held = {names.get(name, name): Part("F32", value.shape, lambda value=value: value) for name, value in parts.items()}  # type: ignore[misc]
    return LoRAWeights(held if alpha is None else {**held, ALPHA: number(alpha, "F32")}, "a file: a layer", alpha)


def made(one: LoRAWeights, name: str) -> Numbers:
    return np.asarray(one.parts[name].make(), np.float32)


def random(*shape: int) -> Numbers:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def lora_delta(one: LoRAWeights) -> Numbers:
    return np.asarray(one.scale * (made(one, UP) @ made(one, DOWN)), np.float32)


def loha_delta(one: LoRAWeights) -> Numbers:
    first, second = (made(one, f"hada_w{n}_a") @ made(one, f"hada_w{n}_b") for n in (1, 2))
    return np.asarray(one.scale * first * second, np.float32)


def test_biases_and_magnitudes_are_split_with_their_rows() -> None:
    rows = 3 * WIDTH
    bias, magnitudes, up = np.arange(rows, dtype=np.float32), random(rows, 1), random(rows, RANK)
    parts = split(held_weights(3.0, up=up, down=random(RANK, WIDTH), diff_b=bias, dora=magnitudes), 3)
    for number_of, part in enumerate(parts):
        own = slice(number_of * WIDTH, (number_of + 1) * WIDTH)
        for name, whole in ((UP, up), ("diff_b", bias), (DORA, magnitudes)):
            np.testing.assert_array_equal(made(part, name), whole[own])
        assert part.scale == 1.5
    again = fuse(parts, "x")
    for name, whole in ((UP, up), ("diff_b", bias), (DORA, magnitudes)):
        np.testing.assert_array_equal(made(again, name), whole)
    with pytest.raises(UserError, match="a magnitude for each input of a fused layer"):
        split(held_weights(3.0, up=up, down=random(RANK, WIDTH), dora=random(1, WIDTH)), 3)


def test_parts_with_one_down_factor_and_alphas_of_their_own_keep_their_deltas() -> None:
    down = random(RANK, WIDTH)
    parts = [held_weights(alpha, up=random(WIDTH, RANK) * alpha, down=down) for alpha in (1.0, 4.0, -2.0)]
    np.testing.assert_allclose(lora_delta(fuse(parts, "x")), np.concatenate([lora_delta(part) for part in parts]), rtol=1e-5)
    alike = [held_weights(4.0, up=random(WIDTH, RANK), down=down) for _ in range(3)]
    assert fuse(alike, "x").rank == RANK, "no rank is added where they are alike"


@pytest.mark.parametrize("alphas", [(1.0, 4.0, -2.0), (3.0, 3.0, 3.0), (None, 1.0, None)])
def test_lohas_are_fused_with_their_alphas(alphas: tuple[float | None, ...]) -> None:
    shapes = {"a": (WIDTH, RANK), "b": (RANK, WIDTH)}
    halves = [{f"hada_w{n}_{half}": random(*shape) + n + seed for n in (1, 2) for half, shape in shapes.items()} for seed in range(3)]
    parts = [held_weights(alpha, **own) for alpha, own in zip(alphas, halves, strict=True)]
    np.testing.assert_allclose(loha_delta(fuse(parts, "x")), np.concatenate([loha_delta(part) for part in parts]), rtol=1e-4)


def test_what_is_not_one_lora_of_the_whole_layer() -> None:
    factors = {"up": random(WIDTH, RANK), "down": random(RANK, WIDTH)}
    plain, biased = held_weights(**factors), held_weights(**factors, diff_b=random(WIDTH))
    by_output, by_input = held_weights(**factors, dora=random(WIDTH, 1)), held_weights(**factors, dora=random(1, WIDTH))
    assert fusible([plain, None, plain]) and fusible([biased] * 3) and fusible([by_output] * 3)
    for parts in ([biased, None, biased], [biased, plain, biased], [by_input] * 3, [by_output, plain, by_output]):
        assert not fusible(parts)
        with pytest.raises(UserError, match="cannot be fused into one layer"):
            fuse(parts, "x")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((6,), (6, 1)), ((6, 1), (6, 1)), ((1, 3), (1, 3)), ((1, 3, 1, 1, 1), (1, 3)), ((1, 6, 1, 1, 1), (6, 1)), ((6, 1, 1, 1, 1), (6, 1))],
)
def test_magnitudes_are_of_outputs_or_inputs(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Of a convolution with 3 inputs and 6 outputs: PEFT has those of outputs as [1, out, 1, 1, 1]."""
    one = held_weights(up=random(6, 2, 1, 1, 1), down=random(2, 3, 1, 2, 2), dora=random(*shape))
    assert usual(one).parts[DORA].shape == wanted


@pytest.mark.parametrize(
    ("shapes", "kind", "size"),
    [
        ({DOWN: (4, 6), UP: (8, 4)}, "LoRA", (8, 6)),
        ({DOWN: (4, 6, 1, 2), UP: (8, 4, 1, 1)}, "LoRA", (8, 12)),
        ({DOWN: (4, 6)}, "", None),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)}, "LoHa", (8, 6)),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6)}, "", None),
        ({"lokr_w1": (2, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 5)}, "LoKr", (8, 15)),
        ({"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 3), "lokr_w2": (4, 5)}, "LoKr", (8, 15)),
        ({"lokr_w1": (2, 3)}, "", None),
        ({"diff": (8, 3, 2)}, "full difference", (8, 6)),
        ({"set_weight": (8,)}, "full difference", (8, 1)),
        ({"diff_b": (8,)}, "full difference", None),
    ],
)
def test_kind_and_size_follow_from_names_and_shapes(shapes: dict[str, tuple[int, ...]], kind: str, size: tuple[int, int] | None) -> None:
    assert kind_of(shapes) == kind
    assert size_of(shapes) == size
    assert changes_weight(shapes) == (size is not None)


@pytest.mark.parametrize("dtype", ["I32", "U8", "BOOL"])
def test_factors_in_whole_numbers_are_rejected(dtype: str) -> None:
    parts = {name: Part(dtype, (2, 2), lambda: np.ones((2, 2), np.int32)) for name in (DOWN, UP)}
    with pytest.raises(UserError, match=f"a file: a layer: lora_.*weight is in {dtype}"):
        LoRAWeights({**parts, ALPHA: number(1.0, "F32")}, "a file: a layer", 1.0).check()
