"""Compiled blocks compute what plain ones do, together with everything else that saves memory."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._triton
from functorch.compile import make_boxed_func
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.load import load_transformer
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.architectures.wan.settings import WanSettings
from musubi_backend.errors import UserError
from musubi_backend.layers.blocks import KeptAttention
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.compiling import Compilation
from musubi_backend.memory.fp8 import Fp8Linear
from musubi_backend.memory.plan import MemoryPlan
from musubi_backend.memory.settings import CompileSettings
from musubi_backend.memory.w8a8 import FORMATS, W8A8Linear
from musubi_backend.weights.loader import open_weights
from musubi_backend.weights.safetensors_file import save_atomic
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

CPU = torch.device("cpu")
GEOMETRY = WanGeometry(dim=64, ffn_dim=128, num_heads=2, num_layers=3, text_dim=12, text_len=16, freq_dim=16)
OFF: dict[str, Any] = {
    "compile": True, "compile_backend": "inductor", "compile_mode": "default", "compile_dynamic": None, "compile_fullgraph": False,
    "compile_cache_size_limit": None, "compile_args": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(5)
    model = WanTransformer(GEOMETRY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1, generator=generator)
    path = tmp_path_factory.mktemp("model") / "dit.safetensors"
    save_atomic(model.state_dict(), path, {"musubi_geometry": GEOMETRY.to_json()})
    return path


@pytest.fixture(autouse=True)
def compiled_afresh() -> Any:
    """What other tests compiled counts towards the limit of versions, and the limit itself is one for the whole process."""
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


def load(dit: Path, **given: Any) -> WanTransformer:
    return load_transformer(WanSettings.read({"dit": str(dit), "task": "t2v-1.3B", **given}), CPU, torch.float32)


def prediction(model: WanTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(1, 16, 2, 4, 4, generator=generator), torch.tensor([500.0]), [torch.randn(5, 12, generator=generator)])


def results(model: WanTransformer) -> list[Tensor]:
    """A prediction without gradients, one with, and all gradients of a LoRA."""
    generator = torch.Generator().manual_seed(0)
    network = LoRANetwork.create(model, CARD, rank=3, alpha=2.0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    latents, text = torch.randn(1, 16, 2, 4, 4, generator=generator), [torch.randn(5, 12, generator=generator)]
    model.gradient_checkpointing, model.kept_attention = True, KeptAttention(1, 1)
    sampled = prediction(model)
    out = model(latents, torch.tensor([500.0]), text)
    out.square().mean().backward()
    return [sampled, out.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


def compare(dit: Path, backend: str, saving: dict[str, Any], tolerance: float) -> None:
    counters.clear()
    expected = results(load(dit, **saving))
    compiled = results(load(dit, **saving, **{**OFF, "compile_backend": backend, "compile_fullgraph": True}))
    assert counters["stats"]["unique_graphs"] > 0
    assert len(compiled) == len(expected)
    for one, other in zip(compiled, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


KEPT = {"keep_attention_blocks": 1, "offload_attention_blocks": 1}
SWAP = {"blocks_to_swap": 2, "block_swap_ring_size": 1, **KEPT}
ALL = {"fp8_base": True, "fp8_scaled": True, **SWAP}


@pytest.mark.slow
@pytest.mark.full(reason="wan/test_wan_model and training/test_memory_flags compile blocks that are recomputed and train them")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_with_compiled_gradients(backend: str, dit: Path) -> None:
    """Whose attention is kept; inductor adds in another order."""
    compare(dit, backend, ALL, 1e-5)


@pytest.mark.slow
def test_no_wide_weight_is_kept_for_backward(dit: Path) -> None:
    """A compiler left to itself keeps what it has computed anyway: the weights at full width, of all blocks."""
    model = load(dit, fp8_base=True, **{**OFF, "compile_backend": "aot_eager"})
    LoRANetwork.create(model, CARD, rank=3, alpha=2.0)
    kept: set[tuple[torch.Size, torch.dtype]] = set()

    def keep(tensor: Tensor) -> Tensor:
        kept.add((tensor.shape, tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), [torch.randn(5, 12)])
    assert (torch.Size([128, 64]), torch.float8_e4m3fn) in kept
    assert (torch.Size([128, 64]), torch.float32) not in kept


@pytest.mark.slow
def test_with_the_usual_compiler(dit: Path) -> None:
    try:
        Compilation().check(CPU, swapping=False)
    except UserError as error:
        pytest.skip(str(error))
    scaled = {"fp8_scaled": True}
    counters.clear()
    expected, compiled = prediction(load(dit, **scaled)), prediction(load(dit, **scaled, **{**OFF, "compile_fullgraph": True}))
    assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)


def test_every_spelling_of_the_settings() -> None:
    assert Compilation.chosen(CompileSettings()) is None
    assert Compilation.chosen(CompileSettings.read(OFF)) == Compilation()
    asked = {**OFF, "compile_mode": "max-autotune", "compile_dynamic": "auto", "compile_cache_size_limit": 7}
    assert Compilation.chosen(CompileSettings.read(asked)) == Compilation(mode="max-autotune", limit=7)
    older = {**OFF, "compile_args": ["eager", "default", "True", "true"]}
    assert Compilation.chosen(CompileSettings.read(older)) == Compilation("eager", "default", True, True, 32)
    accelerate = CompileSettings(dynamo_backend="AOT_EAGER", dynamo_mode="reduce-overhead", dynamo_dynamic=True)
    assert Compilation.chosen(accelerate) == Compilation("aot_eager", "reduce-overhead", dynamic=True)
    with pytest.raises(UserError, match="the third value must be true, false or auto, not maybe"):
        Compilation.chosen(CompileSettings.read({**OFF, "compile_args": ["eager", "default", "maybe", "true"]}))


def test_what_cannot_work_is_rejected_before_anything_is_loaded(dit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--compile_backend tvn: this PyTorch has .*inductor"):
        load(dit, **{**OFF, "compile_backend": "tvn"})
    with pytest.raises(UserError, match="reduce-overhead records memory addresses"):
        load(dit, **{**OFF, "compile_mode": "reduce-overhead", "compile_backend": "eager", "blocks_to_swap": 1})
    for recorded in (Compilation(mode="max-autotune"), Compilation(mode="reduce-overhead"), Compilation("cudagraphs")):
        with pytest.raises(UserError, match=r"records memory addresses, and blocks that share their code .* use --compile_mode default"):
            recorded.check(torch.device("cuda"), swapping=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        Compilation().check(CPU, swapping=False)


@pytest.mark.slow
@pytest.mark.skipif("not config.getoption('--full', False)", reason="three versions are compiled, 15 s: with --full (and tests/contract)")
@pytest.mark.parametrize("held", [{"fp8_base": True, "fp8_scaled": True}, {"w8a8": "int8"}, {"w8a8": "fp8"}], ids=str)
def test_swapped_8_bit_blocks_are_compiled_in_the_first_step_only(held: dict[str, Any], dit: Path) -> None:
    """Whatever buffer a block's weights are in and whatever its LoRA's factors are. In one piece, or the compiler would refuse; in three
    versions: for inputs with and without gradients, and for those of a block that is computed again."""
    model = load_transformer(
        WanSettings.read(
            {"dit": str(dit), "task": "t2v-1.3B", **held, **SWAP, **OFF, "compile_backend": "eager", "compile_fullgraph": True}
        ),
        CPU,
        torch.bfloat16,
    )
    network = LoRANetwork.create(model, CARD, rank=3, alpha=2.0).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model.gradient_checkpointing, model.kept_attention = True, KeptAttention(1, 1)
    graphs = []
    counters.clear()
    for _ in range(3):
        with network.working_in(torch.bfloat16):
            model(torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), [torch.randn(5, 12)]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= 3 and graphs == [graphs[0]] * 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_product_in_8_bits_is_compiled_in_one_piece_with_its_own_backward(name: str) -> None:
    torch.manual_seed(0)
    linear = W8A8Linear(32, 48, True, FORMATS[name]).requires_grad_(False)
    linear.weight = torch.nn.Parameter(linear.take(torch.randn(48, 32), None, CPU), requires_grad=False)

    def step(run: Any) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        x, start = (torch.randn(20, size, generator=generator).requires_grad_() for size in (32, 48))
        out = run(x, start)
        out.square().sum().backward()
        return out.detach(), x.grad, start.grad

    compiled = torch.compile(linear.base_output, backend="eager", fullgraph=True)
    for one, other in zip(step(compiled), step(linear.base_output), strict=True):
        assert torch.equal(one, other)


def test_where_triton_lacks_fp8_the_compiled_code_leaves_it_to_pytorch() -> None:
    torch.manual_seed(0)
    linear = Fp8Linear(128, 48, apart=True).requires_grad_(False)
    linear.weight = torch.nn.Parameter(linear.take(torch.randn(48, 128), None, CPU), requires_grad=False)
    narrow: list[set[str]] = []

    def see(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        fp8 = {one for one in graph.graph.nodes if getattr(one.meta.get("val"), "dtype", None) == torch.float8_e4m3fn}
        narrow.append({str(user.target) for one in fp8 for user in one.users if user.op == "call_function"})
        return make_boxed_func(graph.forward)

    def step(run: Any) -> tuple[Tensor, ...]:
        x = torch.randn(20, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = run(x)
        out.square().sum().backward()
        return out.detach(), x.grad

    compiled = torch.compile(linear.base_output, backend=aot_autograd(fw_compiler=see, bw_compiler=see), fullgraph=True)
    for one, other in zip(step(compiled), step(linear.base_output), strict=True):
        assert torch.equal(one, other)
    assert narrow == [{"musubi_backend.dequantised.default"}] * 2, "forward and backward, and nothing else sees fp8"


@pytest.mark.parametrize(("capability", "apart"), [((8, 6), True), ((8, 9), False), ((12, 0), False)])
def test_fp8_is_left_out_of_compiled_code_on_gpus_before_rtx_40(
    dit: Path, capability: tuple[int, int], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with torch.device("meta"):
        model = WanTransformer(GEOMETRY)
    plan = MemoryPlan(fp8=True, fp8_scaled=True, compilation=Compilation("eager"))
    plan.prepare(model, open_weights(dit), CARD, torch.device("cuda"))
    held = [one for one in model.modules() if isinstance(one, Fp8Linear)]
    assert held and all((one.apart is not None) is apart for one in held)


def test_a_gpu_that_triton_makes_no_code_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 2080")
    with pytest.raises(UserError, match=r"--compile needs a GPU that triton makes code for \(RTX 30 or later\); RTX 2080 does not"):
        Compilation().check(torch.device("cuda"), swapping=False)


@pytest.mark.parametrize(("lacks", "says"), [("compilers", "a C compiler"), ("headers", "Python's headers")])
def test_a_machine_on_which_triton_can_build_nothing_is_refused(
    lacks: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As images for containers without compilers: triton would end the first step."""
    tools = tmp_path / "bin"
    tools.mkdir()
    if lacks == "headers":
        (tools / "gcc").touch(0o755)
        monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.utils._triton, "has_triton_package", lambda: True)
    with pytest.raises(UserError, match=f"--compile needs {says}"):
        Compilation().check(torch.device("cuda"), swapping=False)
