"""What only FramePack has: sections, its two orders of making them, one-frame work, MagCache."""

from __future__ import annotations

from ..option import CACHE_LATENTS, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option

_FP = ("fp",)

GROUPS = (
    Group(
        "FramePack",
        (CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--f1",
                bool,
                False,
                architectures=_FP,
                help="For FramePack-F1, which makes sections from first to last; plain FramePack makes the last one first. Caching, "
                "training and generating must agree with the weight file.",
                effect=WEIGHTS,
            ),
            Option(
                "--one_frame",
                bool,
                False,
                verbs=(CACHE_LATENTS, TRAIN),
                architectures=_FP,
                advanced=True,
                help="One-frame training: each picture is a frame at fp_1f_target_index, steered by control pictures. Caching makes caches "
                "for it; training makes its sample pictures this way.",
                effect=WEIGHTS,
            ),
            Option(
                "--one_frame_no_2x",
                bool,
                False,
                verbs=(CACHE_LATENTS,),
                architectures=_FP,
                advanced=True,
                help="One-frame training without the two middle-aged frames of the history.",
            ),
            Option(
                "--one_frame_no_4x",
                bool,
                False,
                verbs=(CACHE_LATENTS,),
                architectures=_FP,
                advanced=True,
                help="One-frame training without the sixteen old frames of the history.",
            ),
            Option(
                "--latent_window_size",
                int,
                9,
                minimum=1,
                maximum=64,
                unit="latent frames",
                verbs=(TRAIN, GENERATE),
                architectures=_FP,
                advanced=True,
                help="Length of a section; the models were trained with 9, which is 36 frames.",
                effect=NOTHING,
            ),
            Option(
                "--bulk_decode",
                bool,
                False,
                verbs=(TRAIN, GENERATE),
                architectures=_FP,
                advanced=True,
                help="Decode all sections at once instead of two at a time with an overlap: no blending, and more memory.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Length and sections",
        (GENERATE,),
        (
            Option(
                "--video_seconds",
                float,
                5.0,
                minimum=0.01,
                maximum=3600,
                unit="seconds",
                architectures=_FP,
                help="Length at 30 frames per second, rounded to whole sections of 1.2 seconds.",
            ),
            Option(
                "--video_sections",
                int,
                minimum=1,
                maximum=3000,
                unit="sections",
                architectures=_FP,
                help="Length as a number of sections; goes before --video_seconds.",
            ),
            Option(
                "--latent_paddings",
                architectures=_FP,
                advanced=True,
                help='How many sections lie between each section and the start picture, the one made first first, as "3,2,1,0". Unset, '
                "FramePack's own order. Plain FramePack only.",
            ),
            Option(
                "--custom_system_prompt",
                architectures=_FP,
                advanced=True,
                help="Instruction to the language model in place of the one FramePack was trained with.",
            ),
        ),
    ),
    Group(
        "Guidance",
        (GENERATE,),
        (
            Option(
                "--guidance_rescale",
                float,
                0.0,
                minimum=0,
                maximum=1,
                architectures=_FP,
                advanced=True,
                help="With a --guidance_scale above 1: share of the result whose contrast is brought back to that without guidance.",
            ),
            Option(
                "--rope_scaling_timestep_threshold",
                int,
                minimum=0,
                maximum=1000,
                architectures=_FP,
                advanced=True,
                help="For sizes far above 640x640: from this timestep up, positions are scaled so that the picture keeps one layout. 800 "
                "is a good start. Unset, off.",
            ),
            Option(
                "--rope_scaling_factor",
                float,
                0.5,
                minimum=0.01,
                maximum=10,
                architectures=_FP,
                advanced=True,
                help="What positions are multiplied by with --rope_scaling_timestep_threshold.",
            ),
        ),
    ),
    Group(
        "One-frame generation",
        (GENERATE,),
        (
            Option(
                "--one_frame_auto_resize",
                bool,
                False,
                architectures=_FP,
                advanced=True,
                help="One-frame generation: take the shape of the first control picture, at the area of --video_size.",
            ),
        ),
    ),
    Group(
        "MagCache (skips steps that would change little)",
        (GENERATE,),
        (
            Option(
                "--magcache_mag_ratios",
                architectures=_FP,
                advanced=True,
                help='Turns MagCache on: how much each step changes compared with the one before, as --magcache_calibration prints it. "0" '
                "takes values measured for 50 steps. Other numbers of steps take the nearest ones.",
            ),
            Option(
                "--magcache_retention_ratio",
                float,
                0.2,
                minimum=0,
                maximum=1,
                architectures=_FP,
                advanced=True,
                help="Share of the steps, from the start, that are never skipped.",
            ),
            Option(
                "--magcache_threshold",
                float,
                0.24,
                minimum=0,
                maximum=100,
                architectures=_FP,
                advanced=True,
                help="How large the summed up error of skipped steps may become. Larger is faster and less exact.",
            ),
            Option(
                "--magcache_k",
                int,
                6,
                minimum=0,
                maximum=1000,
                unit="steps",
                architectures=_FP,
                advanced=True,
                help="How many steps may be skipped in a row.",
            ),
            Option(
                "--magcache_calibration",
                bool,
                False,
                architectures=_FP,
                advanced=True,
                help="Skip nothing, and print the ratios for --magcache_mag_ratios at the end.",
            ),
        ),
    ),
)
