"""The table: what each memory saver, precision and attention promises, per family, and how a training may be interrupted.

A promise is equal bits, or a tolerance with its reason. Tolerances are relative: |result - reference| / |reference| over all tensors that
training changed (norms), or over the generated latents.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from contract_models import FAMILIES

JOINT = ("hv", "fp")
EVERY = tuple(FAMILIES)


@dataclass(frozen=True)
class Promise:
    """limit: None for equal bits. least: the result must differ by as much, or the setting did nothing."""

    limit: float | None
    why: str
    least: float = 0.0


BITS = Promise(None, "weights come and go unchanged, and what is computed again is computed in the same way")
REPEATED = Promise(None, "a seed gives the same bits each time")
EIGHT_BITS = Promise(0.15, "weights keep 3 bits of mantissa: 3 to 6 % of each product", least=1e-4)
SAME_MATHS = Promise(2e-2, "the same sums in another order; in 16 bits on a GPU each rounds to 3 digits")
SIXTEEN_BITS = Promise(4e-2, "bf16 keeps 8 bits of mantissa; where this device computes in 16 bits anyway the difference is 0")


@dataclass(frozen=True)
class Setting:
    """One row. flags: `{swap}` is what the family can swap, `{compiler}` a compiler that the device has. reference: the row it is compared
    with. needs: see `lacking`. families: where the option exists and has an effect. slow: a minute on a CPU, so only with `--full`."""

    name: str
    flags: tuple[str, ...] = ()
    promise: Promise = BITS
    reference: str = "plain"
    families: tuple[str, ...] = EVERY
    needs: tuple[str, ...] = ()
    slow: bool = False


_SWAP, _PINNED = ("--blocks_to_swap", "{swap}"), ("--use_pinned_memory_for_block_swap",)
_AGAIN = ("--gradient_checkpointing",)
_OFFLOADED = (*_AGAIN, "--gradient_checkpointing_cpu_offload", "--keep_attention_blocks", "1", "--offload_attention_blocks", "1")
_SCALED = ("--fp8_base", "--fp8_scaled")
_SWAPPING = ("wan", *JOINT)  # two experts are offloaded instead
_SCALING = ("wan", "wan22", "fp")  # HunyuanVideo has no --fp8_scaled

TRAINING = (
    Setting("plain", promise=REPEATED),
    Setting("checkpointing", _AGAIN),
    Setting("checkpointing offload", _OFFLOADED),
    Setting("swap", _SWAP, families=_SWAPPING),
    Setting("swap pinned", (*_SWAP, *_PINNED), families=_SWAPPING),
    Setting("swap pinned ring 1 checkpointing", (*_SWAP, *_PINNED, *_AGAIN, "--block_swap_ring_size", "1"), families=_SWAPPING),
    Setting("swap experts", _SWAP, families=("wan22",)),
    Setting("offload inactive", ("--offload_inactive_dit",), families=("wan22",)),
    Setting("fp8", ("--fp8_base",), EIGHT_BITS),
    Setting("fp8 swap", ("--fp8_base", *_SWAP), reference="fp8", families=_SWAPPING),
    Setting("fp8 swap pinned offload", ("--fp8_base", *_SWAP, *_PINNED, *_OFFLOADED), reference="fp8", families=("hv",)),
    Setting("fp8 scaled", _SCALED, EIGHT_BITS, families=_SCALING),
    Setting("fp8 scaled swap pinned offload", (*_SCALED, *_SWAP, *_PINNED, *_OFFLOADED), reference="fp8 scaled", families=("wan", "fp")),
    Setting(
        "fp8 scaled offload inactive", (*_SCALED, "--offload_inactive_dit", *_PINNED, *_AGAIN), reference="fp8 scaled",
        families=("wan22",),
    ),
    Setting("lora per expert", ("--lora_per_expert",), REPEATED, "lora per expert", ("wan22",)),
    Setting(
        "lora per expert offload", ("--lora_per_expert", "--offload_inactive_dit", *_PINNED, *_OFFLOADED), reference="lora per expert",
        families=("wan22",),
    ),
    Setting("split attention", ("--split_attn",), SAME_MATHS),
    Setting("flash", ("--flash_attn",), SAME_MATHS, needs=("flash_attn", "cuda", "16 bits")),
    Setting("flash 3", ("--flash3",), SAME_MATHS, needs=("flash_attn_interface", "cuda", "16 bits")),
    Setting("xformers", ("--xformers",), SAME_MATHS, needs=("xformers", "cuda")),
    Setting("tf32", ("--cuda_allow_tf32",), SAME_MATHS, needs=("cuda",)),
    Setting(
        "compiled", ("--compile", "--compile_backend", "{compiler}", *_AGAIN), SAME_MATHS, needs=("compiler",), slow=True,
    ),
    Setting(
        "compiled fp8 scaled swap", (*_SCALED, *_SWAP, "--compile", "--compile_backend", "{compiler}", *_AGAIN), SAME_MATHS, "fp8 scaled",
        ("wan", "fp"), ("compiler",), slow=True,
    ),
)  # fmt: skip

_CFG = ("--guidance_scale", "3")
GENERATING = (
    Setting("plain", promise=REPEATED),
    Setting("swap", _SWAP, families=_SWAPPING),
    Setting("swap pinned", (*_SWAP, *_PINNED), families=_SWAPPING),
    Setting("fp8", ("--fp8",), EIGHT_BITS),
    Setting("fp8 swap", ("--fp8", *_SWAP), reference="fp8", families=_SWAPPING),
    Setting("fp8 scaled", ("--fp8_scaled",), EIGHT_BITS, families=_SCALING),
    Setting("fp8 scaled swap pinned", ("--fp8_scaled", *_SWAP, *_PINNED), reference="fp8 scaled", families=("wan", "fp")),
    Setting("fp8 fast", ("--fp8", "--fp8_fast"), EIGHT_BITS, families=("wan", "wan22", "hv"), needs=("8-bit products",)),
    Setting("lazy", ("--lazy_loading",), families=("wan22",)),
    Setting("offload inactive", ("--offload_inactive_dit",), families=("wan22",)),
    Setting("fp8 scaled lazy", ("--fp8_scaled", "--lazy_loading"), reference="fp8 scaled", families=("wan22",)),
    Setting("fp8 scaled offload inactive", ("--fp8_scaled", "--offload_inactive_dit"), reference="fp8 scaled", families=("wan22",)),
    Setting("cfg", _CFG, REPEATED, "cfg"),
    Setting("cfg swap", (*_CFG, *_SWAP), reference="cfg", families=_SWAPPING),
    Setting("cfg one by one", (*_CFG, "--split_uncond"), SAME_MATHS, "cfg", ("hv",)),
    Setting("cfg skipped", (*_CFG, "--cfg_skip_mode", "none", "--cfg_apply_ratio", "0.5"), reference="cfg", families=("wan", "wan22")),
    Setting("flash", ("--attn_mode", "flash"), SAME_MATHS, needs=("flash_attn", "cuda", "16 bits")),
    Setting("xformers", ("--attn_mode", "xformers"), SAME_MATHS, needs=("xformers", "cuda")),
    Setting("compiled", ("--compile", "--compile_backend", "{compiler}"), SAME_MATHS, needs=("compiler",), slow=True),
)  # fmt: skip

PRECISIONS = ("auto", "16 bits")
"""auto: the file's own, on a CPU without instructions for it float32. 16 bits: the file's own, imitated if need be."""
LIVES = ("straight", "resumed", "cancelled")


@dataclass(frozen=True)
class Cell:
    family: str
    precision: str
    setting: Setting
    life: str

    def __str__(self) -> str:
        return "-".join((self.family, self.precision, self.setting.name, self.life)).replace(" ", "_")


def row(table: tuple[Setting, ...], name: str) -> Setting:
    return next(one for one in table if one.name == name)


def training_cells(full: bool) -> Iterator[Cell]:
    """Every family with every row, precision and life (compiled blocks hide the layers by which a cancel is timed); without `full` one life
    and precision of each row, and of each family a few rows in the others."""
    chosen = {("16 bits", "straight"): 2, ("auto", "resumed"): 1, ("auto", "cancelled"): 1}
    for name in FAMILIES:
        rows = [one for one in TRAINING if name in one.families]
        if full:
            every = product(PRECISIONS, rows, LIVES)
            yield from (Cell(name, precision, one, life) for precision, one, life in every if life == "straight" or not one.slow)
            continue
        yield from (Cell(name, "auto", one, "straight") for one in rows if not one.slow)
        everything = next(one for one in rows if "fp8" in one.name and "off" in one.name)
        for (precision, life), count in chosen.items():
            yield from (Cell(name, precision, one, life) for one in (everything, rows[0])[:count])


def generating_cells(full: bool) -> Iterator[Cell]:
    for name in FAMILIES:
        yield from (Cell(name, "auto", one, "straight") for one in GENERATING if name in one.families and (full or not one.slow))


def lacking(needs: tuple[str, ...], device: str, sixteen_bits: bool) -> str | None:
    """What this device or environment has not of what a row needs; None where nothing is lacking."""
    for need in needs:
        if need == "cuda":
            missing = device != "cuda"
        elif need == "16 bits":
            missing = not sixteen_bits
        elif need == "8-bit products":
            missing = device == "cuda" and _capability() < (8, 9)
        elif need == "compiler":
            missing = device == "cuda" and importlib.util.find_spec("triton") is None
        else:
            missing = importlib.util.find_spec(need) is None
        if missing:
            return f"needs {need}"
    return None


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()
