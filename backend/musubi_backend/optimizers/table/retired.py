"""Names of programs whose rule cannot be made sound: what is wrong with it, and what to take."""

from __future__ import annotations

_ALIKE = "it is AdaptiveHinaAdamW with squares in bfloat16, which cannot fall"

RETIRED = {
    "automagiccameampimproved": "its torque grows by a fifth in every step until no weight moves any more; use Automagic_CameAMP",
    "automagiccameampimproved8bit": "its warm-up ignores the sign of the gradient, so that the loss rises; use Automagic_CameAMP8bit",
    "automagic2": "its rates have nothing that stops them from rising; use Automagic3",
    "automagicadams": "it multiplies momentum and gradient where they are added, so that weights move one way only; use AdEMAMix",
    "automagicsplus": "its state is hundreds of bytes per weight and cannot be loaded again; use SOAP",
    "hinaadaptive": f"{_ALIKE}, and has penalties of no paper; use AdaptiveHinaAdamW8bit",
    "memoryoptimizedadaptivehinaadamw": f"{_ALIKE}; use AdaptiveHinaAdamW8bit",
    "hinaadaptiveadamwmemoryoptimized": f"{_ALIKE}; use AdaptiveHinaAdamW8bit",
    "hinaadaptiveadamwmemoryoptimized8bit": f"{_ALIKE}; use AdaptiveHinaAdamW8bit",
    "hinaadaptiveadamwbf16": f"{_ALIKE}; use AdaptiveHinaAdamW8bit, which works with bfloat16 weights",
    "prodigyadv": "after a save and a load it goes on with other steps (adv_optm 2.5.16); use Prodigy",
    "lionadv": "its state cannot be loaded again (adv_optm 2.5.16), so no training could continue; use Lion",
}
"""Without case, "_" and "-"."""
