"""LoRA files as other trainers write them: every tensor is used as that program means it, or named; what cannot be applied is rejected.

Each row is one file for the layer `blocks.0.self_attn.q` (or more), and the differences it makes, worked out here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from musubi_backend.lora.merging import LoRAMerge
from musubi_backend.lora.tensor_names import HIGH_NOISE, LOW_NOISE
from musubi_backend.weights.recognise import recognise
from musubi_backend.weights.safetensors_file import load, save_atomic
from torch import Tensor

WIDTH, RANK = 8, 2
Q, UNDERSCORED = "blocks.0.self_attn.q", "blocks_0_self_attn_q"
DIFFUSERS = "blocks.0.attn1.to_q"
torch.manual_seed(0)
DOWN, UP, OTHER_DOWN, OTHER_UP = (torch.randn(*shape) for shape in ((RANK, WIDTH), (WIDTH, RANK)) * 2)
FIRST, SECOND, NORM, TABLE = torch.randn(2, 2), torch.randn(4, 4), torch.randn(WIDTH), torch.randn(1, 6, WIDTH)
PRODUCT, KRON = UP @ DOWN, torch.kron(FIRST, SECOND)
LOHA = {"hada_w1_a": UP, "hada_w1_b": DOWN, "hada_w2_a": OTHER_UP, "hada_w2_b": OTHER_DOWN}
HADAMARD = PRODUCT * (OTHER_UP @ OTHER_DOWN)


@dataclass(frozen=True)
class Case:
    """tensors and metadata of a file; the changes it makes to the model's tensors; what of it is named; what next to it (PEFT)."""

    tensors: dict[str, Tensor]
    changes: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    config: str = ""


def pair(layer: str, down: str = "lora_A.weight", up: str = "lora_B.weight", alpha: float | None = None) -> dict[str, Tensor]:
    alphas = {} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha)}
    return {f"{layer}.{down}": DOWN, f"{layer}.{up}": UP, **alphas}


def kohya(layer: str, alpha: float = 3.0) -> dict[str, Tensor]:
    return pair(layer, "lora_down.weight", "lora_up.weight", alpha)


def q(change: Tensor) -> dict[str, Tensor]:
    return {f"{Q}.weight": change}


def peft(**settings: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in settings.items()})}


