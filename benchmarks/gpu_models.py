"""Transformers of real shapes with random weights, made where they are used, and one item to train them on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from musubi_backend import architectures
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import Clean, FramePackTransformer
from musubi_backend.architectures.framepack.sections import History, Section
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.layers.blocks import KeptAttention
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.compiling import Compilation
from musubi_backend.memory.fp8 import hold_in_fp8
from musubi_backend.memory.plan import MemoryPlan, fp8_layers
from musubi_backend.memory.w8a8 import check_products, hold_in_8_bits
from musubi_backend.weights.loader import TakesWeight
from torch import Tensor, nn

LORA_RANK, LORA_ALPHA = 32, 16.0
_TEXT = 200
"""Text tokens of a caption, of at most 512 (Wan) or 256."""
_WINDOW = 9


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
    """card_id: whose LoRA it takes. call: the prediction for (model, noisy latents, timesteps)."""

    name: str
    card_id: str
    geometry: Any
    make: Callable[[Any], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor], Tensor]

    def with_layers(self, count: int) -> Model:
        """The same with fewer layers."""
        names = [name for name in ("num_layers", "num_double_layers", "num_single_layers") if hasattr(self.geometry, name)]
        return replace(self, geometry=replace(self.geometry, **dict.fromkeys(names, count)))


@dataclass(frozen=True)
class Setting:
    """How it is trained: what the options of trainers of these names do."""

    fp8_scaled: bool = False
    blocks_to_swap: int = 0
    ring: int = 2
    pinned: bool = True
    checkpointing: bool = False
    offload: bool = False
    compiled: bool = False
    keep_attention: bool = False
    w8a8: str | None = None
    attention: str = "torch"
    split: bool = False

    def __str__(self) -> str:
        swap = f"swap {self.blocks_to_swap}{'' if self.pinned else ' unpinned'}{f' ring {self.ring}' if self.ring != 2 else ''}"
        words = {
            "fp8 scaled": self.fp8_scaled, swap: self.blocks_to_swap > 0, "checkpointing": self.checkpointing, "offload": self.offload,
            "keep attention": self.keep_attention, f"w8a8 {self.w8a8}": self.w8a8 is not None, "compile": self.compiled,
            self.attention: self.attention != "torch", "split attention": self.split,
        }  # fmt: skip
        return " + ".join(word for word, chosen in words.items() if chosen) or "plain"


@dataclass
class Trained:
    """A model with a LoRA, ready for steps. stream: of its swapped blocks."""

    model: nn.Module
    network: LoRANetwork
    device: torch.device
    call: Callable[[nn.Module, Tensor, Tensor], Tensor]
    streams: list[Any] = field(default_factory=list)

    def loss(self, latents: Tensor, noise: Tensor, t: float) -> Tensor:
        noisy = (1 - t) * latents + t * noise
        predicted = self.call(self.model, noisy, torch.tensor([1000 * t]))
        return torch.nn.functional.mse_loss(predicted.float(), noise - latents)


def build(model: Model, setting: Setting, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Trained:
    """As the trainers load it, but with random weights: the same ones for every setting."""
    card = architectures.cards()[model.card_id]
    with torch.device("meta"):
        made = model.make(model.geometry)
    plan = MemoryPlan(
        fp8=setting.fp8_scaled, fp8_scaled=setting.fp8_scaled, blocks_to_swap=setting.blocks_to_swap, ring=setting.ring,
        pinned=setting.pinned,
        compilation=Compilation() if setting.compiled else None,
    )  # fmt: skip
    if plan.compilation is not None:
        plan.compilation.check(device, plan.blocks_to_swap > 0)
    if setting.w8a8 is not None:
        check_products(setting.w8a8, device)
        hold_in_8_bits(made, fp8_layers(made, card), setting.w8a8)
    if setting.fp8_scaled:
        hold_in_fp8(made, fp8_layers(made, card), "block")
    stay = plan.stay(made)
    for name, empty in list(made.state_dict(keep_vars=True).items()):
        _fill(made, name, _random(name, tuple(empty.shape), dtype, device), torch.device("cpu") if name in stay else device)
    switches: Any = made
    switches.gradient_checkpointing, switches.gradient_checkpointing_cpu_offload = setting.checkpointing, setting.offload
    switches.kept_attention = KeptAttention(on_device=1000 * setting.keep_attention)
    switches.set_attention(setting.attention, setting.split)
    plan.finish(made, device)
    network = LoRANetwork.create(made.requires_grad_(False).eval(), card, LORA_RANK, LORA_ALPHA).train()
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.copy_(0.02 * _random(name, tuple(parameter.shape), torch.float32, device))
    streams = {id(block.stream): block.stream for blocks in switches.block_lists() for block in blocks if getattr(block, "stream", None)}
    return Trained(made, network, device, model.call, list(streams.values()))


def _fill(model: nn.Module, name: str, tensor: Tensor, home: torch.device) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, TakesWeight) and leaf == "weight":
        tensor = owner.take(tensor, None, home)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor.to(home), requires_grad=False)
    else:
        owner._buffers[leaf] = tensor.to(home)


def _random(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Drawn on the device, so that 14 billion numbers take a second; norms are near one."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    if len(shape) < 2:
        middle = float("norm" in name and name.endswith("weight"))
        return torch.randn(shape, generator=generator, device=device).mul_(0.02).add_(middle).to(dtype)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(1 / math.sqrt(math.prod(shape[1:])))


def latents(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents and noise [1, 16, F, H, W], drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(1, 16, *size.latents, generator=generator) for _ in range(2))
    return first.to(device), second.to(device)


def _text(width: int, device: torch.device) -> Tensor:
    return torch.randn(_TEXT, width, generator=torch.Generator().manual_seed(2)).to(device)


def wan_call(model: nn.Module, noisy: Tensor, timesteps: Tensor) -> Tensor:
    sizes: Any = model.geometry
    length = min(_TEXT, sizes.text_len)
    result: Tensor = model(noisy, timesteps, [_text(sizes.text_dim, noisy.device)[:length]])
    return result


def _joint_text(model: Any, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = model.geometry
    pooled = torch.randn(1, sizes.pooled_dim, generator=torch.Generator().manual_seed(3)).to(noisy.device)
    return _text(sizes.text_dim, noisy.device)[None], torch.ones(1, _TEXT, dtype=torch.bool), pooled, noisy.new_full((1,), 1000.0)


def _hunyuan(model: nn.Module, noisy: Tensor, timesteps: Tensor) -> Tensor:
    result: Tensor = model(noisy, timesteps, *_joint_text(model, noisy))
    return result


def _framepack(model: nn.Module, noisy: Tensor, timesteps: Tensor) -> Tensor:
    sizes: Any = model.geometry
    frames = noisy.shape[2]
    given: Mapping[str, Tensor] = History(noisy[0, :, :1].detach(), frames, f1=False).conditions(Section(0))
    image = torch.randn(1, 729, sizes.image_dim, generator=torch.Generator().manual_seed(4)).to(noisy.device)

    def history(part: str) -> Clean:
        return Clean(given[f"latents_clean{part}"][None], given[f"clean_latent{part}_indices"][None])

    result: Tensor = model(
        noisy, timesteps, *_joint_text(model, noisy), image=image, latent_indices=given["latent_indices"][None], clean=history(""),
        clean_2x=history("_2x"), clean_4x=history("_4x"),
    )  # fmt: skip
    return result


_JOINT = {"dim": 3072, "num_heads": 24, "mlp_dim": 12288, "num_double_layers": 20, "num_single_layers": 40}
_TINY = {"dim": 64, "num_heads": 2, "mlp_dim": 128, "num_double_layers": 2, "num_single_layers": 4, "text_dim": 64, "pooled_dim": 32}
MODELS = (
    Model("Wan 1.3B", "wan", WanGeometry(1536, 8960, 12, 30), WanTransformer, wan_call),
    Model("Wan 14B", "wan", WanGeometry(5120, 13824, 40, 40), WanTransformer, wan_call),
    Model("HunyuanVideo", "hv", HunyuanGeometry(**_JOINT), HunyuanTransformer, _hunyuan),
    Model("FramePack", "fp", FramePackGeometry(**_JOINT), FramePackTransformer, _framepack),
)
_WIDTHS: Any = {"rope_widths": (4, 14, 14), "num_refiner_layers": 1}
SMALL = (
    Model("small Wan", "wan", WanGeometry(64, 128, 2, 3, text_dim=64, text_len=32, freq_dim=32), WanTransformer, wan_call),
    Model("small HunyuanVideo", "hv", HunyuanGeometry(**_TINY, **_WIDTHS), HunyuanTransformer, _hunyuan),
    Model("small FramePack", "fp", FramePackGeometry(**_TINY, **_WIDTHS, image_dim=48), FramePackTransformer, _framepack),
)
IMAGE, SHORT, LONG = Size(512, 512, 1), Size(832, 480, 33), Size(832, 480, 81)
SECTION = Size(640, 640, 4 * _WINDOW - 3)
SMALLEST = Size(64, 64, 5)
