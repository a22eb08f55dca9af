"""Properties of the transformer that make it fast without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.memory.live_bytes import LiveBytes
from torch import Tensor

Sample = dict[str, Tensor]


def example(lengths: list[int], width: int = 12) -> Sample:
    """A batch whose texts have these lengths, padded to `width` with what must not matter."""
    generator = torch.Generator().manual_seed(0)
    count = len(lengths)
    return {
        "latents": torch.randn(count, 16, 2, 4, 6, generator=generator),
        "timesteps": torch.linspace(900, 100, count),
        "text": torch.randn(count, width, 20, generator=generator),
        "text_mask": torch.arange(width) < torch.tensor(lengths)[:, None],
        "pooled": torch.randn(count, 12, generator=generator),
        "guidance": torch.full((count,), 6.0),
    }


def gradients(model: HunyuanTransformer, network: torch.nn.Module, sample: Sample) -> dict[str, Tensor]:
    network.zero_grad()
    model(**sample).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


def one(sample: Sample, index: int) -> Sample:
    return {name: tensor[index : index + 1] for name, tensor in sample.items()}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("lengths", [[5, 9], [12, 12], [1, 12]])
def test_a_batch_equals_its_samples_one_by_one(model_with_lora: Callable[..., Any], split: bool, lengths: list[int]) -> None:
    model, network = model_with_lora()
    sample = example(lengths)
    single = [gradients(model, network, one(sample, index)) for index in range(2)]
    model.set_attention("torch", split)
    together = gradients(model, network, sample)
    for name in together:
        expected = single[0][name] + single[1][name]
        assert torch.allclose(together[name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()), name


def test_text_padding_has_no_influence(model_with_lora: Callable[..., Any]) -> None:
    model, _ = model_with_lora()
    sample = example([7])
    longer = {**sample, "text": torch.cat([sample["text"], torch.full((1, 5, 20), 1e3)], dim=1)}
    longer["text_mask"] = torch.arange(17)[None] < 7
    with torch.no_grad():
        assert torch.equal(model(**sample), model(**longer))


def test_gradient_checkpointing_gives_bit_identical_gradients(model_with_lora: Callable[..., Any]) -> None:
    model, network = model_with_lora()
    plain = gradients(model, network, example([5, 9]))
    for offload in (False, True):
        model.gradient_checkpointing, model.gradient_checkpointing_cpu_offload = True, offload
        again = gradients(model, network, example([5, 9]))
        assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.slow
def test_compiled_blocks_are_one_piece_and_give_the_gradients_of_plain_ones(model_with_lora: Callable[..., Any]) -> None:
    model, network = model_with_lora()
    plain = gradients(model, network, example([5]))
    for block in (model.double_blocks[0], model.single_blocks[0]):
        block.compile(backend="eager", fullgraph=True)
    compiled = gradients(model, network, example([5]))
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())


def test_checkpointing_neither_recomputes_the_last_block_nor_any_blocks_last_product(model_with_lora: Callable[..., Any]) -> None:
    model, network = model_with_lora()
    blocks = [*model.double_blocks, *model.single_blocks]
    inputs: list[tuple[Any, ...]] = []
    handles = [block.register_forward_pre_hook(lambda _, seen: inputs.append(seen)) for block in blocks]
    gradients(model, network, example([5]))
    for handle in handles:
        handle.remove()
    flops = [_flops_of(block, seen) for block, seen in zip(blocks, inputs, strict=True)]
    counts = {}
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        with LiveBytes(torch.device("cpu")) as counter:
            gradients(model, network, example([5]))
        counts[checkpointing] = counter.operations
    sizes, video, text = model.geometry, 12, 5
    last_product = {
        "double": 2 * video * sizes.mlp_dim * sizes.dim,
        "single": 2 * (video + text) * (sizes.dim + sizes.mlp_dim) * sizes.dim,
    }
    spared = 2 * last_product["double"] + last_product["single"]
    assert counts[True] - counts[False] == sum(flops[:3]) - spared


def _flops_of(block: torch.nn.Module, inputs: tuple[Any, ...]) -> int:
    """Of the block alone, without gradients."""
    with LiveBytes(torch.device("cpu")) as counter, torch.no_grad():
        block(*inputs)
    return counter.operations


def test_blocks_are_skipped_by_number(model_with_lora: Callable[..., Any]) -> None:
    model, _ = model_with_lora()
    with torch.no_grad():
        full, without = model(**example([5])), model(**example([5]), skip_blocks={0, 3})
        assert not torch.allclose(full, without)
        del model.double_blocks[0], model.single_blocks[1]
        assert torch.equal(model(**example([5])), without)


def test_what_stands_around_the_blocks_can_leave_them_out(model_with_lora: Callable[..., Any]) -> None:
    model, _ = model_with_lora()
    seen = []

    def remembering(run: Callable[[Tensor], Tensor], x: Tensor, video: int) -> Tensor:
        assert 0 < video < x.shape[1]
        out = seen[0] + x if seen else run(x)
        seen.append(out - x)
        return out

    with torch.no_grad():
        plain = model(**example([5]))
        model.around_blocks = remembering
        assert torch.equal(model(**example([5])), plain)
        assert torch.allclose(model(**example([5])), plain, atol=1e-5)
    assert len(seen) == 2


def test_a_distilled_model_must_be_reported_the_guidance(model_with_lora: Callable[..., Any]) -> None:
    model, _ = model_with_lora()
    with torch.no_grad(), pytest.raises(ValueError, match="needs the embedded guidance"):
        model(**{**example([5]), "guidance": None})


def test_sampling_tells_the_guidance_in_the_dtype_of_the_weights(model_with_lora: Callable[..., Any]) -> None:
    model, _ = model_with_lora()
    assert model.embedded_guidance(6.0, 2).tolist() == [6000.0, 6000.0]
    assert model.to(torch.bfloat16).embedded_guidance(6.0).tolist() == [6016.0]


@pytest.mark.slow
@pytest.mark.full(reason="the test above, with a compiler that only traces, and memory/test_compiling")
def test_gradients_of_compiled_blocks_that_are_recomputed(model_with_lora: Callable[..., Any]) -> None:
    model, network = model_with_lora()
    plain = gradients(model, network, example([5, 9]))
    for block in (*model.double_blocks, *model.single_blocks):
        block.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    model.gradient_checkpointing = True
    compiled = gradients(model, network, example([5, 9]))
    assert all(torch.allclose(plain[name], compiled[name], rtol=1e-4, atol=1e-6) for name in plain)
