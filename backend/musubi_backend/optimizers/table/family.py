"""Our own optimizers. What the arguments do is in `staged.py`, `hina.py` and the papers that `stages.py` names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..entry import PAIR, Argument, Entry, betas, choice, flag, number, share, whole
from .shared import DECAY_HELP, ROUNDING, decay, eps

_EPS = eps()
_DECAY = f"{DECAY_HELP} Not with SPD, which replaces it."
_SPD = (
    number("spd_lambda", 0.06, 0, 1, "How much of the way from its anchor SPD takes back; 1: all."),
    choice("spd_anchor", "start", ("start", "zero"), "Where SPD pulls to: where each weight began, or 0, which needs no memory."),
)
_SCHEDULE = (
    whole("wd_transition_steps", 1000, 1, 10**9, "Steps until weight decay begins to fall."),
    number("wd_decay_factor", 0.7, 0, 1, "What weight decay falls by in as many steps again."),
    number("wd_min_ratio", 0.1, 0, 1, "Least share of weight decay that stays."),
)
_HELP = {
    "use_spd": "SPD: pull a tensor back only where the gradient wants it back (arXiv:2411.01713).",
    "use_cautious": "Leave out what of an update goes against the gradient (arXiv:2411.16085).",
    "use_orthogonal_grad": "Take out of the gradient what only makes a weight longer (arXiv:2501.04697).",
    "use_adopt_stability": "ADOPT instead of Adam's averages (arXiv:2411.02853). Not with TAM or GRAMS.",
    "use_grams": "GRAMS: the sign of the gradient, the size of the update (arXiv:2412.17107). Not with cautious.",
    "use_agr": "AGR: large gradients count a little less; hardly anything in large matrices (arXiv:2407.16944).",
    "use_tam": "TAM: gradients that turn away from the momentum count less (arXiv:2412.18790).",
    "dynamic_weight_decay": "Let weight decay fall after wd_transition_steps.",
}
_LEGACY = flag(
    "legacy", False, "The rule of the program that it comes from, with what is unsound in it; for runs that are to be like those."
)
_STAGED = (
    betas(0.9, 0.999), _EPS, number("weight_decay", 0.0, 0, 10, _DECAY),
    *(flag(name, False, text) for name, text in _HELP.items()),
    share("tam_beta", 0.9, "How slowly TAM's torque follows."), *_SPD, *_SCHEDULE, ROUNDING,
)  # fmt: skip


def _by_the_rule(on: tuple[str, ...]) -> tuple[Argument, ...]:
    """Switches whose default is the chosen rule's."""
    return tuple(flag(name, None, f"{text} None: {'on' if name in on else 'off'}; on with legacy." if name != "use_orthogonal_grad" else
                      f"{text} None: off.") for name, text in _HELP.items())  # fmt: skip


