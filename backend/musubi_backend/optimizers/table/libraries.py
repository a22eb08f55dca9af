"""Optimizers of other libraries: installed by `install.py --with optimizers`, imported when chosen.

Offered is what goes on with the same steps after a save and a load; a test shows it for each.
"""

from __future__ import annotations

from ..entry import Argument, Entry, betas, choice, flag, number, share, whole
from .shared import FOREACH, MAXIMIZE, ROUNDING, decay, eps

_OWN_RATE = "1, and it finds its own; d_coef makes that higher or lower"
_D0 = number("d0", 1e-6, 1e-12, 1, "First guess of the rate.")
_FOUND = (_D0, number("d_coef", 1.0, 0.01, 100, "Factor on the rate that it finds."))
_WARMUP = whole("warmup_steps", 0, 0, 10**9, "Steps in which the rate rises.")
_AVERAGING = (number("r", 0.0, 0, 100, "How much more late steps count in the average."),
              number("weight_lr_power", 2.0, 0, 100, "How much steps of a high rate count in the average."))  # fmt: skip
_DECOUPLED = flag("weight_decouple", True, "Decay the weights themselves instead of adding to the gradient.")
_COUPLED = flag("weight_decouple", False, _DECOUPLED.help)
_FIXED_DECAY = flag("fixed_decay", False, "Decay without the learning rate.")
_OF_ALL = (MAXIMIZE, FOREACH)


def _kozistr(
    name: str, group: str, help: str, source: str, state: float, arguments: tuple[Argument, ...], hidden: tuple[Argument, ...] = _OF_ALL, *,
    where: str = "", aliases: tuple[str, ...] = (), rate: float = 2e-4, words: str = "", schedule_free: bool = False,
) -> Entry:  # fmt: skip
    return Entry(
        name, group, f"pytorch_optimizer:{where or name}", help, source, state, aliases, needs="pytorch_optimizer", extra="optimizers",
        rate=words or f"about {rate:g} for a LoRA", learning_rate=rate, arguments=arguments, hidden=hidden, schedule_free=schedule_free,
    )  # fmt: skip


_SPECTRAL = flag("spectral_normalization", False, "Scale updates by the largest stretch of the matrix.")
_CAUTIOUS_DECAY = flag("cautious_wd", False, "Decay only where the update goes that way too.")
_ORTHOGONAL = choice("orthogonal_gradient", "disabled", ("disabled", "flattened", "iterative"), "Take out of gradients what lengthens.")
_FEW_BITS = (flag("nnmf_factor", False, "Keep averages as a row, a column and signs."),
             flag("vector_reshape", False, "Do that for vectors too."))  # fmt: skip
_NESTEROV = flag("nesterov", False, "Look ahead by the momentum.")
_KOURKOUTAS = (flag("kourkoutas_beta", False, "Let the second beta follow how spiky gradients are."),
               share("beta2_min", 0.9, "Lowest second beta of that."))  # fmt: skip
_FACTORED = flag("factored_2nd", False, "Keep rows and columns of the squares only.")
_LINES = whole("ns_steps", 5, 1, 99, "Iterations that make updates orthogonal.")
_SHARED = (_ORTHOGONAL, _SPECTRAL, *_FEW_BITS)


def _advanced(
    name: str, group: str, help: str, state: float, arguments: tuple[Argument, ...], hidden: tuple[Argument, ...], rate: float = 2e-4
) -> Entry:
    return Entry(
        name, group, f"adv_optm:{name}", help, "Koratahiu/Advanced_Optimizers", state, needs="adv_optm", extra="optimizers",
        rate=f"about {rate:g} for a LoRA", learning_rate=rate, arguments=(*arguments, ROUNDING, _CAUTIOUS_DECAY), hidden=hidden,
    )  # fmt: skip


