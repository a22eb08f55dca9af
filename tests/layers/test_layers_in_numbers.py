"""The layers against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from musubi_backend.layers import mmdit
from musubi_backend.layers.attention import attention, repeated_key_biases
from musubi_backend.layers.linear import Linear
from musubi_backend.layers.norms import RMSNorm, gated_residual, modulated_norm
from musubi_backend.layers.recompute import recomputed
from musubi_backend.layers.rope import apply_rope, even_widths, grid_positions, rope_tables
from musubi_backend.layers.timestep import sinusoids
from musubi_backend.lora.modules import LoRA
from torch import Tensor, nn

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- attention


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """[B, S, H, D] -> [B, S, H * D]"""
    scores = torch.einsum("bshd,bkhd->bhsk", q, k) / math.sqrt(q.shape[-1])
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return torch.einsum("bhsk,bkhd->bshd", weights, v).flatten(2)


@pytest.mark.parametrize("mode", ["torch", "flash"])  # a bias always runs in PyTorch
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("split", [False, True])
def test_attention_adds_each_samples_bias(mode: str, rows: int, split: bool) -> None:
    q, k, v = draw(2, 3, 2, 4), draw(2, 8, 2, 4, seed=1), draw(2, 8, 2, 4, seed=2)
    bias = draw(rows, 1, 1, 8, seed=3)
    torch.testing.assert_close(attention(q, k, v, mode, bias, split), by_hand(q, k, v, bias))
    torch.testing.assert_close(attention(q, k, v, split=split), by_hand(q, k, v, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 500])
def test_a_few_keys_weigh_as_much_as_many_equal_ones(count: int, dtype: torch.dtype) -> None:
    biases = repeated_key_biases(count, dtype)
    assert sum(map(math.exp, biases)) == pytest.approx(count, rel=1e-6) and len(biases) <= count
    assert torch.tensor(biases, dtype=dtype).tolist() == list(biases)


# --- norms


@pytest.mark.parametrize(("samples", "times"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_modulated_norm_is_the_norm_times_scale_plus_shift(samples: int, times: int) -> None:
    x, scale, shift = draw(2, 3, 8), draw(samples, times, 8, seed=1), draw(samples, times, 8, seed=2)
    x = x[:samples]
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(modulated_norm(x, scale, shift, 1e-6), plain * scale + shift)


def test_the_root_mean_square_norm_divides_by_it() -> None:
    norm = RMSNorm(4, 0.25)
    nn.init.constant_(norm.weight, 3.0)
    torch.testing.assert_close(norm(torch.full((1, 4), 0.5)), torch.full((1, 4), 3 * 0.5 / math.sqrt(0.5)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_frozen_root_mean_square_norm_is_pytorchs_and_so_is_its_gradient(dtype: torch.dtype) -> None:
    norm = RMSNorm(8, 1e-6).to(dtype).requires_grad_(False)
    norm.weight.copy_(draw(8, seed=1))
    x, gradient = draw(2, 3, 8).to(dtype).requires_grad_(), draw(2, 3, 8, seed=2).to(dtype)
    kept = x.detach().clone()
    plain = F.rms_norm(x, (8,), norm.weight, 1e-6)
    (expected,) = torch.autograd.grad(plain, x, gradient)
    (found,) = torch.autograd.grad(norm(x), x, gradient)
    torch.testing.assert_close(norm(x), plain)
    torch.testing.assert_close(found, expected)
    assert torch.equal(x, kept) and torch.equal(gradient, draw(2, 3, 8, seed=2).to(dtype))


@pytest.mark.parametrize("trained", [False, True])
def test_a_gate_weighs_what_is_added_and_its_gradient(trained: bool) -> None:
    x, y, gate = draw(1, 2, 3).requires_grad_(), draw(1, 2, 3, seed=1).requires_grad_(), draw(1, 1, 3, seed=2).requires_grad_(trained)
    out = gated_residual(x, y, gate)
    torch.testing.assert_close(out, x + gate * y)
    gradient = draw(1, 2, 3, seed=3)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, gradient)
    torch.testing.assert_close(y.grad, (gradient * gate).detach())
    assert (gate.grad is not None) == trained


# --- positions


def test_channels_turn_by_their_position_and_frequency_and_back() -> None:
    """Two channels along frames, two along height, four along width; a token at (frame 5, row 1, column 1)."""
    tables = rope_tables(grid_positions(1, 2, 2, [5]), (2, 2, 4), CPU, torch.float32, theta=100.0)
    x = draw(1, 4, 1, 8).requires_grad_()
    out = apply_rope(x, tables)
    angles = torch.tensor([5.0, 1.0, 1.0, 1.0 * 100**-0.5])
    pairs = x.detach()[0, 3, 0].unflatten(0, (4, 2))
    turned = [angles.cos() * pairs[:, 0] - angles.sin() * pairs[:, 1], angles.sin() * pairs[:, 0] + angles.cos() * pairs[:, 1]]
    torch.testing.assert_close(out[0, 3, 0], torch.stack(turned, dim=1).flatten())
    torch.testing.assert_close(out[0, 0, 0, 2:], x[0, 0, 0, 2:])  # at row and column 0 only the frame turns
    gradient = draw(1, 4, 1, 8, seed=4)
    out.backward(gradient)
    torch.testing.assert_close(apply_rope(x.grad, tables), gradient)  # type: ignore[arg-type]


def test_a_token_of_a_cube_has_the_mean_of_its_positions_and_incomplete_cubes_repeat_the_last() -> None:
    cos, sin = rope_tables(grid_positions(1, 2, 3), (2, 2, 2), CPU, torch.float32, pool=2)
    assert cos.shape == (2, 1, 6)
    of_columns = [(math.cos(0) + math.cos(1)) / 2, math.cos(2)]
    assert cos[:, 0, 4].tolist() == pytest.approx(of_columns) and cos[:, 0, 2].tolist() == pytest.approx([of_columns[0]] * 2)
    assert sin[1, 0, 4:].tolist() == pytest.approx([-math.sin(2), math.sin(2)]) and cos[0, 0, 0] == 1


@pytest.mark.parametrize(("head", "widths"), [(16, (8, 4, 4)), (128, (44, 42, 42)), (12, (4, 4, 4))])
def test_sides_get_a_third_of_the_channels_and_frames_the_rest(head: int, widths: tuple[int, int, int]) -> None:
    assert even_widths(head) == widths


def test_timesteps_are_cosines_then_sines() -> None:
    found = sinusoids(torch.tensor([3.0]), 4)[0].tolist()
    assert found == pytest.approx([math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)])


# --- tokens


def test_padding_and_means_go_by_the_lengths() -> None:
    assert mmdit.padding_of([3, 3], torch.float32, CPU) is None
    padding = mmdit.padding_of([1, 3], torch.float32, CPU)
    assert padding is not None and padding.lengths == (1, 3)
    assert padding.bias[:, 0, 0].tolist() == [[0, -math.inf, -math.inf], [0, 0, 0]]
    text = torch.tensor([[1.0, 5.0, 9.0], [1.0, 2.0, 6.0]]).unsqueeze(-1)
    assert mmdit.masked_mean(text, (1, 3)).tolist() == [[1], [3]]
    cut, lengths = mmdit.trimmed(draw(2, 9, 4), torch.arange(9) < torch.tensor([[2], [0]]))
    assert cut.shape == (2, 2, 4) and lengths == (2, 1), "an empty text keeps a token"


@pytest.mark.parametrize("split", [False, True])
def test_samples_attend_to_their_own_lengths(split: bool) -> None:
    q, k, v = (draw(2, 4, 1, 4, seed=seed) for seed in range(3))
    out = mmdit.joint_attention(q, k, v, "torch", split, mmdit.padding_of([2, 4], torch.float32, CPU))
    torch.testing.assert_close(out[:1, :2], by_hand(q[:1, :2], k[:1, :2], v[:1, :2], None))
    torch.testing.assert_close(out[1:], by_hand(q[1:], k[1:], v[1:], None))


def test_text_tokens_do_not_turn() -> None:
    tables = rope_tables(grid_positions(1, 1, 2), (2, 2, 2), CPU, torch.float32)
    x = draw(1, 5, 1, 6)
    turned = apply_rope(x, mmdit.with_text((tables[0][None], tables[1][None]), 3))
    assert torch.equal(turned[:, 2:], x[:, 2:]) and not torch.equal(turned[:, 1], x[:, 1])


@pytest.mark.parametrize("kernel", [(1, 2, 2), (2, 4, 4)])
def test_patches_are_a_convolution_with_repeated_edges(kernel: tuple[int, int, int]) -> None:
    embedding = nn.Conv3d(2, 5, kernel, kernel)
    latents = draw(1, 2, 3, 6, 6)
    padded = F.pad(latents, [0, -6 % kernel[2], 0, -6 % kernel[1], 0, -3 % kernel[0]], mode="replicate")
    torch.testing.assert_close(mmdit.embed_patches(latents, embedding), embedding(padded).flatten(2).transpose(1, 2))


def test_tokens_become_the_pixels_of_their_patch() -> None:
    """One frame of 1 x 2 tokens, each with one channel's patch row by row."""
    tokens = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])
    assert mmdit.from_patches(tokens, 1, 1, 2)[0, 0, 0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]


