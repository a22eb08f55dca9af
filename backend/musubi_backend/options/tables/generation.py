"""Generating video: prompt, size, sampler, guidance, LoRAs, output."""

from __future__ import annotations

from ..option import GENERATE, Group, Option
from .lora import SKIP_MISMATCHED

_HUNYUAN_SIZE = "Height and width, in this order; multiples of 16. HunyuanVideo was trained on sizes up to 720x1280."
_FRAMEPACK_SIZE = "Height and width, in this order; multiples of 16. FramePack was trained on areas of about 640x640."
_SHIFT = "How many of the steps are spent at high noise: larger favours layout and motion, smaller detail."
_HUNYUAN_SHIFT = f"{_SHIFT} About 17 with fewer than 20 steps."
_FRAMEPACK_SHIFT = f"{_SHIFT} Unset, it follows from the size."
_TRUE_GUIDANCE = (
    "Guidance by a second prediction with the negative prompt, which doubles the time. 1 is off, as these models are meant to be used: "
    "--embedded_cfg_scale is their own guidance."
)

GROUPS = (
    Group(
        "Prompt",
        (GENERATE,),
        (
            Option("--prompt", help="What the video shows."),
            Option(
                "--negative_prompt",
                help="What the video shall not show. Unset, the text the model's makers recommend; it acts with a guidance above 1.",
            ),
            Option(
                "--from_file",
                path="file",
                differs={"hv_generate_video": {"own": True}},
                help="Text file with one prompt per line, each with its own settings after it (--w --h --f --d --s --g --fs --n); # "
                "begins a comment.",
            ),
            Option(
                "--interactive",
                bool,
                False,
                differs={"hv_generate_video": {"own": True}},
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
                differs={"fpack_generate_video": {"help": _FRAMEPACK_SIZE}, "hv_generate_video": {"help": _HUNYUAN_SIZE}},
                help="Height and width, in this order; multiples of 16. Wan was trained on 480x832 and 720x1280.",
            ),
            Option(
                "--video_length",
                int,
                without=("fpack_generate_video",),
                differs={"hv_generate_video": {"help": "Length; 4n+1 frames, at 24 frames per second 129 for 5 seconds.", "default": 129}},
                minimum=1,
                maximum=10000,
                unit="frames",
                help="Length; 4n+1 frames. Unset, what the task is made for: 81 for Wan video, 1 for images.",
            ),
            Option(
                "--fps",
                int,
                16,
                differs={"hv_generate_video": {"default": 24}, "fpack_generate_video": {"default": 30}},
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
                help="Seed of the noise the video starts from. The same seed and settings give the same video. Unset, a new one each time.",
            ),
            Option(
                "--cpu_noise",
                bool,
                False,
                architectures=("wan",),
                advanced=True,
                help="Draw the noise on the CPU as ComfyUI does, so that a seed gives the same start on every machine.",
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
                differs={
                    "hv_generate_video": {"help": "Denoising steps: more are finer and slower.", "default": 50},
                    "fpack_generate_video": {"help": "Denoising steps of each section: more are finer and slower.", "default": 25},
                },
                minimum=1,
                maximum=1000,
                unit="steps",
                help="Denoising steps: more are finer and slower. Unset, the task's own (50 for Wan t2v).",
            ),
            Option(
                "--sample_solver",
                default="unipc",
                choices=("unipc", "dpm++", "vanilla"),
                architectures=("wan", "fp"),
                help="unipc and dpm++ need fewer steps; vanilla takes plain Euler steps.",
            ),
            Option(
                "--flow_shift",
                float,
                differs={"fpack_generate_video": {"help": _FRAMEPACK_SHIFT}, "hv_generate_video": {"help": _HUNYUAN_SHIFT, "default": 7.0}},
                minimum=0.01,
                maximum=100,
                help="How many of the steps are spent at high noise: larger favours layout and motion, smaller detail. Unset, the task's "
                "own (Wan 5, its i2v at 480x832 3, t2v-A14B 12).",
            ),
            Option(
                "--guidance_scale",
                float,
                differs={
                    "hv_generate_video": {"help": _TRUE_GUIDANCE, "default": 1.0},
                    "fpack_generate_video": {"help": _TRUE_GUIDANCE, "default": 1.0},
                },
                minimum=0,
                maximum=100,
                help="How strictly the prompt is followed. 1 turns guidance off and halves the time. Unset, the task's own (5 for Wan).",
            ),
            Option(
                "--embedded_cfg_scale",
                float,
                6.0,
                architectures=("hv", "fp"),
                differs={"fpack_generate_video": {"default": 10.0}},
                minimum=0,
                maximum=100,
                help="Guidance that the model was taught to give by itself (distilled): how strictly the prompt is followed, at no cost.",
            ),
            Option(
                "--cfg_skip_mode",
                default="none",
                choices=("early", "late", "middle", "early_late", "alternate", "none"),
                architectures=("wan",),
                advanced=True,
                help="In which steps guidance is skipped to save time; --cfg_apply_ratio says in how many it stays.",
            ),
            Option(
                "--cfg_apply_ratio",
                float,
                minimum=0,
                maximum=1,
                architectures=("wan",),
                advanced=True,
                help="Share of the steps that keep guidance, with --cfg_skip_mode. Unset, all.",
            ),
            Option(
                "--slg_layers",
                architectures=("wan",),
                advanced=True,
                help='Blocks to leave out in skip layer guidance, as "9,10": can steady motion and anatomy.',
            ),
            Option(
                "--slg_scale",
                float,
                3.0,
                minimum=0,
                maximum=100,
                architectures=("wan",),
                advanced=True,
                help="Strength of skip layer guidance in its original mode.",
            ),
            Option(
                "--slg_start",
                float,
                0.0,
                minimum=0,
                maximum=1,
                architectures=("wan",),
                advanced=True,
                help="Share of the steps at which it begins.",
            ),
            Option(
                "--slg_end",
                float,
                0.3,
                minimum=0,
                maximum=1,
                architectures=("wan",),
                advanced=True,
                help="Share of the steps at which it ends.",
            ),
            Option(
                "--slg_mode",
                choices=("original", "uncond"),
                architectures=("wan",),
                advanced=True,
                help="original adds the difference to a third pass without those blocks; uncond leaves them out of the unconditional "
                "pass. Unset, off.",
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
                architectures=("wan", "fp"),
                advanced=True,
                help="Of each LoRA (in their order) use only the modules whose name matches this regular expression.",
            ),
            Option(
                "--exclude_patterns",
                nargs="*",
                architectures=("wan", "fp"),
                advanced=True,
                help="Of each LoRA (in their order) leave out the modules whose name matches this regular expression.",
            ),
            Option(
                "--exclude_single_blocks",
                bool,
                False,
                architectures=("hv",),
                advanced=True,
                help="Use only what the LoRAs change in the double blocks: can spare the model's look where a LoRA overdoes it.",
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
                moot="whether a file is a LoRA, LoHa or LoKr is told from its contents",
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
                differs={"hv_generate_video": {"choices": ("video", "images", "latent", "both")}},
                help="What to write: an mp4, one png per frame, the latent to decode later with --latent_path, latent and mp4, or latent "
                "and png.",
            ),
            Option(
                "--latent_path",
                nargs="*",
                path="file",
                advanced=True,
                help="Decode this saved latent instead of generating. One file; --output_type video or images.",
            ),
            Option(
                "--trim_tail_frames",
                int,
                0,
                minimum=0,
                maximum=10000,
                unit="frames",
                architectures=("wan",),
                advanced=True,
                help="Frames to cut off the end before saving.",
            ),
        ),
    ),
    Group(
        "Pictures and videos to start from",
        (GENERATE,),
        (
            Option(
                "--image_path",
                path="file",
                differs={
                    "hv_generate_video": {"help": "First frame, for SkyReels' image-to-video models; it is brought to --video_size."},
                    "fpack_generate_video": {"path": ""},
                },  # it may name one for each section
                advanced=True,
                help="First frame, for image-to-video models. With Wan the video gets its shape, with about the area of --video_size.",
            ),
            Option(
                "--end_image_path",
                path="file",
                architectures=("wan", "fp"),
                advanced=True,
                help="Last frame. Wan's flf2v models are made for it; its other image-to-video models get it as an extra frame at the end "
                "(--trim_tail_frames can cut what goes wrong there).",
            ),
            Option(
                "--video_path",
                path="any",
                architectures=("wan", "hv"),
                differs={
                    "wan_generate_video": {"refused": "musubi-tuner's Wan generator takes it and then starts from noise all the same"}
                },
                advanced=True,
                help="Video to change, or a folder of pictures; --strength says how much of it. It needs --video_length frames.",
            ),
            Option(
                "--control_path",
                path="any",
                advanced=True,
                architectures=("wan",),
                help="Control video, or folder of pictures, for Fun-Control models; at least as many frames as are made.",
            ),
            Option(
                "--one_frame_inference",
                architectures=("wan", "fp"),
                advanced=True,
                help='Generate a single frame from control pictures, with these settings, e.g. "target_index=1,control_index=0": the '
                "positions in time of the new picture and of the control pictures (0;10 for two).",
            ),
            Option(
                "--control_image_path",
                architectures=("wan", "fp"),
                nargs="*",
                path="file",
                advanced=True,
                help="Control pictures of one-frame generation, one for each control_index.",
            ),
            Option(
                "--control_image_mask_path",
                architectures=("wan", "fp"),
                nargs="*",
                path="file",
                advanced=True,
                help="Masks of those pictures: where they are black, the control picture counts as not given.",
            ),
        ),
    ),
)
