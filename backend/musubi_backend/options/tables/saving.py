"""Where the LoRA goes, how often, with what metadata; continuing a run; uploading, which is rejected."""

from __future__ import annotations

from ..option import FILE, GENERATE, NOTHING, START, TRAIN, Group, Option

_UPLOAD = "nothing leaves the machine unasked; upload the finished file yourself"


def _upload(flag: str, help_: str, kind: type = str) -> Option:
    return Option(flag, kind, False if kind is bool else None, help_, unsupported=_UPLOAD, advanced=True, effect=NOTHING)


GROUPS = (
    Group(
        "Saving",
        (TRAIN,),
        (
            Option(
                "--output_dir",
                path="output",
                help="Folder for the LoRA, its checkpoints, states and sample videos. Made if missing.",
                effect=NOTHING,
            ),
            Option("--output_name", help="File name of the LoRA without ending; checkpoints add the epoch or step to it.", effect=NOTHING),
            Option(
                "--save_precision",
                choices=("float", "fp32", "fp16", "bf16"),
                help="Precision (dtype) of the saved LoRA. bf16 and fp16 halve the file; default: float32 as it is trained. States are "
                "always exact.",
                effect=FILE,
            ),
            Option(
                "--save_every_n_epochs",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                help="Also save the LoRA every N epochs.",
                effect=NOTHING,
            ),
            Option(
                "--save_every_n_steps",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                help="Also save the LoRA every N steps.",
                effect=NOTHING,
            ),
            Option(
                "--save_last_n_epochs",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                advanced=True,
                help="Of the checkpoints saved by epoch, keep those of the last N epochs. Default: all.",
                effect=NOTHING,
            ),
            Option(
                "--save_last_n_epochs_state",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                advanced=True,
                help="The same for states. Default: as --save_last_n_epochs.",
                effect=NOTHING,
            ),
            Option(
                "--save_last_n_steps",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                advanced=True,
                help="Of the checkpoints saved by step, keep those of the last N steps. Default: all.",
                effect=NOTHING,
            ),
            Option(
                "--save_last_n_steps_state",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                advanced=True,
                help="The same for states. Default: as --save_last_n_steps.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Continuing",
        (TRAIN,),
        (
            Option(
                "--save_state",
                bool,
                False,
                help="With each checkpoint also save everything needed to continue exactly there: optimizer, schedule, position. About "
                "three times the LoRA's size.",
                effect=NOTHING,
            ),
            Option(
                "--save_state_on_train_end",
                bool,
                False,
                help="Save such a state when the training ends, so that it can be continued later.",
                effect=NOTHING,
            ),
            Option(
                "--resume",
                path="folder",
                help="State folder (its name ends in -state) to continue from, at the same step with the same random numbers.",
                effect=START,
            ),
            Option(
                "--resume_learning_rate",
                float,
                minimum=0,
                maximum=1000,
                own=True,
                advanced=True,
                help="With --resume, continue with this learning rate. Without it the state's stays. The schedule keeps its shape, of the "
                "new rate.",
                effect=START,
            ),
        ),
    ),
    Group(
        "Metadata",
        (TRAIN,),
        (
            Option(
                "--no_metadata",
                bool,
                False,
                verbs=(TRAIN, GENERATE),
                advanced=True,
                help="Leave settings, prompts and dataset names out of the saved file; only what is needed to load it stays.",
                effect=FILE,
            ),
            Option("--training_comment", advanced=True, help="A note of your own, stored in the LoRA file.", effect=FILE),
            Option("--metadata_title", advanced=True, help="Title stored in the LoRA file. Default: the output name.", effect=FILE),
            Option("--metadata_author", advanced=True, help="Author stored in the LoRA file.", effect=FILE),
            Option("--metadata_description", advanced=True, help="Description stored in the LoRA file.", effect=FILE),
            Option("--metadata_license", advanced=True, help="Licence stored in the LoRA file.", effect=FILE),
            Option("--metadata_tags", advanced=True, help="Tags stored in the LoRA file, separated by commas.", effect=FILE),
            Option("--metadata_reso", advanced=True, help='Resolution stored in the LoRA file, as "1280,720".', effect=FILE),
            Option(
                "--metadata_arch",
                advanced=True,
                help="Architecture stored in the LoRA file, instead of the right one. For special uses.",
                effect=FILE,
            ),
        ),
    ),
    Group(
        "Hugging Face",
        (TRAIN,),
        (
            _upload("--huggingface_repo_id", "Repository to upload to."),
            _upload("--huggingface_repo_type", "Kind of that repository."),
            _upload("--huggingface_path_in_repo", "Folder in that repository."),
            _upload("--huggingface_token", "Access token."),
            _upload("--huggingface_repo_visibility", "Whether a new repository is public or private."),
            _upload("--save_state_to_huggingface", "Upload states too.", bool),
            _upload("--resume_from_huggingface", "Read --resume as a repository.", bool),
            _upload("--async_upload", "Upload while training continues.", bool),
        ),
    ),
)