_HINA = (
    betas(0.9, 0.999), _EPS, number("weight_decay", None, 0, 10, f"{_DECAY} None: 0, as SPD is on; 0.01 with legacy."),
    *_by_the_rule(("use_spd", "use_cautious")),
    number("tam_beta", None, 0, 1, "How slowly TAM's torque follows. None: 0.9; 0.999 with legacy.", below=True),
    *_SPD, *_SCHEDULE, ROUNDING, _LEGACY,
)  # fmt: skip
_ADAPTIVE = (
    flag("use_dynamic_adaptation", True, "Let the learning rate of each tensor follow its importance, from half to twice."),
    number("adaptation_strength", 1.0, 0, 5, "How much importance counts; 0: not at all."),
    whole("relationship_discovery_interval", 100, 1, 10**6, "Steps between two looks at importance and pairs of weights."),
    share("importance_decay", 0.95, "How slowly importance follows."),
    number("compatibility_threshold", 0.3, 0, 1, "How well two weights without names must fit to be a pair."),
    flag("use_lr_mask", True, "During the warm-up raise the rate of tensors with steady gradients, lower that of others."),
    number("lr_bump", 3e-6, 0, 1, "Largest change of a tensor's learning rate in one step of the warm-up."),
    number("min_lr", 1e-7, 0, 1, "Lowest learning rate that the mask goes to."),
    number("max_lr", 1e-3, 0, 10, "Highest learning rate that the mask goes to; a higher learning rate stays as it is."),
    whole("warmup_steps", 500, 0, 10**9, "Steps in which the mask follows the gradients; then it slowly goes back to 1."),
)
_LORA = (
    flag("use_alora", True, "Matrices that begin as 0 learn slower as they grow (ALLoRA, arXiv:2410.09692)."),
    number("alora_ratio", None, 0.01, 1000, "How much faster those learn than their partners (LoRA+). None: 1; 16 with legacy."),
    number("alora_eta", 1.0, 0.01, 100, "Factor on the rate of a row of zeros in ALLoRA."),
)
_ADAPTIVE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "general": {"learning_rate": 1e-3},
    "large model": {
        "learning_rate": 5e-4, "adaptation_strength": 0.8, "relationship_discovery_interval": 200, "importance_decay": 0.98,
        "compatibility_threshold": 0.35, "lr_bump": 1e-6, "warmup_steps": 1000,
    },
    "SD LoRA": {
        "learning_rate": 8e-4, "adaptation_strength": 1.2, "relationship_discovery_interval": 150, "compatibility_threshold": 0.25,
        "lr_bump": 5e-6, "warmup_steps": 300, "spd_lambda": 0.08, "use_agr": True, "use_grams": True, "use_cautious": False,
    },
    "low memory": {
        "learning_rate": 1e-3, "relationship_discovery_interval": 300, "compatibility_threshold": 0.4, "lr_bump": 1e-6,
        "warmup_steps": 200, "spd_anchor": "zero",
    },
}  # fmt: skip
_LORA_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "SD": {"learning_rate": 8e-4, "alora_ratio": 16.0, "spd_lambda": 0.06},
    "LLM": {"learning_rate": 5e-4, "alora_ratio": 20.0, "use_adopt_stability": True},
    "LoKr": {"learning_rate": 1e-3, "alora_ratio": 18.0},
}
_OF = "hinablue/sd-scripts 0a888dc; the papers named with each argument"
_FIXED: Mapping[str, Any] = {"eight_bit": False, "compile_step": False}
_EIGHT: Mapping[str, Any] = {"eight_bit": True, "compile_step": False, "spd_anchor": "zero"}  # an anchor is as large as a weight
_EIGHT_HINA: Mapping[str, Any] = {**_EIGHT, "legacy": False}
_COPTIM: Mapping[str, Any] = {"use_cautious": True, "use_grams": False}
_EIGHT_HELP = " in 8 bits; SPD pulls to 0."


def _without(arguments: tuple[Argument, ...], *names: str) -> tuple[Argument, ...]:
    return tuple(argument for argument in arguments if argument.name not in names)


_CAME = (
    betas(0.9, 0.999, 0.9999, help="How slowly momentum, squares and instability follow."),
    Argument("eps", PAIR, (1e-30, 1e-16), "Added to squares, and to the instability.", 0, 1),
    number("clip_threshold", 1.0, 0.001, 1000, "Longest update before momentum, as a root mean square."),
    decay(),
    flag("use_cautious", False, _HELP["use_cautious"]),
    flag("use_lr_mask", False, _ADAPTIVE[5].help),
    *_ADAPTIVE[6:],
    ROUNDING,
)
_FACTORED = (
    number("eps", 1e-30, 0, 1, "Added to squares."), _CAME[2], share("beta2", 0.999, "How slowly squares follow."), decay(), ROUNDING,
)  # fmt: skip
_AMP = "arXiv:2307.02047, with the mask of learning rates of the Automagic series"


def _amp(name: str, help: str, aliases: tuple[str, ...] = (), **fixed: bool) -> Entry:
    fixed = {"use_lr_mask": True, "eight_bit": False, **fixed}
    group, state = ("8-bit", 1.6) if fixed["eight_bit"] else ("Own", 4.6)
    return Entry(name, group, ".came:Came", help, _AMP, state, aliases, fixed=fixed, arguments=_without(_CAME, *fixed))


