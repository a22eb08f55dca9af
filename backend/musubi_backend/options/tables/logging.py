"""Logs for TensorBoard and Weights & Biases, and sample videos during training."""

from __future__ import annotations

from ..option import NOTHING, TRAIN, Group, Option

GROUPS = (
    Group(
        "Logging",
        (TRAIN,),
        (
            Option(
                "--logging_dir",
                path="output",
                help="Folder for TensorBoard logs: loss and learning rate of every step. Default: none are written.",
                effect=NOTHING,
            ),
            Option(
                "--log_with",
                choices=("tensorboard", "wandb", "all"),
                advanced=True,
                help="Where to log: TensorBoard files, Weights & Biases (install.py --with wandb; it sends the log to its servers), or "
                "both. Default: TensorBoard.",
                effect=NOTHING,
            ),
            Option("--log_prefix", advanced=True, help="Text before the date in the name of each run's log folder.", effect=NOTHING),
            Option(
                "--log_tracker_name", advanced=True, help='Name of the log inside that folder. Default: "network_train".', effect=NOTHING
            ),
            Option("--wandb_run_name", advanced=True, help="Name of the run in Weights & Biases.", effect=NOTHING),
            Option(
                "--log_tracker_config",
                path="file",
                advanced=True,
                unsupported="trackers take no settings from a file here",
                help="TOML file with settings for the trackers, one section for each.",
                effect=NOTHING,
            ),
            Option(
                "--wandb_api_key",
                advanced=True,
                help="Key for Weights & Biases. Better set WANDB_API_KEY: command lines are seen by other users and kept in logs.",
                effect=NOTHING,
            ),
            Option("--log_config", bool, False, advanced=True, help="Also store all settings in the log.", effect=NOTHING),
            Option(
                "--log_optimizer_every",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                own=True,
                advanced=True,
                help="Every N steps note what the optimizer says of itself, in the log and on the page of trainings: importance, pairs and "
                "learning rates of weights. For the group Own.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Samples while training",
        (TRAIN,),
        (
            Option(
                "--sample_prompts",
                path="file",
                help="File with prompts to make samples from: .txt with one per line (with --w --h --f --s --d after it), .toml or "
                ".json. Needs --vae and the text encoder.",
                effect=NOTHING,
            ),
            Option(
                "--sample_every_n_steps",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                help="Make samples every N steps.",
                effect=NOTHING,
            ),
            Option(
                "--sample_every_n_epochs",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                help="Make samples every N epochs; also together with --sample_every_n_steps, once where both fall on one step.",
                effect=NOTHING,
            ),
            Option("--sample_at_first", bool, False, help="Make samples before the first step too, to compare with.", effect=NOTHING),
        ),
    ),
)
