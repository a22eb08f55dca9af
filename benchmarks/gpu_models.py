"""Transformers of real shapes with random weights, made where they are used, and one item to train them on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from musubi_backend import architectures
from musubi_backend.architectures import protocol
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.framepack.sections import History, Section
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.device import for_model
from musubi_backend.errors import UserError
from musubi_backend.layers.attention import check_mode, with_compiler
from musubi_backend.layers.blocks import KeptAttention
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.compiling import Compilation
from musubi_backend.memory.fp8 import hold_in_fp8
from musubi_backend.memory.plan import MemoryPlan, fp8_layers
from musubi_backend.memory.w8a8 import check_products, hold_in_8_bits
from musubi_backend.training.losses import flow_matching_loss
from musubi_backend.weights.loader import TakesWeight
from torch import Tensor, nn

Batch = dict[str, Tensor | list[Tensor]]
LORA_RANK, LORA_ALPHA = 32, 16.0
ALL = 1000
"""More blocks than any model has."""


@dataclass(frozen=True)
class Size:
    """Of a clip, in pixels and frames."""

    width: int
    height: int
    frames: int

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, height and width of the latents."""
        return (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


@dataclass(frozen=True)
class Model:
    """card_id: whose LoRA it takes. tool: its trainer. caches: what a cached item of (model, shape of latents) holds beside latents.
    text_tokens: of a caption; image_tokens: of SigLIP."""

    name: str
    card_id: str
    tool: str
    geometry: Any
    make: Callable[[Any], nn.Module]
    caches: Callable[[Model, tuple[int, ...]], Batch]
    text_tokens: int = 200
    image_tokens: int = 729

    def batch(self, shape: tuple[int, ...], device: torch.device) -> Batch:
        """One item whose latents have this shape, as the loop gives it to a model: the same numbers on every device."""
        return {name: _there(value, device) for name, value in self.caches(self, shape).items()}

    def call(self, model: nn.Module, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction [1, 16, F, H, W]."""
        batch = self.batch(tuple(noisy.shape), noisy.device)
        return protocol.load(self.card_id).predict(model, noisy, timesteps, batch)

    def with_layers(self, count: int) -> Model:
        """The same with fewer layers."""
        names = [name for name in ("num_layers", "num_double_layers", "num_single_layers") if hasattr(self.geometry, name)]
        return replace(self, geometry=replace(self.geometry, **dict.fromkeys(names, count)))


@dataclass(frozen=True)
class Setting:
    """How it is trained: what the options of trainers of these names do. keep_attention, attention_in_ram: of so many blocks."""

    fp8_scaled: bool = False
    blocks_to_swap: int = 0
    ring: int = 2
    pinned: bool = True
    checkpointing: bool = False
    offload: bool = False
    compiled: bool = False
    keep_attention: int = 0
    attention_in_ram: int = 0
    w8a8: str | None = None
    attention: str = "torch"
    split: bool = False

    def __str__(self) -> str:
        swap = f"swap {self.blocks_to_swap}{'' if self.pinned else ' unpinned'}{f' ring {self.ring}' if self.ring != 2 else ''}"
        words = {
            "fp8 scaled": self.fp8_scaled, swap: self.blocks_to_swap > 0, "checkpointing": self.checkpointing, "offload": self.offload,
            f"attention of {_blocks(self.keep_attention)} kept": self.keep_attention > 0,
            f"attention of {_blocks(self.attention_in_ram)} in RAM": self.attention_in_ram > 0,
            f"w8a8 {self.w8a8}": self.w8a8 is not None, "compile": self.compiled, self.attention: self.attention != "torch",
            "split attention": self.split,
        }  # fmt: skip
        return " + ".join(word for word, chosen in words.items() if chosen) or "plain"


def _blocks(count: int) -> str:
    return "all" if count >= ALL else str(count)


@dataclass
class Trained:
    """A model with a LoRA, ready for steps. predict: the prediction for (noisy latents, timesteps, batch); casting: around a step."""

    model: nn.Module
    network: nn.Module
    device: torch.device
    predict: Callable[[Tensor, Tensor, Batch], Tensor]
    batch: Callable[[tuple[int, ...], torch.device], Batch]
    casting: Callable[[], AbstractContextManager[None]]
    batches: dict[tuple[int, ...], Batch] = field(default_factory=dict)

    def loss(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        shape = tuple(latents.shape)
        if shape not in self.batches:
            self.batches[shape] = self.batch(shape, self.device)
        noisy = (1 - t) * latents + t * noise
        predicted = self.predict(noisy, torch.tensor([1000 * t]), self.batches[shape])
        return flow_matching_loss(predicted, latents, noise, None)


def check(setting: Setting, device: torch.device, dtype: torch.dtype) -> None:
    """UserError where the device or the environment cannot do it, as the trainers say it."""
    check_mode(setting.attention, dtype, device)
    if setting.compiled:
        Compilation().check(device, setting.blocks_to_swap > 0)
    if setting.w8a8 is not None:
        check_products(setting.w8a8, device)


def lacking(setting: Setting, device: torch.device, dtype: torch.dtype) -> str:
    """What of a setting the device or the environment cannot do; "" where it can do it all."""
    try:
        check(setting, device, dtype)
    except UserError as error:
        return str(error)
    return ""


def build(
    model: Model, setting: Setting, device: torch.device, dtype: torch.dtype = torch.bfloat16, drawn_on: torch.device | None = None
) -> Trained:
    """As the trainers load it, but with random weights: the same ones for every setting. drawn_on: where they are drawn, in bf16's
    numbers, for the same weights on two devices."""
    card = architectures.cards()[model.card_id]
    with torch.device("meta"):
        made = model.make(model.geometry)
    check(setting, device, dtype)
    plan = MemoryPlan(
        fp8=setting.fp8_scaled, fp8_scaled=setting.fp8_scaled, blocks_to_swap=setting.blocks_to_swap, ring=setting.ring,
        pinned=setting.pinned,
        compilation=Compilation() if setting.compiled else None,
    )  # fmt: skip
    if setting.w8a8 is not None:
        hold_in_8_bits(made, fp8_layers(made, card), setting.w8a8)
    if setting.fp8_scaled:
        hold_in_fp8(made, fp8_layers(made, card), "block")
    stay = plan.stay(made)
    for name, empty in list(made.state_dict(keep_vars=True).items()):
        weight = random_weight(name, tuple(empty.shape), dtype, device, drawn_on)
        _fill(made, name, weight, torch.device("cpu") if name in stay else device)
    switches: Any = made
    switches.gradient_checkpointing, switches.gradient_checkpointing_cpu_offload = setting.checkpointing, setting.offload
    switches.kept_attention = KeptAttention(setting.keep_attention, setting.attention_in_ram)
    kept = setting.keep_attention or setting.attention_in_ram
    mode = with_compiler(setting.attention, setting.split) if kept and setting.compiled else setting.attention
    switches.set_attention(mode, setting.split)
    plan.finish(made, device)
    network = LoRANetwork.create(made.requires_grad_(False).eval(), card, LORA_RANK, LORA_ALPHA).train()
    fill_lora(network, device, drawn_on)
    architecture = protocol.load(model.card_id)

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return architecture.predict(made, noisy, timesteps, batch)

    return Trained(made, network, device, predict, model.batch, lambda: network.working_in(dtype))


def fill_lora(network: nn.Module, device: torch.device, drawn_on: torch.device | None = None) -> None:
    """Both factors small and random, by their names in a LoRA file."""
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.copy_(0.02 * random_weight(name, tuple(parameter.shape), torch.float32, device, drawn_on))


def _fill(model: nn.Module, name: str, tensor: Tensor, home: torch.device) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, TakesWeight) and leaf == "weight":
        tensor = owner.take(tensor, None, home)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor.to(home), requires_grad=False)
    else:
        owner._buffers[leaf] = tensor.to(home)


def random_weight(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, drawn_on: torch.device | None = None
) -> Tensor:
    """Drawn on the device, so that 14 billion numbers take a second; norms are near one. drawn_on: see `build`."""
    place, drawn_as = drawn_on or device, dtype if drawn_on is None else torch.float32
    generator = torch.Generator(place).manual_seed(zlib.crc32(name.encode()))
    if len(shape) < 2:
        middle = float("norm" in name and name.endswith("weight"))
        drawn = torch.randn(shape, generator=generator, device=place).mul_(0.02).add_(middle)
    else:
        drawn = torch.randn(shape, generator=generator, device=place, dtype=drawn_as).mul_(1 / math.sqrt(math.prod(shape[1:])))
    return drawn.to(dtype) if drawn_on is None else drawn.bfloat16().to(device, dtype)


def latents(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents and noise [1, 16, F, H, W], drawn on the CPU: the same on every device."""
    return _normal((1, 16, *size.latents), 1).to(device), _normal((1, 16, *size.latents), 2).to(device)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _there(value: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    return [for_model(one, device) for one in value] if isinstance(value, list) else for_model(value, device)


def _wan_caches(model: Model, shape: tuple[int, ...]) -> Batch:
    return {"t5": [_normal((model.text_tokens, model.geometry.text_dim), 3)]}


def _joint_caches(model: Model, text: str, mask: str, pooled: str) -> Batch:
    return {
        text: _normal((1, model.text_tokens, model.geometry.text_dim), 3), mask: torch.ones(1, model.text_tokens, dtype=torch.bool),
        pooled: _normal((1, model.geometry.pooled_dim), 4),
    }  # fmt: skip


def _hunyuan_caches(model: Model, shape: tuple[int, ...]) -> Batch:
    return _joint_caches(model, "llm", "llm_mask", "clipL")


def _framepack_caches(model: Model, shape: tuple[int, ...]) -> Batch:
    first = _normal((shape[1], 1, *shape[3:]), 5)
    section = History(first, shape[2], f1=False).conditions(Section(0))
    return {
        **_joint_caches(model, "llama_vec", "llama_attention_mask", "clip_l_pooler"),
        "image_embeddings": _normal((1, model.image_tokens, model.geometry.image_dim), 6),
        **{name: tensor[None] for name, tensor in section.items()},
    }


_JOINT = {"dim": 3072, "num_heads": 24, "mlp_dim": 12288, "num_double_layers": 20, "num_single_layers": 40}
_TINY = {"dim": 64, "num_heads": 2, "mlp_dim": 256, "num_double_layers": 2, "num_single_layers": 4, "text_dim": 64, "pooled_dim": 32}
MODELS = (
    Model("Wan 1.3B", "wan", "wan_train_network", WanGeometry(1536, 8960, 12, 30), WanTransformer, _wan_caches),
    Model("Wan 14B", "wan", "wan_train_network", WanGeometry(5120, 13824, 40, 40), WanTransformer, _wan_caches),
    Model("HunyuanVideo", "hv", "hv_train_network", HunyuanGeometry(**_JOINT), HunyuanTransformer, _hunyuan_caches),
    Model("FramePack", "fp", "fpack_train_network", FramePackGeometry(**_JOINT), FramePackTransformer, _framepack_caches),
)
_WIDTHS: Any = {"rope_widths": (4, 14, 14)}
_FEW = (20, 9)
_SMALL_WAN = WanGeometry(64, 128, 2, 3, text_dim=64, text_len=32, freq_dim=32)
_SMALL_FRAMEPACK = FramePackGeometry(**_TINY, **_WIDTHS, image_dim=48)
SMALL = (
    Model("small Wan", "wan", "wan_train_network", _SMALL_WAN, WanTransformer, _wan_caches, *_FEW),
    Model("small HunyuanVideo", "hv", "hv_train_network", HunyuanGeometry(**_TINY, **_WIDTHS), HunyuanTransformer, _hunyuan_caches, *_FEW),
    Model("small FramePack", "fp", "fpack_train_network", _SMALL_FRAMEPACK, FramePackTransformer, _framepack_caches, *_FEW),
)
IMAGE, SHORT, LONG = Size(512, 512, 1), Size(832, 480, 33), Size(832, 480, 81)
"""One section of FramePack is a clip of 33 frames; it has no longer steps."""
SMALLEST = Size(64, 64, 5)
