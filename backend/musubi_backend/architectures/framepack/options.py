"""The settings that only FramePack has (sections, its two orders of making them, one-frame work, MagCache), and what is different about
the common ones. Encoders, VAE and embedded guidance are HunyuanVideo's."""

from __future__ import annotations

from ...options.option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option, OwnOptions
from ..hunyuan_video.options import SHARED, TRUE_GUIDANCE

_GROUPS = (
    Group(
        "FramePack",
        (CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--f1",
                bool,
                False,
                help="For FramePack-F1, which makes sections from first to last; plain FramePack makes the last one first. Caching, "
                "training and generating must agree with the weight file.",
                effect=WEIGHTS,
            ),
            Option(
                "--one_frame",
                bool,
                False,
                verbs=(CACHE_LATENTS, TRAIN),
                advanced=True,
                help="One-frame training: each image is a frame at fp_1f_target_index, steered by control images. Caching makes caches "
                "for it; training makes its sample images this way.",
                effect=WEIGHTS,
            ),
            Option(
                "--one_frame_no_2x",
                bool,
                False,
                verbs=(CACHE_LATENTS,),
                advanced=True,
                help="One-frame training without the two middle-aged frames of the history.",
            ),
            Option(
                "--one_frame_no_4x",
                bool,
                False,
                verbs=(CACHE_LATENTS,),
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
                advanced=True,
                help="Length of a section; the models were trained with 9, which is 36 frames.",
                effect=NOTHING,
            ),
            Option(
                "--bulk_decode",
                bool,
                False,
                verbs=(TRAIN, GENERATE),
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
                help="Length at 30 frames per second, rounded to whole sections of 1.2 seconds.",
            ),
            Option(
                "--video_sections",
                int,
                minimum=1,
                maximum=3000,
                unit="sections",
                help="Length as a number of sections; goes before --video_seconds.",
            ),
            Option(
                "--latent_paddings",
                advanced=True,
                help='How many sections lie between each section and the start image, the one made first first, as "3,2,1,0". Default: '
                "FramePack's own order. Plain FramePack only.",
            ),
            Option(
                "--custom_system_prompt",
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
                advanced=True,
                help="With a --guidance_scale above 1: share of the result whose contrast is brought back to that without guidance.",
            ),
            Option(
                "--rope_scaling_timestep_threshold",
                int,
                minimum=0,
                maximum=1000,
                advanced=True,
                help="For sizes far above 640x640: from this timestep up, positions are scaled so that the image keeps one layout. 800 "
                "is a good start. Default: off.",
            ),
            Option(
                "--rope_scaling_factor",
                float,
                0.5,
                minimum=0.01,
                maximum=10,
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
                advanced=True,
                help="One-frame generation: take the shape of the first control image, at the area of --video_size.",
            ),
        ),
    ),
    Group(
        "MagCache (skips steps that would change little)",
        (GENERATE,),
        (
            Option(
                "--magcache_mag_ratios",
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
                advanced=True,
                help="Share of the steps, from the start, that are never skipped.",
            ),
            Option(
                "--magcache_threshold",
                float,
                0.24,
                minimum=0,
                maximum=100,
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
                advanced=True,
                help="How many steps may be skipped in a row.",
            ),
            Option(
                "--magcache_calibration",
                bool,
                False,
                advanced=True,
                help="Skip nothing, and print the ratios for --magcache_mag_ratios at the end.",
            ),
        ),
    ),
    Group(
        "Text and image encoders",
        (CACHE_TEXT, CACHE_LATENTS, TRAIN, GENERATE),
        (
            Option(
                "--image_encoder",
                path="any",
                verbs=(CACHE_LATENTS, TRAIN, GENERATE),
                differs={CACHE_LATENTS: {"required": True}},
                help="SigLIP, which encodes the start image: ComfyUI's file (sigclip_vision_patch14_384.safetensors) or a Hugging Face "
                "folder. Training needs it only for sample prompts.",
                effect=NOTHING,
            ),
        ),
    ),
)

OPTIONS = OwnOptions(
    groups=(*SHARED, *_GROUPS),
    takes=(
        "sample_solver",
        "include_patterns",
        "exclude_patterns",
        "end_image_path",
        "one_frame_inference",
        "control_image_path",
        "control_image_mask_path",
        "fp8_scaled",
        "offload_text_encoder",
    ),
    lacks={"video_length": (GENERATE,), "vae_dtype": (GENERATE,)},
    changes={
        "dit": {TRAIN: {"path": "any"}, GENERATE: {"path": "any"}},
        "fps": {GENERATE: {"default": 30}},
        "infer_steps": {GENERATE: {"help": "Denoising steps of each section: more are finer and slower.", "default": 25}},
        "flow_shift": {
            GENERATE: {
                "help": "How many of the steps are spent at high noise: larger favours layout and motion, smaller detail. Default: it "
                "follows from the size."
            }
        },
        "guidance_scale": {GENERATE: {"help": TRUE_GUIDANCE, "default": 1.0}},
        "embedded_cfg_scale": {GENERATE: {"default": 10.0}},
        "latent_path": {GENERATE: {"most": None}},
        "image_path": {GENERATE: {"path": ""}},  # it may name one for each section
        "attn_mode": {GENERATE: {"choices": ("flash", "torch", "sageattn", "xformers", "sdpa")}},
    },
    hints={
        "network_module": 'FramePack: "networks.lora_framepack".',
        "mixed_precision": "FramePack, no: bf16, whatever the file.",
        "dit": "For FramePack also the folder of a split model.",
        "vae_dtype": "FramePack: float16.",
        "video_size": "FramePack was trained on areas of about 640x640.",
    },
)
