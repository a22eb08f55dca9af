"""Generating video: prompt, size, sampler, guidance, LoRAs, output."""

from __future__ import annotations

from ..option import GENERATE, Group, Option
from .lora import SKIP_MISMATCHED

GROUPS = (
    Group(
        "Prompt",
        (GENERATE,),
        (
            Option("--prompt", help="What the video shows."),
            Option(
                "--negative_prompt",
                help="Negative prompt: what the video should not show. Default: the text the model's makers recommend. It needs a "
                "guidance above 1.",
            ),
            Option(
                "--from_file",
                path="file",
                help="Text file with one prompt per line, each with its own settings after it (--w --h --f --d --s --g --fs --n; --lw "
                "a LoRA of this prompt alone, --lm its strength, --lwh that of the high-noise model); # begins a comment.",
            ),
            Option(
                "--interactive",
                bool,
                False,
                advanced=True,
                help="Ask for one prompt after the other on the terminal while the models stay loaded.",
            ),
        ),
    ),
    Group(
        "Video",
        (GENERATE,),
        (
            Option(
                "--video_size",
                int,
                (256, 256),
                nargs=2,
                minimum=16,
                maximum=8192,
                unit="pixels",
                help="Height and width, in this order; multiples of 16.",
            ),
            Option(
                "--video_length",
                int,
                minimum=1,
                maximum=10000,
                unit="frames",
                help="Length; 4n+1 frames. Default: what the task is made for.",
            ),
            Option(
                "--fps",
                int,
                16,
                minimum=1,
                maximum=240,
                unit="frames/s",
                help="Speed the file plays at. It does not change what is generated.",
            ),
            Option(
                "--seed",
                int,
                minimum=0,
                maximum=2**32 - 1,
                help="Seed of the noise the video starts from. The same seed and settings give the same video. Default: a new one each "
                "time.",
            ),
        ),
    ),
    Group(
        "Sampling",
        (GENERATE,),
        (
            Option(
                "--infer_steps",
                int,
                minimum=1,
                maximum=1000,
                unit="steps",
                help="Denoising steps: more are finer and slower. Default: the task's own.",
            ),
            Option(
                "--sample_solver",
                default="unipc",
                choices=("unipc", "dpm++", "vanilla"),
                on_request=True,
                help="unipc and dpm++ need fewer steps; vanilla takes plain Euler steps.",
            ),
            Option(
                "--flow_shift",
                float,
                minimum=0.01,
                maximum=100,
                help="How many of the steps are spent at high noise: larger favours layout and motion, smaller detail. Default: the task's "
                "own.",
            ),
            Option(
                "--guidance_scale",
                float,
                minimum=0,
                maximum=100,
                help="How strictly the prompt is followed. 1 turns guidance off and halves the time. Default: the task's own.",
            ),
        ),
    ),
    Group(
        "LoRA",
        (GENERATE,),
        (
            Option("--lora_weight", nargs="*", path="file", help="LoRA files to apply, musubi-tuner's or ComfyUI's layout."),
            Option(
                "--lora_multiplier",
                float,
                nargs="*",
                minimum=-10,
                maximum=10,
                help="Strength of each LoRA in their order; those without a number get 1.",
            ),
            Option(
                "--include_patterns",
                nargs="*",
                on_request=True,
                advanced=True,
                help="Of each LoRA (in their order) use only the modules whose name matches this regular expression.",
            ),
            Option(
                "--exclude_patterns",
                nargs="*",
                on_request=True,
                advanced=True,
                help="Of each LoRA (in their order) leave out the modules whose name matches this regular expression.",
            ),
            SKIP_MISMATCHED,
            Option(
                "--save_merged_model",
                path="output",
                advanced=True,
                help="Write the transformer with the LoRAs merged in to this file, and generate nothing.",
            ),
            Option(
                "--lycoris",
                bool,
                False,
                advanced=True,
                no_effect="whether a file is a LoRA, LoHa or LoKr is recognised from its contents",
                help="Apply the LoRA files with the lycoris package.",
            ),
        ),
    ),
    Group(
        "Output",
        (GENERATE,),
        (
            Option(
                "--save_path",
                required=True,
                path="output",
                help="Folder for the results; names carry date, time and seed. Made if missing.",
            ),
            Option(
                "--output_type",
                default="video",
                choices=("video", "images", "latent", "both", "latent_images"),
                help="What to write: an mp4, one png per frame, the latent to decode later with --latent_path, latent and mp4, or latent "
                "and png.",
            ),
            Option(
                "--latent_path",
                nargs="*",
                most=1,
                path="file",
                advanced=True,
                help="Decode this saved latent instead of generating. One file; --output_type video or images.",
            ),
        ),
    ),
    Group(
        "Images and videos to start from",
        (GENERATE,),
        (
            Option(
                "--image_path",
                path="file",
                advanced=True,
                help="First frame, for image-to-video models.",
            ),
            Option(
                "--end_image_path",
                path="file",
                on_request=True,
                advanced=True,
                help="Last frame, for models that end with a given image.",
            ),
            Option(
                "--video_path",
                path="any",
                on_request=True,
                advanced=True,
                help="Video to change, or a folder of images; --strength says how much of it. It needs --video_length frames.",
            ),
            Option(
                "--one_frame_inference",
                on_request=True,
                advanced=True,
                help='Generate a single frame from control images, with these settings, e.g. "target_index=1,control_index=0": the '
                "positions in time of the new image and of the control images (0;10 for two).",
            ),
            Option(
                "--control_image_path",
                on_request=True,
                nargs="*",
                path="file",
                advanced=True,
                help="Control images of one-frame generation, one for each control_index.",
            ),
            Option(
                "--control_image_mask_path",
                on_request=True,
                nargs="*",
                path="file",
                advanced=True,
                help="Masks of those images: where they are black, the control image counts as not given.",
            ),
        ),
    ),
)