OF_TEXT = kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1")
CASES = {
    "musubi-tuner, kohya": Case(kohya(f"lora_unet_{UNDERSCORED}"), q(1.5 * PRODUCT)),
    "alpha below 0": Case(kohya(f"lora_unet_{UNDERSCORED}", -4.0), q(-2 * PRODUCT)),
    "alpha 0": Case({**pair(f"diffusion_model.{Q}", alpha=0.0), f"diffusion_model.{Q}.lora_B.bias": NORM}, q(0 * PRODUCT)),
    "alpha as [1]": Case({**pair(f"lora_unet_{UNDERSCORED}", "lora_down.weight", "lora_up.weight"),
                          f"lora_unet_{UNDERSCORED}.alpha": torch.tensor([3])}, q(1.5 * PRODUCT)),
    "VideoX-Fun": Case(kohya(f"lora_unet__{UNDERSCORED}"), q(1.5 * PRODUCT)),
    "upper case": Case(kohya(f"LORA_UNET_{UNDERSCORED}"), q(1.5 * PRODUCT)),
    "1x1 convolutions": Case({name: t[..., None, None] if t.ndim else t for name, t in kohya(f"lora_unet_{UNDERSCORED}").items()},
                             q(1.5 * PRODUCT)),
    "diffusion-pipe": Case(pair(f"diffusion_model.{Q}"), q(PRODUCT)),
    "DiffSynth": Case(pair(f"pipe.dit.{Q}", "lora_A.default.weight", "lora_B.default.weight"), q(PRODUCT)),
    "a network of its own": Case(pair(f"_orig_mod.network.{Q}"), q(PRODUCT)),
    "DDP": Case(pair(f"module.{Q}"), q(PRODUCT)),
    "no word weight": Case(pair(f"diffusion_model.{Q}", "lora_A", "lora_B"), q(PRODUCT)),
    "diffusers": Case(pair(f"transformer.{DIFFUSERS}", "lora.down.weight", "lora.up.weight"), q(PRODUCT)),
    "diffusers, before PEFT": Case(
        pair(f"transformer.{DIFFUSERS}".replace("to_q", "processor.to_q_lora"), "down.weight", "up.weight"), q(PRODUCT)
    ),
    "diffusers, before PEFT, output": Case(
        pair("transformer.blocks.0.attn1.processor.to_out_lora", "down.weight", "up.weight"), {"blocks.0.self_attn.o.weight": PRODUCT}
    ),
    "transformers": Case(pair(Q, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), q(PRODUCT)),
    "PEFT, named adapter": Case(pair(f"base_model.model.{Q}.base_layer", "lora_A.my-style_v2.weight", "lora_B.my-style_v2.weight"),
                                q(PRODUCT)),
    "PEFT, rank-stabilised": Case(pair(f"transformer.{DIFFUSERS}"), q(4 / 2**0.5 * PRODUCT), peft(lora_alpha=4, use_rslora=True)),
    "PEFT, its alpha": Case(pair(f"transformer.{DIFFUSERS}"), q(2.5 * PRODUCT), peft(lora_alpha=5, r=64, rank_pattern={"attn1.to_q": 2})),
    "PEFT, alpha by pattern": Case(
        pair(f"transformer.{DIFFUSERS}"), q(3.5 * PRODUCT),
        peft(lora_alpha=5, alpha_pattern={"attn1": 100, "o_q": 200, "blocks.0.attn1.to_q.more": 300, r".*\.attn1\.to_q": 7}),
    ),
    "PEFT, LoHa": Case({f"base_model.model.{Q}.{part}": t for part, t in LOHA.items()}, q(2 * HADAMARD), config='{"alpha": 4, "r": 2}'),
    "PEFT, a bias and a saved layer": Case(
        {**pair(f"base_model.model.{Q}", alpha=6.0), f"base_model.model.{Q}.lora_B.bias": NORM,
         "base_model.model.head.head.modules_to_save.default.weight": TABLE},
        {**q(3 * PRODUCT), f"{Q}.bias": 3 * NORM}, named=("base_model.model.head.head.modules_to_save.default.weight",),
    ),
    "a bias of the first factor": Case({**pair(f"diffusion_model.{Q}"), f"diffusion_model.{Q}.lora_A.bias": torch.ones(RANK)}, q(PRODUCT),
                                       named=(f"diffusion_model.{Q}.lora_A.bias",)),
    "LoHa": Case({f"lycoris_{UNDERSCORED}.{part}": t for part, t in {**LOHA, "alpha": torch.tensor(3.0)}.items()}, q(1.5 * HADAMARD)),
    "LoKr of a rank": Case(
        {f"lora_unet_{UNDERSCORED}.{part}": t for part, t in {"lokr_w1": FIRST, "lokr_w2_a": SECOND[:, :1], "lokr_w2_b": SECOND[:1],
                                                              "alpha": torch.tensor(0.5)}.items()},
        q(0.5 * torch.kron(FIRST, SECOND[:, :1] @ SECOND[:1])),
    ),
    "ai-toolkit, a LoKr whose alpha counts for nothing": Case(
        {f"diffusion_model.{Q}.{part}": t for part, t in {"lokr_w1": FIRST, "lokr_w2": SECOND, "alpha": torch.tensor(9999220736)}.items()},
        q(KRON), {"software": '{"name": "ai-toolkit"}'},
    ),
    "LyCORIS, norms": Case(
        {**kohya(f"lycoris_{UNDERSCORED}"), "lycoris_blocks_0_norm3.w_norm": NORM, "lycoris_blocks_0_norm3.b_norm": -NORM},
        {**q(1.5 * PRODUCT), "blocks.0.norm3.weight": NORM, "blocks.0.norm3.bias": -NORM},
    ),
    "lightx2v": Case(
        {**pair(f"diffusion_model.{Q}", "lora_down.weight", "lora_up.weight"), f"diffusion_model.{Q}.diff_b": NORM,
         "diffusion_model.blocks.0.self_attn.norm_q.diff": -NORM, "diffusion_model.blocks.0.diff_m": TABLE},
        {**q(PRODUCT), f"{Q}.bias": NORM, "blocks.0.self_attn.norm_q.weight": -NORM, "blocks.0.modulation": TABLE},
    ),
    "text encoders inside": Case({**kohya(f"lora_unet_{UNDERSCORED}"), **OF_TEXT}, q(1.5 * PRODUCT), named=tuple(OF_TEXT)),
    "counters inside": Case({**pair(Q), "global_step": torch.tensor(3)}, q(PRODUCT), named=("global_step",)),
    "OFT inside": Case({**pair(f"lora_unet_{UNDERSCORED}"), "lora_unet_blocks_0_ffn_0.oft_blocks": SECOND}, q(PRODUCT),
                       named=("lora_unet_blocks_0_ffn_0.oft_blocks",)),
    "half a pair and an alpha": Case(
        {**pair(f"lora_unet_{UNDERSCORED}"), "lora_unet_blocks_0_ffn_0.lora_down.weight": DOWN, "lora_unet_blocks_0_ffn_2.alpha": NORM[0]},
        q(PRODUCT), named=("lora_unet_blocks_0_ffn_0.lora_down.weight", "lora_unet_blocks_0_ffn_2.alpha"),
    ),
    "16-bit factors": Case({name: t.half() for name, t in pair(Q).items()}, q(UP.half().float() @ DOWN.half().float())),
    "fp8 factors": Case({name: t.to(torch.float8_e4m3fn) for name, t in pair(Q).items()},
                          q(UP.to(torch.float8_e4m3fn).float() @ DOWN.to(torch.float8_e4m3fn).float())),
    "Wan2.2, low noise": Case(pair(f"transformer_2.{DIFFUSERS}"), q(PRODUCT)),
    "Wan2.2, high noise": Case(kohya(f"lora_unet_high_noise_model_{UNDERSCORED}"), q(1.5 * PRODUCT)),
}  # fmt: skip