# --- linears and recomputation


class Made(Linear):
    """A weight that is made for each product."""

    keeps_weight = False

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.weight * 2


def test_a_linear_whose_weight_is_made_gives_all_gradients() -> None:
    layer = Made(3, 2, bias=False).requires_grad_(False)
    x, start = draw(4, 3).requires_grad_(), draw(4, 2, seed=1).requires_grad_()
    rows = start.clone()
    out = layer.base_output(x, rows)
    assert out.data_ptr() == rows.data_ptr()
    torch.testing.assert_close(out, start + x @ (layer.weight * 2).T)
    gradient = draw(4, 2, seed=2)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ (layer.weight * 2))
    torch.testing.assert_close(start.grad, gradient)


@pytest.mark.parametrize("offload", [False, True])
def test_a_recomputed_function_draws_the_same_numbers_and_leaves_the_next_ones(offload: bool) -> None:
    x = draw(2, 8).requires_grad_()
    torch.manual_seed(3)
    mask = F.dropout(torch.ones(2, 8), 0.5)
    between, following = torch.rand(2), torch.rand(3)
    torch.manual_seed(3)
    out = recomputed(lambda one: F.dropout(one, 0.5).square().sin(), x, offload)
    torch.testing.assert_close(out, (x * mask).square().sin())
    assert torch.equal(torch.rand(2), between)
    out.sum().backward()
    seen = (x * mask).detach()
    torch.testing.assert_close(x.grad, seen.square().cos() * 2 * seen * mask)
    assert torch.equal(torch.rand(3), following)


def test_what_is_recomputed_from_frozen_inputs_gives_the_gradients_of_weights() -> None:
    x, weight = draw(2, 3), nn.Parameter(draw(3, seed=1))
    out = recomputed(lambda one: (one * weight).sin(), x)
    out.sum().backward()
    torch.testing.assert_close(weight.grad, ((x * weight).cos() * x).sum(0).detach())


def test_a_lora_modules_part_is_added_once_and_not_where_it_is_left_out() -> None:
    layer, module = Linear(4, 3).requires_grad_(False), LoRA(4, 3, 2, alpha=1.0)
    with torch.no_grad():
        module.lora_up.weight.copy_(draw(3, 2, seed=5))
    layer.attach(module)
    x = draw(2, 4)
    base = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), base + 0.5 * x @ module.lora_down.weight.T @ module.lora_up.weight.T)
    module.module_dropout = 1.0
    torch.testing.assert_close(layer(x), base)
