"""bitsandbytes' optimizers, whose state is one byte per number; on NVIDIA GPUs, and from 0.50 on a CPU too."""

from __future__ import annotations

from ..entry import Argument, Entry, betas, number, whole
from .shared import decay, eps

_SMALLEST = whole("min_8bit_size", 4096, 0, 2**31, "Weights of fewer numbers keep their state in fp32: many LoRA matrices are that small.")
_LION = (betas(0.9, 0.99), decay(0), _SMALLEST)
_MIX = (betas(0.9, 0.999, 0.9999), number("alpha", 5.0, 0, 100, "Weight of the slow average."),
        whole("t_alpha", None, 1, 10**9, "Steps in which alpha rises; None: at once."),
        whole("t_beta3", None, 1, 10**9, "Steps in which the third beta rises; None: at once."), eps(), decay(0.01), _SMALLEST)  # fmt: skip
_PAGED = " Its state moves to system RAM when the GPU is full."


def _entry(name: str, help: str, source: str, state: float, arguments: tuple[Argument, ...], rate: float = 2e-4) -> Entry:
    return Entry(
        name, "8-bit", f"bitsandbytes.optim:{name}", help, source, state, needs="bitsandbytes", extra="optimizers",
        learning_rate=rate, rate=f"about {rate:g} for a LoRA", arguments=arguments,
    )  # fmt: skip


_ADAM = (betas(0.9, 0.999), eps(), decay(0.01), _SMALLEST)
ENTRIES = (
    _entry("AdamW8bit", "AdamW with a quarter of its state.", "arXiv:2110.02861", 2.1, _ADAM),
    _entry("PagedAdamW8bit", "AdamW8bit." + _PAGED, "arXiv:2110.02861, arXiv:2305.14314", 2.1, _ADAM),
    _entry("Lion8bit", "Lion with one byte per weight.", "arXiv:2302.06675", 1.1, _LION, 5e-5),
    _entry("PagedLion8bit", "Lion8bit." + _PAGED, "arXiv:2302.06675", 1.1, _LION, 5e-5),
    _entry("AdEMAMix8bit", "Adam with a second, slow average.", "arXiv:2409.03137", 3.1, _MIX),
    _entry("PagedAdEMAMix8bit", "AdEMAMix8bit." + _PAGED, "arXiv:2409.03137", 3.1, _MIX),
)
