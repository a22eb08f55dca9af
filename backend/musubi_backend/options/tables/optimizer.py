"""Optimizer and learning rate schedule."""

from __future__ import annotations

from ..option import TRAIN, WEIGHTS, Group, Option, steps_or_share

GROUPS = (
    Group(
        "Optimizer",
        (TRAIN,),
        (
            Option(
                "--optimizer_type",
                default="",
                help="Which optimizer updates the LoRA. AdamW is a safe choice; AdamW8bit (needs bitsandbytes) and Adafactor take less "
                'memory. A full class path such as "torch.optim.RAdam" works too.',
                effect=WEIGHTS,
            ),
            Option(
                "--optimizer_args",
                nargs="*",
                advanced=True,
                help='Settings of the optimizer, each as name=value: "weight_decay=0.01" "betas=0.9,0.99".',
                effect=WEIGHTS,
            ),
            Option(
                "--learning_rate",
                float,
                2e-6,
                minimum=0,
                maximum=1000,
                help="How far each update goes. 1e-4 to 2e-4 is usual for a LoRA with AdamW (the default is meant for full training and "
                "is very low); optimizers that find their own rate, such as Prodigy, want 1.",
                effect=WEIGHTS,
            ),
            Option(
                "--max_grad_norm",
                float,
                1.0,
                minimum=0,
                maximum=1e6,
                help="Gradients longer than this are shortened to it, so that a single odd batch cannot spoil the LoRA. 0 turns it off.",
                effect=WEIGHTS,
            ),
        ),
    ),
    Group(
        "Learning rate schedule",
        (TRAIN,),
        (
            Option(
                "--lr_scheduler",
                default="constant",
                help="How the learning rate changes over time: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, "
                "polynomial, cosine_with_min_lr, cosine_warmup_with_min_lr, inverse_sqrt, warmup_stable_decay, rex, "
                "piecewise_constant, adafactor.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_warmup_steps",
                steps_or_share,
                0,
                minimum=0,
                maximum=10_000_000,
                unit="steps",
                help='Steps in which the learning rate rises from 0: a number, or a share of all steps as "0.05" or "5%". '
                + "Not with the constant schedule.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_decay_steps",
                steps_or_share,
                0,
                minimum=0,
                maximum=10_000_000,
                unit="steps",
                advanced=True,
                help="Steps of the fall at the end, for warmup_stable_decay: a number or a share of all steps.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_num_cycles",
                int,
                1,
                minimum=1,
                maximum=10000,
                unit="cycles",
                advanced=True,
                help="How often cosine_with_restarts starts anew.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_power",
                float,
                1,
                minimum=0,
                maximum=100,
                advanced=True,
                help="Bend of the polynomial schedule: 1 is a straight line.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_timescale",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                advanced=True,
                help="How slowly inverse_sqrt falls. Default: the length of the warm-up.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_min_lr_ratio",
                float,
                minimum=0,
                maximum=1,
                advanced=True,
                help="Lowest learning rate as a share of the highest, for cosine_with_min_lr, warmup_stable_decay and rex.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_type",
                default="",
                advanced=True,
                help="Class path of a schedule of your own; it is used instead of --lr_scheduler.",
                effect=WEIGHTS,
            ),
            Option(
                "--lr_scheduler_args",
                nargs="*",
                advanced=True,
                help='Settings of that schedule, each as name=value: "T_max=100".',
                effect=WEIGHTS,
            ),
        ),
    ),
)