def _small(presets: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Presets without what 8 bits fix."""
    return {preset: {name: value for name, value in values.items() if name not in _EIGHT} for preset, values in presets.items()}


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "StagedAdamW", "Own", ".staged:StagedAdamW", "AdamW whose published additions are switched on one by one.",
        "arXiv:1711.05101; the papers named with each argument", 8, arguments=_STAGED, fixed=_FIXED,
    ),
    Entry(
        "AdaptiveHinaAdamW", "Own", ".hina:AdaptiveHinaAdamW",
        "Cautious AdamW with SPD; the rate of each tensor follows its importance and how steady its gradients are.", _OF, 10,
        ("HinaAdaptiveAdamW",), arguments=(*_ADAPTIVE, *_HINA), presets=_ADAPTIVE_PRESETS, names=True,
        learning_rate=1e-3, fixed=_FIXED,
    ),
    Entry(
        "HinaAdamW", "Own", ".hina:HinaAdamW", "Cautious AdamW with SPD that knows a LoRA's pairs of matrices.", _OF, 10,
        ("HinaAdamWOptimizer", "CustomAdamW"), arguments=(*_LORA, *_HINA), presets=_LORA_PRESETS, names=True,
        learning_rate=8e-4, fixed=_FIXED,
    ),
    Entry(
        "AdaptiveHinaAdamW8bit", "8-bit", ".hina:AdaptiveHinaAdamW", f"AdaptiveHinaAdamW with averages{_EIGHT_HELP}", _OF, 2.1,
        ("HinaAdaptiveAdamW8bit",), arguments=_without((*_ADAPTIVE, *_HINA), *_EIGHT_HINA), presets=_small(_ADAPTIVE_PRESETS),
        names=True, learning_rate=1e-3, fixed=_EIGHT_HINA,
    ),
    Entry(
        "HinaAdamW8bit", "8-bit", ".hina:HinaAdamW", f"HinaAdamW with averages{_EIGHT_HELP}", _OF, 2.1, ("HinaAdamWOptimizer8bit",),
        arguments=_without((*_LORA, *_HINA), *_EIGHT_HINA), presets=_small(_LORA_PRESETS), names=True, learning_rate=8e-4,
        fixed=_EIGHT_HINA,
    ),
    Entry(
        "COptim8bit", "8-bit", ".staged:StagedAdamW", "Cautious AdamW with averages in 8 bits.", "arXiv:2411.16085, arXiv:2110.02861",
        2.1, arguments=_without(_STAGED, *_COPTIM, *_EIGHT), fixed={**_COPTIM, **_EIGHT},
    ),
    Entry(
        "COptim", "Own", ".staged:StagedAdamW", "Cautious AdamW.", "arXiv:2411.16085", 8, arguments=_without(_STAGED, *_COPTIM, *_FIXED),
        fixed={**_COPTIM, **_FIXED},
    ),
    Entry(
        "CAME", "Low memory", ".came:Came", "Adafactor with confidence: momentum, rows and columns of squares.", "arXiv:2307.02047", 4.6,
        arguments=_CAME, fixed={"eight_bit": False},
    ),
    _amp("Automagic_CameAMP", "CAME whose learning rates follow how steady the gradients of each tensor are."),
    _amp("Automagic_CameAMP_COptim", "Automagic_CameAMP, cautious.", use_cautious=True),
    _amp("Automagic_CameAMP8bit", "Automagic_CameAMP with momentum in 8 bits.", ("CameAMP8bit",), eight_bit=True),
    _amp("Automagic_CameAMP_COptim8bit", "The same, cautious.", use_cautious=True, eight_bit=True),
    Entry(
        "Automagic", "Own rate", ".automagic:Automagic", "A rate for each weight, which rises while its update keeps its sign.",
        "ostris/ai-toolkit, toolkit/optimizers/automagic.py", 5.3, ("Automagic1",), learning_rate=1e-6,
        rate="where each weight begins; 1e-6 is usual", arguments=(
            number("min_lr", 1e-7, 0, 1, "Lowest rate of a weight."), number("max_lr", 1e-3, 0, 10, "Highest rate of a weight."),
            number("lr_bump", 1e-6, 0, 1, "Change of a weight's rate in one step."), *_FACTORED,
        ),
    ),
    Entry(
        "Automagic3", "Own rate", ".automagic:Automagic3",
        "One rate, which rises while updates keep their signs and falls when they turn each time.",
        "ostris/ai-toolkit, toolkit/optimizers/automagic3.py", 1.3, ("Automagicv3",), learning_rate=1e-5,
        rate="where it begins; 1e-6 to 1e-4", arguments=(
            number("min_lr", 1e-8, 0, 1, "Lowest rate."), number("max_lr", 1e-2, 0, 10, "Highest rate."),
            whole("polarity_history", 4, 2, 8, "Updates in a row that count."), *_FACTORED,
        ),
    ),
    Entry(
        "SinkGD", "Low memory", ".plain:Sinkgd", "Rows and columns of the momentum brought to one length.", "arXiv:2502.06742", 4,
        ("Automagic_Sinkgd",), rate="2e-5 to 1e-3 for a LoRA", learning_rate=5e-5,
        arguments=(
            share("beta1", 0.9, "How slowly momentum follows."), decay(0.1),
            whole("sinkgd_iters", 1, 1, 100, "Turns of rows and columns."), ROUNDING,
        ),
    ),
    Entry(
        "ANLO", "Plain", ".plain:ANLO", "The gradient at the length 1; keeps nothing.", "hinablue/sd-scripts 0a888dc", 0, ("HinaANLO",),
        rate="about 0.01 to 0.1 for a LoRA", learning_rate=0.05,
        arguments=(
            _EPS, decay(1e-2),
            number("global_norm_weight", 1.0, 0, 100, "Weight of the gradient at length 1 over all tensors."),
            number("layer_norm_weight", 0.0, 0, 100, "Weight of the gradient at length 1 in each tensor."),
        ),
    ),
)  # fmt: skip
