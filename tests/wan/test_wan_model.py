"""Properties of the transformer that make it fast without changing what it computes."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.architectures.wan.model import WanTransformer, collapse_padding
from musubi_backend.errors import UserError
from musubi_backend.layers.linear import Linear
from musubi_backend.layers.rope import rope_tables
from musubi_backend.lora.modules import LoRA
from musubi_backend.memory.live_bytes import LiveBytes
from torch import Tensor

VIDEO_TOKENS = 12


def gradients(model: WanTransformer, network: torch.nn.Module, sample: tuple[Tensor, Tensor, list[Tensor]]) -> dict[str, Tensor]:
    network.zero_grad()
    model(*sample).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_gives_bit_identical_gradients(model_with_lora, example):
    model, network = model_with_lora()
    plain = gradients(model, network, example([5, 9]))
    for offload in (False, True):
        model.gradient_checkpointing, model.gradient_checkpointing_cpu_offload = True, offload
        again = gradients(model, network, example([5, 9]))
        assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_checkpointing_keeps_dropout_masks(model_with_lora, example):
    model, network = model_with_lora(dropout=0.5, network_args=["rank_dropout=0.3", "module_dropout=0.2"])
    network.train()
    torch.manual_seed(1)
    plain = gradients(model, network, example([5]))
    model.gradient_checkpointing = True
    torch.manual_seed(1)
    again = gradients(model, network, example([5]))
    assert 0 < len(plain) < len(list(network.parameters()))  # whole LoRA modules were dropped
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_checkpointing_neither_recomputes_the_last_block_nor_any_blocks_last_product(model_with_lora, example):
    model, network = model_with_lora()
    counts = {}
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        with LiveBytes(torch.device("cpu")) as counter:
            gradients(model, network, example([5]))
        counts[checkpointing] = counter.operations
    inputs = _block_inputs(model, example([5]))
    with LiveBytes(torch.device("cpu")) as counter, torch.no_grad():
        model.blocks[0](*inputs)
    one_block = counter.operations
    sizes = model.geometry
    last_product = 2 * VIDEO_TOKENS * sizes.ffn_dim * sizes.dim
    assert counts[True] - counts[False] == (sizes.num_layers - 1) * (one_block - last_product)


def _block_inputs(model: WanTransformer, sample: tuple[Tensor, Tensor, list[Tensor]]) -> tuple[object, ...]:
    captured: list[tuple[object, ...]] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: captured.append(args))
    with torch.no_grad():
        model(*sample)
    handle.remove()
    return captured[0]


@pytest.mark.parametrize("lengths", [[5], [1], [31], [32], [5, 20], [32, 3, 31]])
def test_collapsed_text_padding_equals_explicit_padding(model_with_lora, example, lengths):
    model, network = model_with_lora()
    latents, timesteps, text = example(lengths)
    collapsed = gradients(model, network, (latents, timesteps, text))
    padded_text = [torch.cat([t, t.new_zeros(model.geometry.text_len - len(t), t.shape[1])]) for t in text]
    explicit = gradients(model, network, (latents, timesteps, padded_text))
    for name in explicit:
        assert torch.allclose(collapsed[name], explicit[name], rtol=1e-4, atol=5e-5 * explicit[name].abs().max().item()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_keys_weigh_as_much_as_the_padding_they_stand_for(dtype):
    for length in (0, 1, 60, 200, 505, 510, 511):
        tokens, bias = collapse_padding([torch.ones(length, 4)], 512, dtype, torch.device("cpu"))
        weight = tokens.shape[1] - length if bias is None else bias[0, 0, 0, length:].double().exp().sum().item()
        assert weight == pytest.approx(512 - length, rel=1e-6)
        assert tokens.shape[1] <= length + 16
        assert not tokens[0, length:].any()


def test_full_length_text_needs_no_bias_and_longer_text_is_rejected():
    tokens, bias = collapse_padding([torch.ones(8, 4), torch.ones(8, 4)], 8, torch.float32, torch.device("cpu"))
    assert bias is None
    assert tokens.shape == (2, 8, 4)
    with pytest.raises(UserError, match="9 text tokens; the model takes 8"):
        collapse_padding([torch.ones(9, 4)], 8, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("split", [False, True])
def test_a_batch_equals_its_samples_one_by_one(model_with_lora, example, split):
    model, network = model_with_lora()
    latents, timesteps, text = example([4, 21])
    single = [gradients(model, network, (latents[i : i + 1], timesteps[i : i + 1], [text[i]])) for i in range(2)]
    model.set_attention("torch", split)
    together = gradients(model, network, (latents, timesteps, text))
    for name in together:
        expected = single[0][name] + single[1][name]
        assert torch.allclose(together[name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()), name


def test_frozen_inputs_get_no_gradient_graph_before_the_first_lora(model_with_lora, example):
    model, _ = model_with_lora()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.extend(a.requires_grad for a in args if isinstance(a, Tensor)))
    model(*example([5]))
    assert seen
    assert not any(seen)


def test_time_per_token_equals_time_per_sample_where_all_are_the_same(model_with_lora, example):
    model, _ = model_with_lora()
    latents, _, text = example([4, 7])
    per_sample = torch.tensor([300.0, 800.0])
    with torch.no_grad():
        one, each = model(latents, per_sample, text), model(latents, per_sample[:, None].expand(-1, VIDEO_TOKENS), text)
    assert torch.allclose(one, each, atol=1e-5)


@pytest.mark.slow
def test_blocks_compile_as_one_graph_each_also_with_checkpointing(model_with_lora, example):
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    model, network = model_with_lora()
    plain = gradients(model, network, example([5]))
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        compiled = gradients(model, network, example([5]))
        assert all((plain[name] - compiled[name]).norm() < 1e-5 * plain[name].norm() for name in plain)


def test_positions_cached_while_sampling_serve_training(model_with_lora, example):
    model, network = model_with_lora()
    rope_tables.cache_clear()
    with torch.inference_mode():
        model(*example([5]))
    assert gradients(model, network, example([5]))


def test_a_linear_of_another_kind_of_weights_carries_a_lora():
    """What an fp8 linear will do: override `base_output` only."""

    class Doubled(Linear):
        def base_output(self, x: Tensor, start: Tensor | None = None) -> Tensor:
            out = 2 * torch.nn.functional.linear(x, self.weight)
            return out + (self.bias if start is None else start)

    layer, module, x = Doubled(6, 4), LoRA(6, 4, rank=2, alpha=1.0), torch.randn(3, 5, 6)
    torch.nn.init.normal_(module.lora_up.weight)
    layer.attach(module)
    delta = module.lora_up.weight @ module.lora_down.weight / 2
    assert torch.allclose(layer(x), 2 * x @ layer.weight.T + layer.bias + x @ delta.T, atol=1e-5)
    layer.attach(None)
    assert torch.allclose(layer(x), 2 * x @ layer.weight.T + layer.bias, atol=1e-5)
