"""The LoRA network that is trained, and what it starts from."""

from __future__ import annotations

from ..option import START, TRAIN, WEIGHTS, Group, Option

SKIP_MISMATCHED = Option(
    "--skip_mismatched",
    bool,
    False,
    own=True,
    advanced=True,
    help="Leave out layers of a LoRA file that have another size than the model's, with a warning; without it, such a file is rejected.",
    effect=WEIGHTS,
)

GROUPS = (
    Group(
        "LoRA",
        (TRAIN,),
        (
            Option(
                "--network_module",
                help='Which network is trained: "networks.loha" for LoHa, "networks.lokr" for LoKr (--network_args "factor=8" sets how it '
                "is divided), or a LoRA by the name of its architecture; the names are musubi-tuner's and are stored in the LoRA file.",
                effect=WEIGHTS,
            ),
            Option(
                "--network_dim",
                int,
                minimum=1,
                maximum=4096,
                help="Rank: how much the LoRA can hold. 16 to 32 is plenty for a person, a style or a motion; the file grows with it. "
                "Default: 4.",
                effect=WEIGHTS,
            ),
            Option(
                "--network_alpha",
                float,
                1,
                minimum=0,
                maximum=4096,
                help="The LoRA acts with strength alpha / rank. Half the rank or the rank itself is usual; a low alpha wants a higher "
                "learning rate.",
                effect=WEIGHTS,
            ),
            Option(
                "--network_dropout",
                float,
                minimum=0,
                maximum=1,
                advanced=True,
                help="Regularisation: share of the LoRA's inner values set to 0 in each step. 0.05 to 0.1 where it is used.",
                effect=WEIGHTS,
            ),
            Option(
                "--network_args",
                nargs="*",
                advanced=True,
                help='Settings of the network, each as name=value: "loraplus_lr_ratio=4" "exclude_patterns=[\'.*ffn.*\']" '
                '"rank_dropout=0.1".',
                effect=WEIGHTS,
            ),
            Option(
                "--network_weights",
                path="file",
                help="LoRA file to continue from. Optimizer and step count start afresh; to continue a stopped run, use --resume.",
                effect=START,
            ),
            Option(
                "--dim_from_weights",
                bool,
                False,
                advanced=True,
                help="Take rank and alpha from --network_weights instead of the two settings.",
                effect=START,
            ),
            Option(
                "--scale_weight_norms",
                float,
                minimum=0,
                maximum=1e6,
                advanced=True,
                help="After each step, scale down any weight pair whose norm exceeds this. 1 is a good start when a LoRA overtrains.",
                effect=WEIGHTS,
            ),
            Option(
                "--base_weights",
                nargs="*",
                path="file",
                advanced=True,
                help="LoRA files merged into the transformer before training, so that the new LoRA is learned on top of them. They are "
                "not part of the result.",
                effect=WEIGHTS,
            ),
            Option(
                "--base_weights_multiplier",
                float,
                nargs="*",
                minimum=-10,
                maximum=10,
                advanced=True,
                help="Strength of each of --base_weights, in their order; those without a number get 1.",
                effect=WEIGHTS,
            ),
            SKIP_MISMATCHED,
        ),
    ),
)
