"""What only HunyuanVideo has."""

from __future__ import annotations

from ..option import GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option

_HV = ("hv",)

GROUPS = (
    Group(
        "HunyuanVideo model",
        (TRAIN, GENERATE),
        (
            Option(
                "--dit_dtype",
                verbs=(TRAIN,),
                architectures=_HV,
                advanced=True,
                help="Number format of the frozen transformer: bfloat16, float16 or float32. Unset, bfloat16. With "
                "--mixed_precision bf16 or fp16 it computes in that.",
                effect=WEIGHTS,
            ),
            Option(
                "--dit_in_channels",
                int,
                16,
                architectures=_HV,
                differs={GENERATE: {"default": None}},
                minimum=16,
                maximum=32,
                advanced=True,
                help="Input channels of the transformer: 16 for text-to-video, 32 for the image-to-video models of SkyReels, which see the "
                "first frame in the other 16. It must match --dit; generation can leave it to the file.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "HunyuanVideo guidance",
        (GENERATE,),
        (
            Option(
                "--split_uncond",
                bool,
                False,
                architectures=_HV,
                advanced=True,
                moot="the predictions with and without the prompt are always made one after the other",
                help="Predict with the prompt and with the negative prompt one after the other.",
            ),
        ),
    ),
    Group(
        "Video to video",
        (GENERATE,),
        (
            Option(
                "--strength",
                float,
                0.8,
                architectures=_HV,
                minimum=0.01,
                maximum=1,
                advanced=True,
                help="Share of the steps that are done on --video_path: 1 keeps nothing of it, lower values keep more.",
            ),
        ),
    ),
)