def model() -> dict[str, Tensor]:
    torch.manual_seed(1)
    square, line = (
        ("self_attn.q.weight", "self_attn.o.weight"),
        ("self_attn.q.bias", "self_attn.norm_q.weight", "norm3.weight", "norm3.bias"),
    )
    tensors = {f"blocks.0.{name}": torch.randn(WIDTH, WIDTH) for name in square} | {f"blocks.0.{name}": torch.randn(WIDTH) for name in line}
    outside = {"time_projection.1.weight": torch.randn(4, 4), "patch_embedding.weight": torch.randn(4, 16, 1, 2, 2)}
    return {**tensors, **outside, "blocks.0.modulation": torch.randn(1, 6, WIDTH)}


def written(case: Case, folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    save_atomic({name: tensor.contiguous() for name, tensor in case.tensors.items()}, path, case.metadata)
    if case.config:
        (folder / "adapter_config.json").write_text(case.config, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_used_or_named(
    name: str, tmp_path: Path, run_tool: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    path, base = written(case, tmp_path), tmp_path / "base.safetensors"
    save_atomic(model(), base)
    assert str(recognise(path)).startswith("LoRA")
    files = [path]
    for target in ("other", "default"):
        files.append(tmp_path / f"{target}.safetensors")
        capsys.readouterr()
        run_tool("convert_lora", "--input", path, "--output", files[-1], "--target", target)
        said = capsys.readouterr().err
        assert all(key in said for key in case.named) and ("unexpected" in said) == bool(case.named)
    wanted = {key: tensor + case.changes.get(key, 0) for key, tensor in model().items()}
    capsys.readouterr()
    run_tool("merge_lora", "--dit", base, "--lora_weight", path, "--save_merged_model", tmp_path / "out.safetensors")
    said = capsys.readouterr().err
    assert all(key in said for key in case.named) and ("not all LoRA keys are used" in said) == bool(case.named)
    torch.testing.assert_close(load(tmp_path / "out.safetensors"), wanted, rtol=1e-4, atol=1e-4)
    for file in files:
        merge, atol = LoRAMerge([file], architecture="wan"), 0.2 if "bit" in name else 1e-4
        torch.testing.assert_close({key: merge(key, tensor).float() for key, tensor in model().items()}, wanted, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({**pair(f"diffusion_model.{Q}"), f"diffusion_model.{Q}.lora_A.scale_weight": torch.tensor(2.0)}, "in fp8 with scales of their"),
        ({f"{Q}.a1.weight": UP, f"{Q}.a2.weight": UP}, "holds no LoRA"),
        ({f"lora_unet_{UNDERSCORED}.oft_blocks": SECOND, f"lora_unet_{UNDERSCORED}.alpha": torch.tensor(1.0)}, "holds no LoRA"),
        ({f"{Q}_loras.down.weight": DOWN, f"{Q}_loras.up.weight": UP}, "holds no LoRA"),
        ({**pair(f"diffusion_model.{Q}"), **kohya(f"diffusion_model.{Q}")}, "are the same tensor of one layer"),
        ({**pair(f"transformer.{DIFFUSERS}"), **pair(f"transformer_2.{DIFFUSERS}")}, "--expert high and --expert low"),
        ({key: part[:0] if "A" in key else part[:, :0] for key, part in pair(f"diffusion_model.{Q}").items()}, "is empty"),
        ({**pair(f"diffusion_model.{Q}"), f"diffusion_model.{Q}.alpha": torch.tensor(torch.inf)}, "its alpha is inf"),
    ],
)
def test_what_cannot_be_applied_is_rejected(tensors: dict[str, Tensor], words: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    save_atomic({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    for tool in (("convert_lora", "--target", "other", "--input"), ("combine_lora", "--lora_weight")):
        assert words in refusal(*tool, tmp_path / "a.safetensors", "--output", tmp_path / "out.safetensors")


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_no_model(number: float, tmp_path: Path, refusal: Callable[..., str]) -> None:
    tensors = {name: tensor.clone() for name, tensor in pair(f"diffusion_model.{Q}").items()}
    next(iter(tensors.values())).flatten()[0] = number
    save_atomic(tensors, tmp_path / "a.safetensors")
    save_atomic(model(), tmp_path / "model.safetensors")
    told = refusal(
        *("merge_lora", "--dit", tmp_path / "model.safetensors", "--lora_weight", tmp_path / "a.safetensors"),
        *("--save_merged_model", tmp_path / "out.safetensors"),
    )
    assert "holds numbers that are not finite" in told and not (tmp_path / "out.safetensors").exists()


def test_a_whole_lokr_that_peft_scales_is_rejected(tmp_path: Path, refusal: Callable[..., str]) -> None:
    tensors = {f"base_model.model.{Q}.lokr_w1": FIRST, f"base_model.model.{Q}.lokr_w2": SECOND}
    words = ["convert_lora", "--target", "other", "--output", tmp_path / "out", "--input"]
    path = written(Case(tensors, {}, config='{"alpha": 4, "r": 2}'), tmp_path)
    assert "adapter_config.json scales blocks.0.self_attn.q by 4 / 2" in refusal(*words, path)


def test_each_expert_gets_its_own_layers_of_a_file_for_both(tmp_path: Path, run_tool: Callable[..., None]) -> None:
    """diffusers: `transformer` is the high-noise expert, `transformer_2` the low-noise one."""
    high = {key: -tensor if "lora_B" in key else tensor for key, tensor in pair(f"transformer.{DIFFUSERS}").items()}
    save_atomic({**high, **pair(f"transformer_2.{DIFFUSERS}")}, tmp_path / "a.safetensors")
    for expert, sign in ((LOW_NOISE, 1), (HIGH_NOISE, -1)):
        found = LoRAMerge([tmp_path / "a.safetensors"], expert=expert)(f"{Q}.weight", torch.zeros(WIDTH, WIDTH))
        torch.testing.assert_close(found, sign * PRODUCT)
        words = ["--input", tmp_path / "a.safetensors", "--target", "other", "--expert", expert]
        run_tool("convert_lora", *words, "--output", tmp_path / f"{expert}.safetensors")
        found = LoRAMerge([tmp_path / f"{expert}.safetensors"])(f"{Q}.weight", torch.zeros(WIDTH, WIDTH))
        torch.testing.assert_close(found, sign * PRODUCT)
