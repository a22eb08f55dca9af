"""The same step as musubi-tuner writes it, from a checkout of it: its transformer, LoRA, fp8, block swap and order of casts.

What it imports beside torch, numpy, safetensors and tqdm: packages whose names only are needed here are not asked for; a family whose step
calls one that is not installed is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from musubi_backend.errors import UserError
from torch import Tensor, nn

from .gpu_models import LORA_ALPHA, LORA_RANK, Batch, Model, Setting, Trained, fill_lora, random_weight
from .timed_run import lengths_on_the_cpu

_NAMES_ONLY = {"accelerate": ("init_empty_weights",), "transformers": ("CLIPTextModel",)}
"""Packages of which a module names something that a step never calls."""


@dataclass(frozen=True)
class _Family:
    """module: of the transformer. calls: packages that a step calls. predict: (model, noisy, timesteps, batch) -> prediction. fp8: has it
    `--fp8_scaled`? packages: those that import text encoders and VAEs, which are left alone."""

    module: str
    lora: str
    make: Callable[[ModuleType, Any], nn.Module]
    predict: Callable[[Any, Tensor, Tensor, dict[str, Any]], Tensor]
    calls: tuple[str, ...] = ()
    fp8: bool = True
    packages: tuple[str, ...] = ()


class Musubi:
    """A checkout. UserError where it is none."""

    def __init__(self, checkout: Path) -> None:
        source = checkout / "src"
        if not (source / "musubi_tuner").is_dir():
            raise UserError(f"--musubi {checkout}: not a checkout of musubi-tuner, as there is no src/musubi_tuner in it")
        sys.path.insert(0, str(source))

    def lacks(self, model: Model, setting: Setting) -> str:
        """Why a configuration cannot be measured; "" where it can."""
        family = _FAMILIES[model.card_id]
        missing = [name for name in family.calls if importlib.util.find_spec(name) is None]
        if missing:
            return f"musubi-tuner's {model.name} needs {' and '.join(missing)}"
        if setting.fp8_scaled and not family.fp8:
            return f"musubi-tuner's {model.name} has no --fp8_scaled"
        if setting.w8a8 or setting.keep_attention or setting.attention_in_ram:
            return "musubi-tuner has no such setting"
        return ""

    def build(
        self,
        model: Model,
        setting: Setting,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        drawn_on: torch.device | None = None,
    ) -> Trained:
        """With the weights of `gpu_models.build`."""
        family = _FAMILIES[model.card_id]
        with _named_only():
            for package in family.packages:
                _without_its_init(package)
            module = importlib.import_module(f"musubi_tuner.{family.module}")
            lora = importlib.import_module(f"musubi_tuner.networks.{family.lora}")
            swapping = importlib.import_module("musubi_tuner.modules.custom_offloading_utils")
        if device.type == "cpu" and hasattr(module, "get_cu_seqlens") and module.get_cu_seqlens.__name__ != "on_the_cpu":
            lengths_on_the_cpu()
        with _empty_parameters():
            made: Any = family.make(module, model.geometry)
        made.to(dtype)
        home = torch.device("cpu") if setting.blocks_to_swap else device
        state: dict[str, Tensor] = {}
        for name, empty in list(made.state_dict().items()):
            part = {name: random_weight(name, tuple(empty.shape), dtype, device, drawn_on)}
            if setting.fp8_scaled:
                part = _fp8(module, part, device)
            state |= {key: tensor.to(home) for key, tensor in part.items()}
        if setting.fp8_scaled:
            importlib.import_module("musubi_tuner.modules.fp8_optimization_utils").apply_fp8_monkey_patch(made, state, use_scaled_mm=False)
        made.load_state_dict(state, strict=True, assign=True)
        made.requires_grad_(False)
        network = lora.create_arch_network(1.0, LORA_RANK, LORA_ALPHA, None, [], made)
        network.apply_to(None, made, apply_text_encoder=False, apply_unet=True)
        network.requires_grad_(True).to(device).train()
        fill_lora(network, device, drawn_on)
        if setting.checkpointing:
            made.enable_gradient_checkpointing(setting.offload)
        if setting.blocks_to_swap:
            streams = setting.checkpointing and device.type == "cuda"  # its faster way, `--block_swap_h2d_only`
            chosen = swapping.BlockSwapConfig(device, True, setting.pinned, streams, setting.ring)
            made.enable_block_swap(setting.blocks_to_swap, chosen)
            made.move_to_device_except_swap_blocks(device)
        made.train(setting.checkpointing)

        def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
            if setting.blocks_to_swap:
                made.prepare_block_swap_before_forward()
            noisy = noisy.to(dtype)
            if setting.checkpointing:
                noisy.requires_grad_(True)
            with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
                return family.predict(made, noisy, timesteps.to(device), {name: _on(value, device) for name, value in batch.items()})

        return Trained(made, network, device, predict, model.batch, nullcontext)


def _on(value: Any, device: torch.device) -> Any:
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)


def _fp8(module: ModuleType, state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    one = importlib.import_module("musubi_tuner.modules.fp8_optimization_utils")
    targets, others = module.FP8_OPTIMIZATION_TARGET_KEYS, module.FP8_OPTIMIZATION_EXCLUDE_KEYS
    with patch.object(one, "tqdm", list):  # a bar for each of a thousand tensors
        result: dict[str, Tensor] = one.optimize_state_dict_with_fp8(state, device, targets, others, move_to_device=True)
    return result


def _without_its_init(package: str) -> None:
    """Its modules can be imported without what its `__init__` imports."""
    name = f"musubi_tuner.{package}"
    if name not in sys.modules:
        root = importlib.import_module("musubi_tuner")
        made = ModuleType(name)
        made.__path__ = [str(Path(root.__path__[0], *package.split(".")))]
        sys.modules[name] = made


@contextmanager
def _named_only() -> Iterator[None]:
    """Empty modules in the place of packages that are not installed and of which only a name is wanted."""
    absent = {name: names for name, names in _NAMES_ONLY.items() if importlib.util.find_spec(name) is None}
    empty = {name: ModuleType(name) for name in absent}
    for name, module in empty.items():
        for one in absent[name]:
            setattr(module, one, None)
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Parameters on "meta", buffers and tables as they are: what accelerate's `init_empty_weights` does."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    with patch.object(nn.Module, "register_parameter", empty):
        yield


def _make_wan(module: ModuleType, g: Any) -> nn.Module:
    sizes = {name: getattr(g, name) for name in ("dim", "ffn_dim", "freq_dim", "num_heads", "num_layers", "text_len", "text_dim", "eps")}
    made: nn.Module = module.WanModel(model_type="t2v", attn_mode="torch", split_attn=False, **sizes)
    return made


def _wan(model: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Any]) -> Tensor:
    tokens = noisy[0, 0].numel() // 4
    return torch.stack(
        model(noisy, t=timesteps, context=[one.to(noisy.dtype) for one in batch["t5"]], clip_fea=None, seq_len=tokens, y=None)
    )


def _make_hunyuan(module: ModuleType, g: Any) -> nn.Module:
    made: nn.Module = module.HYVideoDiffusionTransformer(
        text_states_dim=g.text_dim, text_states_dim_2=g.pooled_dim, in_channels=g.in_dim, out_channels=g.out_dim, hidden_size=g.dim,
        heads_num=g.num_heads, mlp_width_ratio=g.mlp_dim / g.dim, mm_double_blocks_depth=g.num_double_layers,
        mm_single_blocks_depth=g.num_single_layers, rope_dim_list=list(g.rope_widths), guidance_embed=True, attn_mode="torch",
    )  # fmt: skip
    return made


def _hunyuan(model: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Any]) -> Tensor:
    module = sys.modules[type(model).__module__]
    shape = tuple(noisy.shape[2:])
    tables = model.__dict__.setdefault("_tables", {})
    if shape not in tables:
        tables[shape] = module.get_rotary_pos_embed_by_shape(model, shape)
    guidance = torch.full((len(noisy),), 1.0, device=noisy.device)
    result: Tensor = model(
        noisy, timesteps, text_states=batch["llm"], text_mask=batch["llm_mask"], text_states_2=batch["clipL"], freqs_cos=tables[shape][0],
        freqs_sin=tables[shape][1], guidance=guidance, return_dict=False,
    )  # fmt: skip
    return result


def _make_framepack(module: ModuleType, g: Any) -> nn.Module:
    made: nn.Module = module.HunyuanVideoTransformer3DModelPacked(
        attention_head_dim=g.dim // g.num_heads, guidance_embeds=True, has_clean_x_embedder=True, has_image_proj=True,
        image_proj_dim=g.image_dim, in_channels=g.in_dim, mlp_ratio=g.mlp_dim / g.dim, num_attention_heads=g.num_heads,
        num_layers=g.num_double_layers, num_refiner_layers=g.num_refiner_layers, num_single_layers=g.num_single_layers,
        out_channels=g.out_dim, patch_size=2, patch_size_t=1, pooled_projection_dim=g.pooled_dim, qk_norm="rms_norm",
        rope_axes_dim=g.rope_widths, rope_theta=256.0, text_embed_dim=g.text_dim, attn_mode="torch", split_attn=False,
    )  # fmt: skip
    return made


def _framepack(model: Any, noisy: Tensor, timesteps: Tensor, batch: dict[str, Any]) -> Tensor:
    def empty(part: str, frames: int) -> Tensor | None:
        given = batch.get(f"latents_clean_{part}")
        return noisy.new_zeros(len(noisy), 16, frames, *noisy.shape[3:]) if given is None else given

    result: Tensor = model(
        hidden_states=noisy, timestep=timesteps, encoder_hidden_states=batch["llama_vec"],
        encoder_attention_mask=batch["llama_attention_mask"], pooled_projections=batch["clip_l_pooler"],
        guidance=noisy.new_full((len(noisy),), 1000.0), latent_indices=batch["latent_indices"],
        clean_latents=batch["latents_clean"], clean_latent_indices=batch["clean_latent_indices"], clean_latents_2x=empty("2x", 2),
        clean_latent_2x_indices=batch["clean_latent_2x_indices"], clean_latents_4x=empty("4x", 16),
        clean_latent_4x_indices=batch["clean_latent_4x_indices"], image_embeddings=batch["image_embeddings"], return_dict=False,
    )[0]  # fmt: skip
    return result


_FAMILIES = {
    "wan": _Family("wan.modules.model", "lora_wan", _make_wan, _wan, packages=("wan", "wan.modules")),
    "hv": _Family("hunyuan_model.models", "lora", _make_hunyuan, _hunyuan, ("einops",), fp8=False),
    "fp": _Family("frame_pack.hunyuan_video_packed", "lora_framepack", _make_framepack, _framepack, ("einops",)),
}