ENTRIES: tuple[Entry, ...] = (
    _kozistr(
        "Lion", "Sign", "The sign of the momentum: half of AdamW's memory.", "arXiv:2302.06675", 4, (betas(0.9, 0.99), decay()),
        (_DECOUPLED, _FIXED_DECAY, *_OF_ALL), rate=5e-5,
    ),
    _kozistr(
        "ADOPT", "Adam", "Adam that converges with any second beta.", "arXiv:2411.02853", 8, (betas(0.9, 0.9999), eps(1e-6), decay()),
        (_COUPLED, _FIXED_DECAY, *_OF_ALL),
    ),
    _kozistr(
        "Grams", "Adam", "The sign of the gradient with the size of Adam's update.", "arXiv:2412.17107", 8,
        (betas(0.9, 0.999), eps(1e-6), decay()), (_DECOUPLED, MAXIMIZE),
    ),
    _kozistr(
        "AdEMAMix", "Adam", "Adam with a second, slow average.", "arXiv:2409.03137", 12,
        (betas(0.9, 0.999, 0.9999), number("alpha", 5.0, 0, 100, "Weight of the slow average."),
         number("t_alpha_beta3", None, 1, 1e9, "Steps in which alpha and the third beta rise; None: at once."), eps(), decay()),
        (_COUPLED, _FIXED_DECAY, *_OF_ALL),
    ),
    _kozistr(
        "SimplifiedAdEMAMix", "Adam", "AdEMAMix with one average and the last gradient.", "arXiv:2502.02431", 8,
        (betas(0.99, 0.95), number("alpha", 0.0, 0, 1000, "Weight of the last gradient."),
         whole("beta1_warmup", None, 1, 10**9, "Steps in which the first beta rises; None: at once."),
         share("min_beta1", 0.9, "Where the first beta begins."), eps(), decay()),
        (_DECOUPLED, _FIXED_DECAY, *_OF_ALL), rate=1e-5,
    ),
    _kozistr(
        "StableAdamW", "Adam", "AdamW whose updates are clipped at their usual length.", "arXiv:2304.13013", 8,
        (betas(0.9, 0.99), eps(), decay(0.01), flag("kahan_sum", True, "Keep what rounding loses of bfloat16 weights.")),
        (_DECOUPLED, *_OF_ALL),
    ),
    _kozistr(
        "Adan", "Adam", "Adam with the change of the gradient as a third average.", "arXiv:2208.06677", 16,
        (betas(0.98, 0.92, 0.99), eps(), decay(), number("max_grad_norm", 0.0, 0, 1e6, "Longest gradient; 0: any.")), (_COUPLED, *_OF_ALL),
    ),
    _kozistr(
        "LaProp", "Adam", "Adam that scales gradients before it averages them.", "arXiv:2002.04839", 8,
        (betas(0.9, 0.999), number("eps", 1e-15, 0, 1, eps().help), decay(),
         flag("centered", False, "Take the mean out of the squares."),
         whole("steps_before_using_centered", 10, 0, 10**9, "Steps without that.")),
        (_DECOUPLED, _FIXED_DECAY, flag("ams_bound", False, "Never forget the largest squared gradient."), *_OF_ALL),
    ),
    _kozistr(
        "MARS", "Adam", "AdamW on gradients whose noise is lowered by the last ones.", "arXiv:2411.10438", 12,
        (betas(0.95, 0.99), number("gamma", 0.025, 0, 1, "How much the last gradient counts."), eps(), decay(),
         flag("cautious", False, "Leave out what of an update goes against the gradient.")),
        (_DECOUPLED, _FIXED_DECAY, *_OF_ALL), rate=3e-4,
    ),
    _kozistr(
        "AdaBelief", "Adam", "Adam whose squares are of the surprise in the gradient.", "arXiv:2010.07468", 8,
        (betas(0.9, 0.999), number("eps", 1e-16, 0, 1, eps().help), decay(), flag("rectify", False, "Warm itself up as RAdam does.")),
        (_DECOUPLED, _FIXED_DECAY, flag("ams_bound", False, "Never forget the largest square."), *_OF_ALL),
    ),
    _kozistr(
        "Prodigy", "Own rate", "Finds its own learning rate.", "arXiv:2306.06101", 16,
        (betas(0.9, 0.999), *_FOUND, decay(), flag("safeguard_warmup", False, "For schedules that begin with a warm-up."),
         flag("bias_correction", False, "Adam's correction of the first steps."),
         number("beta3", None, 0, 1, "How slowly the rate is found; None: the root of the second beta.", below=True)),
        (eps(), _DECOUPLED, _FIXED_DECAY, *_OF_ALL), rate=1.0, words=_OWN_RATE,
    ),
    _kozistr(
        "DAdaptAdam", "Own rate", "Finds its own learning rate; Prodigy's forerunner.", "arXiv:2301.07733", 12,
        (betas(0.9, 0.999), _D0, decay(), flag("bias_correction", False, "Adam's correction of the first steps.")),
        (eps(), _COUPLED, _FIXED_DECAY, *_OF_ALL), rate=1.0, words="1, and it finds its own",
    ),
    _kozistr(
        "AdamWScheduleFree", "Schedule-free", "AdamW that needs no schedule: it averages its way.", "arXiv:2405.15682", 8,
        (betas(0.9, 0.999), _WARMUP, eps(), decay()), (*_AVERAGING, *_OF_ALL), where="ScheduleFreeAdamW",
        aliases=("ScheduleFreeAdamW",), rate=1e-3, schedule_free=True,
    ),
    _kozistr(
        "RAdamScheduleFree", "Schedule-free", "Schedule-free, and warms itself up.", "arXiv:2405.15682", 8,
        (betas(0.9, 0.999), eps(), decay(), flag("silent_sgd_phase", True, "Stay still until the warm-up of RAdam begins.")),
        (*_AVERAGING, *_OF_ALL), where="ScheduleFreeRAdam", aliases=("ScheduleFreeRAdam",), rate=1e-3, schedule_free=True,
    ),
    _kozistr(
        "SGDScheduleFree", "Schedule-free", "The gradient itself, without a schedule.", "arXiv:2405.15682", 4,
        (share("momentum", 0.9, "Where between its two sets of weights gradients are taken."), _WARMUP, decay()),
        (*_AVERAGING, eps(), *_OF_ALL), where="ScheduleFreeSGD", aliases=("ScheduleFreeSGD",), rate=1.0,
        words="0.1 to 10 for a LoRA; find it by trying", schedule_free=True,
    ),
    _kozistr(
        "SOAP", "Second order", "Adam in the directions of Shampoo; much memory and time for large matrices.", "arXiv:2409.11321", 392,
        (betas(0.95, 0.95), whole("precondition_frequency", 10, 1, 10**6, "Steps between two looks at the directions."),
         whole("max_precondition_dim", 10000, 1, 10**6, "Sides of a matrix above this have none."), eps(), decay(0.01)),
        (flag("normalize_gradient", False, "Bring gradients to one length."), flag("correct_bias", True, "Adam's correction."), MAXIMIZE),
        rate=1e-3,
    ),
    Entry(
        "LoRA-RITE", "Second order", ".lora_rite:lora_rite", "Updates that do not depend on how a product is split into a LoRA's pair.",
        "arXiv:2410.20625", 9, needs="pytorch_optimizer", extra="optimizers", names=True, several_groups=False, learning_rate=1e-3,
        rate="1e-4 to 2e-3",
        arguments=(betas(0.9, 0.999), eps(1e-6), number("clip_unmagnified_grad", 1.0, 0, 1000, "Longest gradient; 0: any."), decay(),
                   flag("balance_param", False, "Bring the two matrices of a pair to the same length.")),
    ),
    Entry(
        "ProdigyPlusScheduleFree", "Schedule-free", "prodigyplus:ProdigyPlusScheduleFree", "Prodigy without a schedule, in little memory.",
        "LoganBooker/prodigy-plus-schedule-free", 5, ("ProdigyPlus",), needs="prodigyplus", extra="optimizers", rate=_OWN_RATE,
        learning_rate=1.0, schedule_free=True,
        arguments=(betas(0.9, 0.99), *_FOUND, decay(), whole("prodigy_steps", 0, 0, 10**9, "Steps after which the rate is kept; 0: never."),
                   eps(), flag("use_cautious", False, "Leave out what goes against the gradient."),
                   flag("use_speed", False, "Another way to find the rate, with less memory."),
                   flag("use_stableadamw", True, "Clip updates at their usual length."), ROUNDING,
                   flag("use_schedulefree", True, "False: one set of weights, and the schedule acts.")),
        hidden=(number("beta3", None, 0, 1, "How slowly the rate is found.", below=True), flag("d_limiter", True, "Let it grow slowly."),
                flag("weight_decay_by_lr", True, "Decay times the rate."), number("schedulefree_c", 0, 0, 1000, "Of its averages."),
                flag("split_groups", True, "A rate for each group."), flag("split_groups_mean", False, "The mean of those for all."),
                flag("factored", True, "Keep rows and columns of the squares only."), flag("factored_fp32", True, "Those in fp32."),
                flag("use_bias_correction", False, "Adam's correction."), flag("use_grams", False, "The sign of the gradient."),
                flag("use_adopt", False, "ADOPT's order."), flag("use_orthograd", False, "Take out what lengthens."),
                flag("use_focus", False, "FOCUS's pull.")),
    ),
    _advanced(
        "AdamW_adv", "Adam", "AdamW with factored state if asked.", 8, (betas(0.9, 0.999), eps(), decay(), _FACTORED, _NESTEROV),
        (flag("use_bias_correction", True, "Adam's correction."), flag("use_atan2", False, "No eps: the arctangent."), *_KOURKOUTAS,
         *_SHARED),
    ),
    _advanced(
        "Adopt_adv", "Adam", "ADOPT with factored state if asked.", 8, (betas(0.9, 0.9999), eps(1e-6), decay(), _FACTORED, _NESTEROV),
        (flag("use_atan2", False, "No eps: the arctangent."), *_KOURKOUTAS, *_SHARED),
    ),
    _advanced(
        "Muon_adv", "Second order", "Muon whose updates have Adam's length.", 4,
        (share("beta1", 0.95, "How slowly momentum follows."), flag("nesterov", True, "Look ahead by it."), _LINES,
         flag("rms_rescaling", True, "Bring updates to the length of Adam's."), flag("normuon_variant", False, "Even out rows."), decay()),
        (flag("accelerated_ns", False, "Fewer iterations."), flag("low_rank_ortho", False, "In fewer directions."),
         whole("ortho_rank", 128, 1, 10**5, "How many."), *_SHARED),
        1e-3,
    ),
    _advanced(
        "AdaMuon_adv", "Second order", "Muon with Adam's squares.", 8,
        (betas(0.95, 0.95), eps(), flag("nesterov", True, "Look ahead by the momentum."), _LINES,
         flag("rms_rescaling", True, "Bring updates to the length of Adam's."), decay(0)),
        (_FACTORED, *_SHARED), 1e-3,
    ),
    _advanced(
        "SignSGD_adv", "Sign", "The sign of the momentum.", 4, (share("momentum", 0.9, "How slowly momentum follows."), _NESTEROV, decay()),
        (flag("stochastic_sign", False, "By chance where gradients are small."), *_SHARED), 5e-5,
    ),
    _advanced(
        "SinkSGD_adv", "Low memory", "Rows and columns of the gradient brought to one length; keeps nothing.", 0,
        (number("momentum", 0.0, 0, 1, "Average of gradients; 0 for none.", below=True),
         whole("sinkhorn_iterations", 5, 1, 100, "Turns of rows and columns."), decay()),
        _SHARED, 1e-3,
    ),
)  # fmt: skip
