"""Tools that work on LoRA files: averaging, converting, merging, combining, extracting."""

from __future__ import annotations

from ...architectures import cards, same_layers
from ..option import LORA_COMBINE, LORA_CONVERT, LORA_EMA, LORA_EXTRACT, LORA_MERGE, Group, Option
from .lora import SKIP_MISMATCHED

_SHARED = "; ".join(" and ".join(f"{card.title} ({card.id})" for card in group) for group in same_layers())
_RENAMED = ", ".join(card.title for card in cards().values() if card.layers_of)
_TWO_EXPERTS = " and ".join(card.two_experts for card in cards().values() if card.two_experts)

GROUPS = (
    Group(
        "Averaging",
        (LORA_EMA,),
        (
            Option(
                "path",
                nargs="+",
                required=True,
                path="file",
                help="Checkpoints (.safetensors) of one training. Of a single one the average is itself.",
            ),
            Option(
                "--no_sort",
                bool,
                False,
                help="Take the files in the order given; without it, the oldest comes first, by the time they were written.",
            ),
            Option(
                "--beta",
                float,
                0.95,
                minimum=0,
                maximum=1,
                help="How much of the average so far stays when the next checkpoint comes in. 0.9 is a balanced start, 0.95 is smoother, "
                "0.8 stays closer to the last checkpoints.",
            ),
            Option(
                "--beta2",
                float,
                minimum=0,
                maximum=1,
                help="The decay at the last checkpoint: it then goes evenly from --beta to this.",
            ),
            Option(
                "--sigma_rel",
                float,
                minimum=0,
                maximum=1,
                help="Width of the average as a share of the training, instead of --beta: power function EMA, in which the first "
                "checkpoint does not outweigh the others. Above 0 and below 0.2887; 0.2 is a good start, 0.15 prefers later checkpoints, "
                "0.25 earlier ones.",
            ),
            Option(
                "--sigma_rels",
                float,
                nargs="+",
                own=True,
                minimum=0,
                maximum=1,
                help="Several widths in one pass, each as --sigma_rel; each result is a file of its own, named NAME-sigma0.2.safetensors.",
            ),
            Option("--output_file", required=True, path="output", help="LoRA file to write. It must not be one of the inputs."),
        ),
    ),
    Group(
        "Conversion of LoRAs",
        (LORA_CONVERT,),
        (
            Option("--input", required=True, path="file", help="LoRA file to convert. Its layout is recognised."),
            Option("--output", required=True, path="output", help="LoRA file to write. It must not be the input."),
            Option(
                "--target",
                required=True,
                choices=("other", "default"),
                help="Layout to write: default is musubi-tuner's (lora_unet_..., lora_down, lora_up, alpha); other is ComfyUI's and "
                "diffusers' (dotted names, lora_A, lora_B, no alpha).",
            ),
            Option(
                "--diffusers_prefix",
                help="First word of the names in layout other. Default: diffusion_model; diffusers itself wants transformer.",
            ),
            Option(
                "--architecture",
                own=True,
                choices=tuple(cards()),
                help=f"Which model the result is for, where that is not what the LoRA was made for: {_SHARED} share their layers, which "
                "one fuses and the other keeps apart. Default: the one that was recognised.",
            ),
            Option(
                "--names",
                default="original",
                own=True,
                choices=("original", "diffusers"),
                help="How layers are called in the result: as the model's authors do, or as diffusers does.",
            ),
            Option(
                "--expert",
                own=True,
                choices=("high", "low"),
                advanced=True,
                help=f"Of a file with LoRAs of both {_TWO_EXPERTS} experts (diffusers: transformer is high noise, transformer_2 low "
                "noise), the one to convert. Other files are converted whole.",
            ),
            Option(
                "--musubi_names",
                bool,
                False,
                own=True,
                help=f"Write layer names as musubi-tuner's converter does, also where they are wrong ({_RENAMED}), for files equal to its.",
            ),
            Option(
                "--keep_unknown",
                bool,
                False,
                own=True,
                help="Keep tensors that are no LoRA of the transformer (a text encoder's, say) as they are, instead of leaving them out.",
            ),
        ),
    ),
    Group(
        "Merging",
        (LORA_MERGE,),
        (
            Option(
                "--dit",
                required=True,
                path="any",
                help="Transformer to merge into: a file (or one part of a split one) of any model, also in fp8, or a folder with one.",
            ),
            Option(
                "--dit_in_channels", int, 16, no_effect="the file says how many channels it has", help="Input channels of the transformer."
            ),
            Option("--lora_weight", nargs="*", path="file", help="LoRA, LoHa or LoKr files of any layout to merge, one after the other."),
            Option(
                "--lora_multiplier",
                float,
                (1.0,),
                nargs="*",
                minimum=-1000,
                maximum=1000,
                help="Strength of each of --lora_weight, in their order; those without a number get 1.",
            ),
            SKIP_MISMATCHED,
            Option(
                "--save_merged_model",
                required=True,
                path="output",
                help="File to write, with the names and dtypes of --dit. It must not be one of the inputs.",
            ),
            Option("--device", default="cpu", help="Where the products are computed; cpu is fast enough for most."),
        ),
    ),
    Group(
        "Combining",
        (LORA_COMBINE,),
        (
            Option("--lora_weight", nargs="+", required=True, path="file", help="LoRA, LoHa or LoKr files of any layout, for one model."),
            Option(
                "--lora_multiplier",
                float,
                nargs="*",
                minimum=-1000,
                maximum=1000,
                help="Strength of each of --lora_weight, in their order; those without a number get 1.",
            ),
            Option(
                "--rank",
                int,
                minimum=1,
                maximum=4096,
                help="Rank of the result: each layer becomes the nearest LoRA of that rank, and what is lost is reported. Default: ranks "
                "add up and nothing is lost.",
            ),
            Option(
                "--architecture",
                choices=tuple(cards()),
                help=f"Which model the result is for, where LoRAs of {_SHARED} are mixed.",
            ),
        ),
    ),
    Group(
        "Extraction",
        (LORA_EXTRACT,),
        (
            Option(
                "--base", required=True, path="file", help="Transformer before it was trained; also in fp8, or one part of a split file."
            ),
            Option("--tuned", required=True, path="file", help="The trained one, with the same names."),
            Option("--rank", int, 32, minimum=1, maximum=4096, help="Rank of the LoRA; the higher, the more of the difference it holds."),
            Option(
                "--biases",
                bool,
                False,
                help="Also store how biases and norms differ, as diff and diff_b, which ComfyUI and this program read.",
            ),
            Option("--device", default="cpu", help="Where the decompositions are computed; a GPU (cuda) is much faster for large models."),
        ),
    ),
    Group(
        "Result",
        (LORA_COMBINE, LORA_EXTRACT),
        (
            Option("--output", required=True, path="output", help="LoRA file to write, in musubi-tuner's layout. It must not be an input."),
            Option(
                "--save_precision",
                choices=("fp32", "bf16", "fp16"),
                help="Precision (dtype) of the result. Default: that of the inputs.",
                differs={LORA_EXTRACT: {"default": "bf16", "help": "Precision (dtype) of the result."}},
            ),
        ),
    ),
)
